"""The rubric's numbers, its caps, its schema, and the text that a provider may cache."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polaris_fast.judge import rubric


def scores(**changes: float) -> dict[str, float]:
    return dict.fromkeys(rubric.DIMENSIONS, 0.0) | changes


FULL_P = {name: float(top) for name, top in rubric.POSITIVE.items()}
FULL_N = {name: float(top) for name, top in rubric.NEGATIVE.items()}


def test_ranges_are_the_papers():
    assert sum(rubric.POSITIVE.values()) == 100
    assert sum(rubric.NEGATIVE.values()) == 151
    assert len(rubric.POSITIVE) + len(rubric.NEGATIVE) == 16
    assert rubric.MAX_SCORES["BONUS"] == rubric.MAX_SCORES["PENALTY"] == 8


@pytest.mark.parametrize(
    ("given_scores", "total"),
    [
        (scores(), 0.0),
        (scores(**FULL_P, BONUS=8.0), 108.0),
        (scores(**FULL_N, PENALTY=8.0), -159.0),
        (scores(P1=10.0, N1=5.0, BONUS=4.0), 9.0),  # N = P/2: the bonus stays
        (scores(P1=10.0, N1=5.5, BONUS=4.0), 4.5),  # N > P/2: no bonus
        (scores(P2=15.0, N2=10.0, PENALTY=8.0), -3.0),  # P = 1.5 N: the penalty stays whole
        (scores(P2=15.5, N2=10.0, PENALTY=8.0), 2.5),  # P > 1.5 N: at most 3
        (scores(P2=15.5, N2=10.0, PENALTY=2.0), 3.5),
    ],
)
def test_overall_by_hand(given_scores, total):
    assert rubric.overall(given_scores) == pytest.approx(total)


@given(
    st.fixed_dictionaries({n: st.floats(0, top) for n, top in rubric.MAX_SCORES.items()}),
)
def test_overall_is_bounded_and_caps_are_idempotent(drawn):
    assert rubric.MIN_OVERALL - 1e-9 <= rubric.overall(drawn) <= rubric.MAX_OVERALL + 1e-9
    capped = rubric.apply_caps(drawn)
    assert rubric.apply_caps(capped) == capped
    assert all(capped[name] <= drawn[name] for name in drawn)


def test_text_names_each_dimension_with_its_range():
    text = rubric.rubric_text()
    for name, top in rubric.MAX_SCORES.items():
        assert f"{name} (0 to {top})" in text
    assert text.isascii()  # the same bytes under every encoding


def test_version_is_stable_within_a_process():
    assert len(rubric.rubric_version()) == 12


def test_schema_is_strict_and_puts_evidence_before_the_score():
    schema = rubric.judgement_schema()
    json.dumps(schema)
    assert list(schema["properties"]) == [*rubric.DIMENSIONS, "overall", "summary"]
    for name in rubric.DIMENSIONS:
        part = schema["properties"][name]
        assert part["additionalProperties"] is False
        assert list(part["properties"]) == part["required"] == ["justification", "quotes", "score"]
        assert part["properties"]["score"]["maximum"] == rubric.MAX_SCORES[name]
