"""What is measured of a story, one list for the table, the page and the documentation.

`measure_text` computes all that the text alone tells, here and in the evaluation during training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..judge import injection
from ..text_stats import WordCounter, count_words
from .diversity import diversity_measures
from .figurative import figurative_density
from .length import length_measures
from .overlap import ReferenceIndex
from .repetition import repetition_measures, self_bleu
from .slop import slop_density


@dataclass(frozen=True)
class Measure:
    """One column: what it is called, how it is written, which way is better."""

    key: str
    label: str
    better: int = 0  # 1 higher, -1 lower, 0 neither
    digits: int = 2
    percent: bool = False

    def text(self, value: float) -> str:
        """The value for people."""
        shown = round(100 * value if self.percent else value, self.digits) + 0.0  # no -0
        return f"{shown:.{self.digits}f}" + (" %" if self.percent else "")


QUALITY = (
    Measure("quality", "Story Quality", 1, 1),
    Measure("s_q", "S_Q", 1, 1),
    Measure("s_l", "S_L", 1, 1),
    Measure("s", "S", 1, 1),
)
LENGTH = (
    Measure("length_ratio", "Length ratio", 0),
    Measure("abs_log_ratio", "|ln ratio|", -1),
    Measure("within_10", "Within 10 %", 1, 0, True),
    Measure("within_20", "Within 20 %", 1, 0, True),
    Measure("words", "Words", 0, 0),
    Measure("truncated", "Cut off", -1, 0, True),
    Measure("thinking_words", "Thinking words", 0, 0),
)
TEXT = (
    Measure("repetition_mean", "Repeated 4-grams", -1, 1, True),
    Measure("repetition_max", "Repeated 4-grams, worst window", -1, 1, True),
    Measure("compression_ratio", "Compression ratio", -1),
    Measure("self_bleu", "Self-BLEU", -1),
    Measure("distinct_1", "Distinct-1", 1),
    Measure("distinct_2", "Distinct-2", 1),
    Measure("distinct_3", "Distinct-3", 1),
    Measure("slop", "Slop per 1,000 words", -1, 1),
    Measure("figurative", "Figures of speech per 1,000 words", 0, 1),
    Measure("judge_addressed", "Speaks to the judge", -1, 1, True),
    Measure("train_overlap", "8-grams of training stories", -1, 1, True),
    Measure("empty", "Empty", -1, 0, True),
)
MEASURES = {m.key: m for m in (*QUALITY, *LENGTH, *TEXT)}


def measure_text(
    story: str,
    target: int,
    *,
    counter: WordCounter = "whitespace",
    references: ReferenceIndex | None = None,
) -> dict[str, float]:
    """Every measure of one story that needs no judge and no other story.

    Args:
        story: the text after the thinking.
        target: words asked for.
        counter: what is a word, `reward.word_counter`.
        references: training stories, for `train_overlap`; None: it is left out.

    Returns:
        Keys of `MEASURES`. Rates of wording are left out of an empty story, which has none.
    """
    values = length_measures(count_words(story, counter), target)
    values["empty"] = float(not story.strip())
    values["judge_addressed"] = float(bool(injection.scan(story)))
    if values["empty"]:
        return values
    values |= repetition_measures(story) | diversity_measures(story)
    values["slop"] = slop_density(story)
    values["figurative"] = figurative_density(story)
    if references is not None:
        values["train_overlap"] = references.share(story)
    return values


def measure_siblings(stories: Sequence[str]) -> list[dict[str, float]]:
    """What the stories of one prompt have in common: `self_bleu` of each.

    Returns:
        {} for an empty story, which has no wording and is nobody's likeness, and for a single one.
    """
    written = [story for story in stories if story.strip()]
    values = iter(self_bleu(written) if len(written) > 1 else [])
    return [
        {"self_bleu": next(values)} if len(written) > 1 and story.strip() else {}
        for story in stories
    ]
