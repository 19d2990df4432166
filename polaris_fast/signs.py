"""Numbers of a step's stories that show a reward being gamed: copies, one story for all, images.

They cost no judge: hashed n-grams, tens of milliseconds for a story of 12,000 words.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from itertools import combinations

import numpy as np

from .evaluate.figurative import figurative_density
from .evaluate.overlap import ReferenceIndex
from .text_stats import ngrams, tokenize
from .types import Group, RowKind


def story_signs(groups: Sequence[Group]) -> dict[str, float]:
    """Means over a step's policy stories; a number that nothing was there for is left out.

    Returns:
        signs/reference_overlap: share of a story's 8-grams that its prompt's human story has.
        signs/group_similarity: Jaccard similarity of the 4-grams of two stories of one group;
            1 means that all rollouts of a group are one story.
        signs/figurative_density: figures of speech per 1,000 words.
    """
    overlaps, similarities, figures = [], [], []
    for group in groups:
        stories = [row.story for row in group.rows if row.kind is RowKind.POLICY and row.story]
        if group.record.story is not None:
            reference = ReferenceIndex([group.record.story])
            overlaps += [reference.share(story) for story in stories]
        figures += [figurative_density(story) for story in stories]
        grams = [_grams(story) for story in stories]
        similarities += [_jaccard(a, b) for a, b in combinations(grams, 2)]
    found = {
        "signs/reference_overlap": overlaps,
        "signs/group_similarity": similarities,
        "signs/figurative_density": figures,
    }
    return {name: statistics.fmean(values) for name, values in found.items() if values}


def _grams(story: str) -> np.ndarray:
    """Sorted hashes of the story's distinct 4-grams."""
    grams = ngrams(tokenize(story))
    return np.unique(np.fromiter((hash(gram) for gram in grams), np.int64, len(grams)))


def _jaccard(a: np.ndarray, b: np.ndarray) -> float:
    shared = len(np.intersect1d(a, b, assume_unique=True))
    union = len(a) + len(b) - shared
    return shared / union if union else 0.0
