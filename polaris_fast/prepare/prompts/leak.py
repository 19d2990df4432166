"""Whether a prompt gives a story's own words away: a common word 8-gram, or a quoted sentence.

Both texts are compared as lower-case words without punctuation, so that a changed quotation mark
hides nothing.
"""

from __future__ import annotations

import re

from ..fingerprints import normal_words

GRAM = 8
MIN_SENTENCE_WORDS = 5  # "He did not answer." may stand in any prompt
_SENTENCE_END = re.compile(r"(?<=[.!?\u2026])[\"'\u201d\u2019)]*\s+|\n+")
_QUOTED = re.compile(r"\"([^\"]+)\"|\u201c([^\u201d]+)\u201d")


def find_leak(prompt: str, story: str, title: str = "") -> str | None:
    """The first phrase of the story that stands in the prompt, as normalised words; None: none.

    Args:
        title: may stand in the prompt between quotation marks, even when the story says it.
    """
    asked = normal_words(prompt)
    told = f" {' '.join(normal_words(story))} "
    for i in range(len(asked) - GRAM + 1):
        phrase = " ".join(asked[i : i + GRAM])
        if f" {phrase} " in told:
            return phrase
    own_title = normal_words(title)
    for found in _QUOTED.finditer(prompt):
        words = normal_words(found[1] or found[2])
        if len(words) >= MIN_SENTENCE_WORDS and words != own_title:
            phrase = " ".join(words)
            if f" {phrase} " in told:
                return phrase
    return _shared_sentence(f" {' '.join(asked)} ", story)


def _shared_sentence(asked: str, story: str) -> str | None:
    """A whole sentence of the story, shorter than a gram, inside the prompt."""
    for sentence in _SENTENCE_END.split(story):
        if len(sentence) >= len(asked):
            continue
        words = normal_words(sentence)
        if MIN_SENTENCE_WORDS <= len(words) < GRAM:
            phrase = " ".join(words)
            if f" {phrase} " in asked:
                return phrase
    return None
