"""The report's part about the judge: latencies, failures by class, calls, the limiter, cost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from polaris_fast.report import write_report
from polaris_fast.report.attention import notices
from polaris_fast.report.catalogue import INVALID
from polaris_fast.report.charts import _with_invalid, draw_sections
from polaris_fast.report.folder import read_run
from tests.run_folder import build_run_folder


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    return build_run_folder(tmp_path / "run", steps=20)


def with_metrics(run_dir: Path, **values: Any) -> Path:
    """The run with these `judge/*` metrics in every step; a callable is given the step."""
    path = run_dir / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        for key, value in values.items():
            value = value(row["step"]) if callable(value) else value
            row["judge/" + key.replace("__", "/")] = value
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return run_dir


def titles(run_dir: Path) -> list[str]:
    sections = {section.slug: section for section in draw_sections(read_run(run_dir))}
    return [chart.title for chart in sections["judging"].charts]


def test_a_judge_that_struggles_has_its_charts(run_dir):
    with_metrics(
        run_dir,
        calls=60,
        retries=lambda step: step,
        faults__throttle=lambda step: 2 * step,
        faults__timeout=1,
        failures__timeout=1,
        limit=lambda step: 100 - step,
        spent_usd=lambda step: 0.1 * step,
    )
    assert titles(run_dir) == [
        "Judge latency",
        "Failed tries by class",
        "Stories without a score",
        "Calls",
        "Requests at once",
        "Cost",
    ]
    page = write_report(run_dir).read_text()
    assert 'id="judging"' in page
    assert "throttled" in page


def test_charts_without_anything_to_show_are_left_out(run_dir):
    with_metrics(run_dir, spent_usd=0.0)
    shown = titles(run_dir)
    assert "Cost" not in shown
    assert "Failed tries by class" not in shown


def test_contradictory_answers_count_as_invalid():
    both = {"judge/faults/invalid": 2, "judge/faults/inconsistent": 3.0}
    assert _with_invalid(both)[INVALID] == 5
    assert _with_invalid({"judge/faults/inconsistent": 3})[INVALID] == 3
    assert INVALID not in _with_invalid({"judge/faults/throttle": 3})


def test_many_failing_requests_are_told_by_class(run_dir):
    with_metrics(run_dir, calls=100, faults__throttle=10, faults__timeout=20)
    texts = [notice.text for notice in notices(read_run(run_dir))]
    assert "30 % of the requests to the judge failed (timeout 400, throttle 200)." in texts


def test_a_few_failing_requests_are_no_news(run_dir):
    with_metrics(run_dir, calls=100, faults__throttle=10, breaker_opened=0)
    assert not [n for n in notices(read_run(run_dir)) if "the judge" in n.text.lower()]


def test_a_judge_that_was_down_is_told(run_dir):
    with_metrics(run_dir, breaker_opened=lambda step: 2 if step > 5 else 0)
    texts = [notice.text for notice in notices(read_run(run_dir))]
    assert "The judge was down 2 times; the run waited for it." in texts
