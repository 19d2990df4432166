"""The local heuristic judge: all 18 rubric numbers from text statistics. No judge of quality.

It exists so that a run works without network, key or cost, and so that tests are reproducible.
It sees whether a text looks like English sentences about the prompt, and whether it repeats
itself; it does not understand stories, and a high score says nothing about how good one is.
The same texts give the same scores. Length plays no part from a dozen words on.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from typing import Any

from . import rubric
from .features import Features, content_words, read_features, word_class
from .lexicon import in_section, phrase_pattern, plausibility

MODEL_NAME = "local-heuristic"
DISCLAIMER = (
    "Scored by the local heuristic judge from text statistics alone: this is no judge of quality."
)
ENOUGH_WORDS = 12  # below this, merits count in proportion
REACHABLE = 0.75  # share of a positive range that statistics can earn: they cannot see the rest
QUOTE_WORDS = 12


def judge_story(prompt: str, story: str) -> dict[str, Any]:
    """An answer in the form of `rubric.judgement_schema`."""
    features = read_features(prompt, story)
    scores = score_features(features)
    answer: dict[str, Any] = {
        name: {
            "justification": f"Text statistic, no judgement: {_EVIDENCE[name](features)}.",
            "quotes": _quotes(name, scores[name], prompt, features),
            "score": scores[name],
        }
        for name in rubric.DIMENSIONS
    }
    answer["overall"] = round(rubric.overall(scores), 2)
    answer["summary"] = DISCLAIMER
    return answer


def judge_story_json(prompt: str, story: str) -> str:
    """`judge_story` as the text a judge would send."""
    return json.dumps(judge_story(prompt, story), ensure_ascii=False)


def score_features(f: Features) -> dict[str, float]:
    """Points of every dimension, each within its range, rounded to hundredths."""
    shares = _positive(f) | _negative(f)
    return {
        name: round(maximum * min(1.0, max(0.0, shares[name])), 2)
        for name, maximum in rubric.MAX_SCORES.items()
    }


def fluency(f: Features) -> float:
    """How much the text looks like English sentences, in [0, 1]: words, pairs, verbs."""
    lexis = 1.0 - _up(f.nonword, 0.02, 0.40)
    return lexis * math.exp(-f.slips / 0.05) * (1.0 - 0.6 * f.verbless) * (1.0 - 0.6 * f.runaway)


def _positive(f: Features) -> dict[str, float]:
    """Shares of the maxima: every merit needs fluent text that is not a loop."""
    novelty = 1.0 - _up(f.repeats, 0.06, 0.60)
    base = fluency(f) * novelty * min(1.0, len(f.words) / ENOUGH_WORDS)
    pace = _up(f.sentence_words, 2, 6) * (1.0 - _up(f.sentence_words, 20, 45))
    variation = _up(f.sentence_variation, 0.05, 0.5)
    people = _up(f.share("person", "subject_pronoun", "pronoun", "possessive_open"), 0.0, 0.12)
    contrast = _up(f.share("contrast"), 0.0, 0.05)
    shares = {
        "P1": 0.2 + 0.8 * _up(f.coverage, 0.0, 0.6),
        "P2": 0.2 + 0.3 * f.ends_well + 0.2 * pace + 0.3 * variation,
        "P3": 0.1 + 0.5 * people + 0.4 * _up(f.share("action"), 0.03, 0.20),
        "P4": 0.2 + 0.5 * _up(f.diversity, 0.45, 0.85) + 0.3 * variation,
        "P5": 0.1 + 0.9 * _up(f.share("concrete", "sensory"), 0.0, 0.20),
        "P6": 0.3 + 0.4 * _up(f.share("feeling"), 0.0, 0.04) + 0.3 * contrast,
        "BONUS": 0.4 * _up(f.dialogue, 0.0, 0.15) * (1.0 - f.unbalanced),
    }
    return {name: REACHABLE * base * share for name, share in shares.items()}


def _negative(f: Features) -> dict[str, float]:
    nonword, cut = _up(f.nonword, 0.02, 0.50), 1.0 - f.ends_well
    ground = _up(f.share("concrete", "sensory", "action"), 0.05, 0.25)
    cliche = _up(f.phrases.get("cliche", 0.0), 0.0, 0.12)
    monotone = _up(f.same_openings, 0.3, 1.0)
    return {
        "N1": 0.5 * (1.0 - _up(f.coverage, 0.0, 0.4)) + 0.3 * (1.0 - fluency(f)),
        "N2": 0.6 * _up(f.slips, 0.003, 0.10) + 0.25 * f.verbless + 0.2 * f.runaway,
        "N3": 0.6 * cliche + 0.4 * monotone,
        "N4": 0.4 * (1.0 - ground) + 0.5 * _up(f.share("abstract"), 0.05, 0.20),
        "N5": 0.6 * _up(f.repeats, 0.04, 0.50) + 0.5 * _up(f.phrases.get("moral", 0.0), 0.0, 0.12),
        "N6": 0.5 * nonword + 0.25 * cut + 0.6 * _up(f.repeats, 0.10, 0.80) + 0.2 * f.runaway,
        "N7": 0.4 * f.unbalanced,
        "N8": 0.6 * f.uncapped + 0.3 * cut + 0.4 * _up(f.odd_marks, 0.0, 0.15),
        "N9": 0.4 * cliche + 0.4 * monotone,
        "N10": 0.4 * nonword
        + 0.3 * _up(f.slips, 0.01, 0.15)
        + 0.4 * _up(f.phrases.get("figurative", 0.0), 0.04, 0.25),
        "PENALTY": _up(f.phrases.get("to_judge", 0.0), 0.0, 0.08),
    }


def _up(value: float, low: float, high: float) -> float:
    """0 up to `low`, 1 from `high`, linear between."""
    return min(1.0, max(0.0, (value - low) / (high - low)))


_EVIDENCE: dict[str, Callable[[Features], str]] = {
    "P1": lambda f: f"{f.coverage:.0%} of the prompt's content words occur",
    "P2": lambda f: (
        f"sentences of {f.sentence_words:.1f} words with variation {f.sentence_variation:.2f}, "
        + ("the last one closed" if f.ends_well else "the last one open")
    ),
    "P3": lambda f: (
        f"{f.share('person', 'subject_pronoun'):.0%} persons, {f.share('action'):.0%} verbs"
    ),
    "P4": lambda f: f"{f.diversity:.0%} of the words are new within 25 words",
    "P5": lambda f: f"{f.share('concrete', 'sensory'):.0%} concrete and sensory words",
    "P6": lambda f: (
        f"{f.share('feeling'):.1%} words of feeling, {f.share('contrast'):.1%} of contrast"
    ),
    "N1": lambda f: f"{1 - f.coverage:.0%} of the prompt's content words are missing",
    "N2": lambda f: f"{f.slips:.3f} unlikely word pairs a word, {f.verbless:.0%} without a verb",
    "N3": lambda f: f"{f.phrases.get('cliche', 0.0):.1%} of the words in stock phrases",
    "N4": lambda f: f"{f.share('abstract'):.1%} abstract words",
    "N5": lambda f: f"{f.repeats:.0%} of the 3-grams repeat one shortly before",
    "N6": lambda f: f"words look {f.nonword:.0%} unlike English, {f.repeats:.0%} of 3-grams repeat",
    "N7": lambda f: f"{f.unbalanced:.0%} of the paragraphs with speech leave a quotation open",
    "N8": lambda f: f"{f.uncapped:.0%} of the sentences begin without a capital",
    "N9": lambda f: f"{f.same_openings:.0%} of the sentences open like the one before",
    "N10": lambda f: f"{f.phrases.get('figurative', 0.0):.1%} of the words in comparisons",
    "BONUS": lambda f: f"{f.dialogue:.0%} of the words in quotation marks",
    "PENALTY": lambda f: f"{f.phrases.get('to_judge', 0.0):.1%} of the words address a judge",
}


def _quotes(name: str, score: float, prompt: str, f: Features) -> list[str]:
    """The start of the sentence that has most of what the dimension is about, if any has."""
    if score < 0.1 * rubric.MAX_SCORES[name] or not f.sentences:
        return []
    weigh = _weigher(name, prompt)
    best = max(f.sentences, key=lambda sentence: weigh(sentence.lower().split()))
    return [_head(best)] if weigh(best.lower().split()) > 0 else []


def _weigher(name: str, prompt: str) -> Callable[[list[str]], float]:
    if name == "P1":
        wanted = content_words(prompt)
        return lambda words: sum(_bare(word)[:5] in wanted for word in words)
    if names := _SECTIONS.get(name):
        return lambda words: sum(any(in_section(_bare(w), n) for n in names) for w in words)
    if phrases := _PHRASES.get(name):
        pattern = phrase_pattern(phrases)
        return lambda words: len(pattern.findall(" ".join(words)))
    if name == "N6":
        return lambda words: sum(1.0 - plausibility(_bare(word)) for word in words)
    if name == "N2":
        return lambda words: sum(bool(word_class(_bare(word))) for word in words) / len(words)
    if name in ("N7", "BONUS"):
        return lambda words: sum('"' in word or "\u201c" in word for word in words)
    return lambda words: 0.0


_SECTIONS = {
    "P3": ("person", "subject_pronoun", "action"),
    "P5": ("concrete", "sensory"),
    "P6": ("feeling", "contrast"),
    "N4": ("abstract",),
}
_PHRASES = {
    "N3": "cliche",
    "N5": "moral",
    "N9": "cliche",
    "N10": "figurative",
    "PENALTY": "to_judge",
}


def _bare(word: str) -> str:
    return word.strip(".,;:!?\"'()\u201c\u201d\u2018\u2019")


def _head(sentence: str) -> str:
    """The first words of a sentence, exactly as written."""
    words: Iterable[str] = sentence.split(" ")[:QUOTE_WORDS]
    return " ".join(words).strip()
