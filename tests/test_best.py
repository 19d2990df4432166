"""The best checkpoint: found by a named metric, linked, and forgotten when a run goes back."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from polaris_fast.best import Best, forget_best_after, is_best, mark_best, read_best


@pytest.mark.parametrize(("greater", "better", "worse"), [(True, 0.6, 0.4), (False, 0.4, 0.6)])
def test_only_a_strictly_better_value_is_best(
    tmp_path: Path, greater: bool, better: float, worse: float
) -> None:
    def offered(value: float) -> bool:
        return is_best(tmp_path, value, "eval/x", greater_is_better=greater)

    assert offered(0.5)
    mark_best(tmp_path, 5, "eval/x", 0.5)
    assert not offered(0.5) and not offered(worse) and not offered(math.nan)
    assert offered(better)


def test_the_link_points_at_the_marked_checkpoint(tmp_path: Path) -> None:
    for step in (5, 10):
        (tmp_path / f"checkpoint-{step}").mkdir()
        mark_best(tmp_path, step, "eval/reward", step / 10)
    assert (tmp_path / "best").resolve().name == "checkpoint-10"
    assert read_best(tmp_path) == Best(10, "eval/reward", 1.0)


def test_another_metric_starts_anew(tmp_path: Path) -> None:
    mark_best(tmp_path, 5, "eval/reward", 9.0)
    assert is_best(tmp_path, 0.1, "eval/x", greater_is_better=True)


def test_a_resumed_run_forgets_what_it_has_not_reached(tmp_path: Path) -> None:
    mark_best(tmp_path, 5, "eval/reward", 1.0)
    forget_best_after(tmp_path, 5)
    assert read_best(tmp_path) is not None
    forget_best_after(tmp_path, 4)
    assert read_best(tmp_path) is None and not (tmp_path / "best").is_symlink()
