"""Rates of a text that the local heuristic judge turns into scores.

Every field is a share or a mean, never a count, so that 20 words and 400 words of the same prose
give about the same values. Empty texts give zeros.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise

from ..text_stats import local_repeated_share, ngrams, tokenize
from .lexicon import PHRASES, in_section, phrase_pattern, plausibility, sections

_WORD = re.compile(r"[^\W_]+(?:'[^\W\d_]+)?")
_SENTENCE = re.compile(r"[^.!?]+(?:[.!?]+[\"')\]]*|\Z)", re.DOTALL)
_QUOTED = re.compile(r'"([^"]{1,600})"')
_TYPOGRAPHIC = str.maketrans({"\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"'})
_ODD_MARKS = re.compile(
    r"[^\w\s.,;:!?'\"()\-\u2013\u2014\u2026*]|[,;:]{2,}|\s[,;:.!?](?=\s)|[,;:][.!?]"
)

_START_BLOCKERS = ("preposition_strict", "conjunction", "subject_pronoun", "modal", "be", "END")
_BAD_AFTER = {  # class of a word -> classes that hardly ever follow it
    "determiner": {*_START_BLOCKERS, "determiner", "possessive", "possessive_open"},
    "possessive": {*_START_BLOCKERS, "determiner", "possessive", "possessive_open"},
    "possessive_open": {"determiner", "possessive", "subject_pronoun"},
    "preposition_strict": {"conjunction", "subject_pronoun", "modal", "be", "END"},
    "conjunction": {"conjunction", "END"},
    "subject_pronoun": {"subject_pronoun", "determiner", "possessive", "possessive_open"},
    "modal": {"modal", "preposition_strict", "conjunction", "be"},
    "be": {"modal", "be"},
}
_REPEATABLE = {"very", "had", "that", "no", "so", "ha", "knock", "never", "again", "more", "really"}
REPEAT_REACH = 150  # 3-grams; far enough to see a paragraph said again


@dataclass(frozen=True, slots=True)
class Features:
    """Rates of one story; all in [0, 1] unless the comment says otherwise."""

    words: list[str] = field(default_factory=list)  # lower case
    sentences: list[str] = field(default_factory=list)  # as written, stripped
    nonword: float = 0.0  # mean implausibility of words
    slips: float = 0.0  # word pairs that hardly ever occur in English
    verbless: float = 0.0  # words in sentences of five and more words without a verb
    sentence_words: float = 0.0  # mean words a sentence, not a share
    sentence_variation: float = 0.0  # coefficient of variation of sentence length
    runaway: float = 0.0  # words beyond the fortieth of a sentence
    ends_well: float = 0.0  # 1 when the text ends with a full sentence
    uncapped: float = 0.0  # sentences that begin without a capital
    odd_marks: float = 0.0  # stray punctuation a word
    unbalanced: float = 0.0  # paragraphs with quotation marks that leave one open
    dialogue: float = 0.0  # words inside quotation marks
    diversity: float = 0.0  # words that are new within the 25 before them
    repeats: float = 0.0  # 3-grams that occur among the 150 before them
    same_openings: float = 0.0  # sentences that open with the word of the one before
    coverage: float = 0.0  # content words of the prompt that the story takes up
    shares: dict[str, float] = field(default_factory=dict)  # lexicon section -> share of words
    phrases: dict[str, float] = field(default_factory=dict)  # phrase list -> words a phrase hit

    def share(self, *names: str) -> float:
        """Share of words in any of the sections, summed."""
        return sum(self.shares[name] for name in names) if self.shares else 0.0


def read_features(prompt: str, story: str) -> Features:
    """All rates of `story`; `prompt` matters for `coverage` only."""
    text = story.translate(_TYPOGRAPHIC)
    words = _words(text)
    if not words:
        return Features()
    sentences = [  # the letters as written: translation keeps positions
        story[m.start() : m.end()].strip() for m in _SENTENCE.finditer(text) if _WORD.search(m[0])
    ]
    sentence_words = [_words(sentence.translate(_TYPOGRAPHIC)) for sentence in sentences]
    lengths = [len(one) for one in sentence_words]
    mean = sum(lengths) / len(lengths)
    spread = (sum((n - mean) ** 2 for n in lengths) / len(lengths)) ** 0.5
    openings = [one[0] for one in sentence_words]
    return Features(
        words=words,
        sentences=sentences,
        nonword=_mean(1.0 - p for p in _plausibilities(text)),
        slips=_slips(text) / len(words),
        verbless=sum(n for n, one in zip(lengths, sentence_words, strict=True) if _verbless(one))
        / len(words),
        sentence_words=mean,
        sentence_variation=spread / mean,
        runaway=sum(max(0, n - 40) for n in lengths) / len(words),
        ends_well=float(bool(re.search(r"[.!?\u2026][\"')*]*\s*\Z", text))),
        uncapped=_mean(not _opens_with_capital(s) for s in sentences),
        odd_marks=min(1.0, len(_ODD_MARKS.findall(text)) / len(words)),
        unbalanced=_mean(p.count('"') % 2 for p in text.split("\n\n") if '"' in p),
        dialogue=sum(len(_words(q)) for q in _QUOTED.findall(text)) / len(words),
        diversity=1.0 - local_repeated_share(words, reach=25),
        repeats=local_repeated_share(ngrams(tokenize(text), 3), reach=REPEAT_REACH),
        same_openings=_mean(a == b for a, b in pairwise(openings)),
        coverage=_coverage(prompt, words),
        shares={name: _mean(in_section(w, name) for w in words) for name in _word_sections()},
        phrases=_phrase_rates(text, len(words)),
    )


@lru_cache(maxsize=65536)
def word_class(word: str) -> str:
    """The grammatical class that pair rules know, or "" for content words and the rest."""
    return next((name for name in _BAD_AFTER if word in sections()[name]), "")


def content_words(text: str) -> set[str]:
    """Words that carry meaning, cut to their first five letters so that forms fall together."""
    return {w[:5] for w in _words(text) if len(w) > 2 and not _is_function(w)} - _ASKING


_ASKING = {w[:5] for w in ("write", "story", "tell", "tale", "short", "words", "long", "about")}


def _words(text: str) -> list[str]:
    return [word.lower() for word in _WORD.findall(text)]


def _word_sections() -> list[str]:
    return [name for name in sections() if name not in PHRASES]


@lru_cache(maxsize=65536)
def _is_function(word: str) -> bool:
    names = ("function", "auxiliary", "pronoun", "preposition", "possessive_open", *_BAD_AFTER)
    return any(word in sections()[name] for name in names)


def _plausibilities(text: str) -> Iterable[float]:
    """One value a word; a capital inside a sentence makes an unknown word a likely name."""
    for match in _WORD.finditer(text):
        word = match[0]
        value = plausibility(word.lower())
        before = text[: match.start()].rstrip(" ")[-1:]
        named = word[0].isupper() and word[1:].islower() and before not in ("", ".", "!", "?", "\n")
        yield max(value, 0.8) if named and value > 0.05 else value


def _slips(text: str) -> int:
    """Pairs of neighbours that hardly ever stand together, sentence ends included."""
    count = 0
    for clause in re.split(r"[.!?;:\n]+[\"']*\s*|(?<=,)[\"']*\s", text):
        words = _words(clause)
        classes = [word_class(word) for word in words]
        ended = ["END"] if words and not clause.endswith(",") else []
        for left, right in pairwise([*classes, *ended]):
            count += right in _BAD_AFTER.get(left, ())
        for left, right in pairwise(words):
            count += left == right and left not in _REPEATABLE
    return count


def _verbless(words: Sequence[str]) -> bool:
    return len(words) >= 5 and not any(_verb_like(word) for word in words)


@lru_cache(maxsize=65536)
def _verb_like(word: str) -> bool:
    verbal = ("be", "auxiliary", "modal", "action")
    return any(in_section(word, name) for name in verbal) or "'" in word or word.endswith("ed")


def _opens_with_capital(sentence: str) -> bool:
    first = next((c for c in sentence if c.isalnum()), "")
    return first.isupper() or first.isdigit()


def _coverage(prompt: str, words: Sequence[str]) -> float:
    wanted = content_words(prompt)
    present = {word[:5] for word in words}
    return len(wanted & present) / len(wanted) if wanted else 1.0


def _phrase_rates(text: str, num_words: int) -> dict[str, float]:
    """Words inside listed phrases as a share of all words."""
    lower = " ".join(text.lower().split())
    return {
        name: sum(len(hit.split()) for hit in phrase_pattern(name).findall(lower)) / num_words
        for name in PHRASES
    }


def _mean(values: Iterable[float]) -> float:
    items = list(values)
    return sum(items) / len(items) if items else 0.0
