"""A step on two ranks is the step of one: the same rows, and gradients equal to rounding."""

from __future__ import annotations

import json

import pytest

from tests.ranks.launch import run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cases() -> dict[str, dict[str, object]]:
    status, output = run("tests.ranks.steps_on_ranks")
    assert status == 0, output
    lines = [json.loads(line) for line in output.splitlines() if line.startswith('{"case"')]
    return {str(line["case"]): line for line in lines}


def test_gradients_of_two_ranks_equal_one_process(cases: dict[str, dict[str, object]]) -> None:
    assert len(cases) == 15
    for name, case in cases.items():
        assert case["difference"] < 1e-6, name  # type: ignore[operator]


def test_a_late_drop_on_two_ranks_rescales_alike(cases: dict[str, dict[str, object]]) -> None:
    dropped = [case for name, case in cases.items() if "too few scored" in name]
    assert len(dropped) == 3
    for case in dropped:
        on_two, on_one = case["loss"]  # type: ignore[misc]
        assert on_two == pytest.approx(on_one, rel=1e-5)


def test_rows_and_counted_tokens_do_not_depend_on_the_ranks(
    cases: dict[str, dict[str, object]],
) -> None:
    assert all(case["same_rows"] and case["same_tokens"] for case in cases.values())
