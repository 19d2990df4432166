"""The loss head against its peers and the floor of the same machine, in the same minutes.

    pytest benchmarks/bench_head.py --benchmark-only
    pytest benchmarks/bench_head.py --benchmark-only --head-sizes full -k "loss and fp32"

All providers of a case are measured together, taking turns, before the first of its tests; each
test hands the samples of its provider to pytest-benchmark, whose statistics and JSON they become.
Providers that cannot run are skipped with the reason, and those with wrong results fail.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

from benchmarks.conftest import HEAD_RESULTS
from benchmarks.head import FLOOR, CaseReport, is_chosen, measure_case, providers_of
from benchmarks.head_cases import SIZES, HeadCase, default_size

pytestmark = [
    # a case is measured in the set-up of its first test
    pytest.mark.timeout(1800),
    # what peers import warns of its own deprecations
    pytest.mark.filterwarnings("ignore"),
]


class RecordedClock:
    """The timer of measurements that are over: it moves on by one sample a call of `play`."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def player(self, samples_ms: list[float]) -> Callable[[], None]:
        """A function that takes as long as the next sample did."""
        self.now_s = 0.0
        samples = iter(samples_ms)

        def play() -> None:
            self.now_s += 1e-3 * next(samples)

        return play


_clock = RecordedClock()


def recorded_time() -> float:
    """Seconds on the clock of the recorded samples."""
    return _clock.now_s


class LatestReport:
    """Measures a case when its first test asks, and keeps it until another case is asked for.

    A parametrized fixture of module scope would do, were it not reordered by its parameters.
    """

    def __init__(self, measure: Callable[[HeadCase], CaseReport]) -> None:
        self._measure = measure
        self._latest: CaseReport | None = None

    def of(self, case: HeadCase) -> CaseReport:
        """All providers of the case."""
        if self._latest is None or self._latest.case != case:
            self._latest = self._measure(case)
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        return self._latest


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    option = metafunc.config.getoption
    device = option("--head-device")
    params = [
        pytest.param(case, provider, id=f"{case.id}-{provider}")
        for case in SIZES[option("--head-sizes") or default_size(device)]()
        for provider in (FLOOR, *providers_of(case, device))
        if provider == FLOOR or is_chosen(provider, option("--head-providers"))
    ]
    metafunc.parametrize(("case", "provider"), params)


@pytest.fixture(scope="module")
def latest_report(request: pytest.FixtureRequest) -> LatestReport:
    option = request.config.getoption
    measure = partial(
        measure_case,
        device=torch.device(option("--head-device")),
        budget_s=option("--head-budget"),
        chosen=option("--head-providers"),
    )
    return LatestReport(measure)


@pytest.mark.benchmark(timer=recorded_time)
def test_head(
    benchmark: Any,
    latest_report: LatestReport,
    case: HeadCase,
    provider: str,
    request: pytest.FixtureRequest,
) -> None:
    report = latest_report.of(case)
    entry = report.entries[provider]
    if entry.missing is not None:
        pytest.skip(f"{case.id}: {provider}: {entry.missing}")
    if why := entry.wrong or entry.failed:
        pytest.fail(f"{case.id}: {provider}: {why}")
    benchmark.group = case.id
    benchmark.extra_info.update(report.info(provider))
    benchmark.pedantic(_clock.player(entry.samples_ms), rounds=len(entry.samples_ms))
    request.config.stash[HEAD_RESULTS].append(dict(benchmark.extra_info))
