"""How long `polaris generate` lets a story become."""

from __future__ import annotations

import pytest

from polaris_fast.config import Config, DataConfig
from polaris_fast.generate import token_limit


@pytest.mark.parametrize(
    ("words", "thinking", "configured", "limit"),
    [
        (2000, False, 512, 8000),
        (2000, False, None, 8000),
        (5, False, 512, 64),
        (2000, True, 512, 16000),  # 8,000 for the story, as many for the thinking
        (100, True, 4096, 4096),  # thinking takes what it takes
        (None, True, 4096, 4096),
        (None, False, None, 1024),
    ],
)
def test_a_story_has_room_for_its_words_and_its_thinking(words, thinking, configured, limit):
    config = Config(data=DataConfig(thinking=thinking), max_completion_length=configured)
    assert token_limit(words, config) == limit
