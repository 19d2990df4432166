"""A given prompt loses its length, and nothing else."""

from __future__ import annotations

import pytest

from polaris_fast.prepare.prompts.lengths import names_length, without_length


@pytest.mark.parametrize(
    ("prompt", "left"),
    [
        ("Write a story, 4,000 words long", ""),
        ("Please write a short story in 2k words.", ""),
        ("Write a 2,000-word story about a keeper.", "Write a story about a keeper."),
        ("Write a story of about 4,000 words on a ferry.", "Write a story on a ferry."),
        ("Write between 900 and 1,200 words about a ferry.", "Write about a ferry."),
        ("Tell of a well. It should have 3000 words. Be calm.", "Tell of a well. Be calm."),
        ("Tell of a well. Aim for a length of 3000 words.", "Tell of a well."),
        ("Tell of a well (1500-2000 words).", "Tell of a well."),
        ("Tell of a well, at least 900 words long, in one room.", "Tell of a well, in one room."),
        ("Tell of a well.\n\nWord limit: 500", "Tell of a well."),
        ("A tale of 5 to 10 pages about ferries.", "A tale about ferries."),
    ],
)
def test_a_length_is_cut_with_its_clause_or_its_sentence(prompt: str, left: str) -> None:
    assert without_length(prompt) == left
    assert not names_length(left)


@pytest.mark.parametrize(
    "prompt", ["Tell of 40 men and a well.", "He burned 40 pages of it.", "She says 3 words."]
)
def test_numbers_of_other_things_stay(prompt: str) -> None:
    assert without_length(prompt) == prompt
