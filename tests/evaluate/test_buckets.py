"""Buckets of requested length."""

from __future__ import annotations

import pytest

from polaris_fast.evaluate.buckets import PAPER_EDGES, Buckets, choose_buckets
from polaris_fast.types import UserError


@pytest.mark.parametrize(
    ("target", "label"),
    [
        (999, "<1K"),
        (1000, "1-4K"),
        (3999, "1-4K"),
        (4000, "4-8K"),
        (8000, "8-12K"),
        (12000, "8-12K"),
        (12001, ">12K"),
    ],
)
def test_the_papers_buckets(target, label):
    assert Buckets(PAPER_EDGES).label(target) == label


def test_long_targets_get_the_papers_buckets_and_short_ones_thirds():
    assert choose_buckets([500, 2000, 9000]).are_the_papers
    short = choose_buckets(range(20, 50))
    assert short.edges == (20, 30, 40, 49)
    assert short.labels([45, 20, 31]) == ["20-30", "30-40", "40-49"]


def test_few_lengths_get_a_bucket_each():
    assert choose_buckets([30, 30]).labels([30, 30]) == ["30"]
    assert choose_buckets([20, 40, 20, 40, 60]).labels([20, 40, 60]) == ["20", "40", "60"]


def test_given_edges_win():
    assert choose_buckets([2000], [10, 50]).labels([5, 20, 2000]) == ["<10", "10-50", ">50"]


@pytest.mark.parametrize("edges", [[5], [5, 5], [9, 3], [-1, 4], []])
def test_edges_must_rise(edges):
    with pytest.raises(UserError, match="--buckets: must be at least two rising numbers"):
        choose_buckets([30], edges)


def test_a_bucket_keeps_its_number_where_others_are_empty():
    papers = Buckets(PAPER_EDGES)
    assert [papers.number(n) for n in (999, 1000, 4000, 8000, 12000, 12001)] == [-1, 0, 1, 2, 2, 3]
    given = choose_buckets([5], [0, 10, 11, 50])
    assert [given.number(n) for n in (5, 10, 20, 51)] == [0, 1, 2, 3]


def test_lengths_with_a_bucket_each_are_one_apart():
    few = choose_buckets([20, 40, 41, 60])
    assert [few.number(n) for n in (20, 40, 41, 60)] == [0, 1, 2, 3]
