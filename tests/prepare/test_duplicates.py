"""Near-duplicates are found, checked on the true sets, and the longer text stays."""

from __future__ import annotations

import random

import numpy as np
import pytest

from polaris_fast.prepare.duplicates import Candidates, Pair, choose, compare, exact_copies
from polaris_fast.prepare.fingerprints import grams_of, normal_words, signature
from polaris_fast.prepare.shared_text import MAX_RATE, sharing_pairs

from .books import prose


def _sharing(texts: list[str], rate: int | None = None) -> set[tuple[int, int]]:
    grams = [grams_of(normal_words(text)) for text in texts]
    words = [len(text.split()) for text in texts]
    found = sharing_pairs(words, grams.__getitem__, rate=rate)
    return {(p.first, p.second) for p in compare(found, grams.__getitem__)}


def _with_passage(seed: int, words: int, passage: str) -> str:
    """A story of its own, with a passage that stands in others, too."""
    own = prose(seed, words).split()[:words]
    at = random.Random(seed).randrange(words - len(passage.split()))
    return " ".join([*own[:at], passage, *own[at + len(passage.split()) :]])


def _found(texts: list[str]) -> dict[tuple[int, int], Pair]:
    grams = [grams_of(normal_words(text)) for text in texts]
    index = Candidates()
    for some in grams:
        index.add(signature(some))
    return {(p.first, p.second): p for p in compare(index.pairs(), grams.__getitem__)}


def _jaccard(a: str, b: str) -> float:
    """By the definition, on tuples of words."""
    sets = []
    for text in (a, b):
        words = normal_words(text)
        sets.append({tuple(words[i : i + 5]) for i in range(len(words) - 4)})
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def _changed(text: str, every: int) -> str:
    words = text.split()
    words[::every] = ["changed"] * len(words[::every])
    return " ".join(words)


def test_similarities_are_those_of_the_definition() -> None:
    base = prose(1, 800)
    texts = [base, _changed(base, 60), base.upper().replace(".", " !"), prose(2, 800)]
    found = _found(texts)
    assert found[0, 1].jaccard == _jaccard(base, texts[1])
    assert found[0, 2].jaccard == 1.0  # case and signs do not count
    assert not any(3 in pair for pair in found)


def test_excerpts_of_a_quarter_are_found() -> None:
    for seed in range(12):
        words = prose(seed, 1200).split()
        start = random.Random(seed).randrange(len(words) * 3 // 4)
        found = _found([" ".join(words), " ".join(words[start : start + len(words) // 4])])
        assert found[0, 1].containment > 0.99


def test_a_thousand_strangers_have_no_twin() -> None:
    assert not _found([prose(seed, 120) for seed in range(300)])


@pytest.mark.parametrize("rate", [1, MAX_RATE])
@pytest.mark.parametrize("longer", [1, 3])
def test_stories_that_share_a_tenth_of_the_shorter_are_all_found(rate: int, longer: int) -> None:
    texts = []
    for seed in range(24):
        passage = " ".join(prose(1000 + seed, 150).split()[: 110 + 40 * (seed % 3)])
        texts.append(_with_passage(seed, 1000, passage))
        texts.append(_with_passage(500 + seed, 1000 * longer, passage))
    assert _sharing(texts, rate) == {(2 * i, 2 * i + 1) for i in range(24)}


@pytest.mark.parametrize("rate", [1, MAX_RATE])
def test_a_passage_in_many_stories_ties_them_by_the_shortest(rate: int) -> None:
    passage = prose(1000, 150)
    texts = [_with_passage(seed, 3000 - 100 * seed, passage) for seed in range(20)]
    assert {(i, 19) for i in range(19)} <= _sharing(texts, rate)  # (first, the shortest)


def test_one_story_or_none_shares_nothing() -> None:
    assert _sharing([]) == set() == _sharing([prose(1)]) == _sharing(["a b", "c d"], MAX_RATE)


def test_the_longer_of_a_chain_stays_and_each_drop_names_what_was_kept() -> None:
    words = {0: 100, 1: 300, 2: 200, 3: 50}
    pairs = [Pair(0, 1, 0.7, 0.9), Pair(1, 2, 0.6, 0.7), Pair(0, 2, 0.55, 0.7),
             Pair(2, 3, 0.2, 0.95)]  # fmt: skip
    twins = choose(pairs, lambda n: (words[n], "same"), threshold=0.5, contained=0.8)
    # 3 is an excerpt of 2 alone, and 2 is not kept: 3 stays.
    assert [(t.dropped, t.kept) for t in twins] == [(0, 1), (2, 1)]


def test_of_exact_copies_the_longest_stays_of_equals_the_first_and_none_is_compared() -> None:
    ranks = [(10, "a"), (9, "b"), (11, "a"), (9, "b"), (11, "a"), (5, "c")]
    assert exact_copies(ranks) == {0: 2, 4: 2, 3: 1}
    index = Candidates()
    for _ in range(4):
        index.add(signature(grams_of(normal_words(prose(1)))))
    assert index.pairs([1, 3]) == [(1, 3)] and index.pairs([2]) == index.pairs([]) == []


@pytest.mark.parametrize("uids", [("a", "b"), ("b", "a")])
def test_of_two_equally_long_ones_the_lower_uid_stays_whatever_the_order(uids) -> None:
    pair = Pair(0, 1, 0.9, 0.9)
    (twin,) = choose([pair], lambda n: (10, uids[n]), threshold=0.5, contained=0.8)
    assert uids[twin.kept] == "a"


def test_fingerprints_do_not_depend_on_the_process_and_short_texts_have_one() -> None:
    grams = grams_of(["one", "two", "three", "four", "five", "six"])
    assert grams.dtype == np.uint32 and len(grams) == 2
    assert grams.tolist() == sorted(grams.tolist())
    assert len(grams_of(["alone"])) == 1
    assert signature(grams).tolist() == signature(grams.copy()).tolist()
