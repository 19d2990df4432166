"""Near-duplicates are found, checked on the true sets, and the longer text stays."""

from __future__ import annotations

import random

import numpy as np

from polaris_fast.prepare.duplicates import Candidates, Pair, choose, compare
from polaris_fast.prepare.fingerprints import grams_of, normal_words, signature

from .books import prose


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


def test_the_longer_of_a_chain_stays_and_each_drop_names_what_was_kept() -> None:
    words = {0: 100, 1: 300, 2: 200, 3: 50}
    pairs = [Pair(0, 1, 0.7, 0.9), Pair(1, 2, 0.6, 0.7), Pair(0, 2, 0.55, 0.7),
             Pair(2, 3, 0.2, 0.95)]  # fmt: skip
    twins = choose(pairs, words.__getitem__, threshold=0.5, contained=0.8)
    # 3 is an excerpt of 2 alone, and 2 is not kept: 3 stays.
    assert [(t.dropped, t.kept) for t in twins] == [(0, 1), (2, 1)]
    equal = choose([Pair(4, 5, 1.0, 1.0)], lambda n: 10, threshold=0.5, contained=0.8)
    assert [(t.dropped, t.kept) for t in equal] == [(5, 4)]


def test_fingerprints_do_not_depend_on_the_process_and_short_texts_have_one() -> None:
    grams = grams_of(["one", "two", "three", "four", "five", "six"])
    assert grams.dtype == np.uint32 and len(grams) == 2
    assert grams.tolist() == sorted(grams.tolist())
    assert len(grams_of(["alone"])) == 1
    assert signature(grams).tolist() == signature(grams.copy()).tolist()
