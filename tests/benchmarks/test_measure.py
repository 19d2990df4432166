"""Taking turns, quantiles and peak memory, without asserting how long anything takes."""

import subprocess
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from benchmarks.measure import Call, Stopwatch, quantile, run_with_peak, take_turns

CPU = torch.device("cpu")
MIB = 2**20
ROOT = Path(__file__).resolve().parents[2]


def recorders(names: str, log: list[str]) -> dict[str, Call]:
    return {name: Call(lambda name=name: log.append(name)) for name in names}


def test_every_round_runs_every_candidate_once_in_an_order_that_moves_on():
    log: list[str] = []
    samples = take_turns(recorders("abc", log), CPU, budget_s=60.0, max_rounds=4)
    assert {name: len(s) for name, s in samples.items()} == dict.fromkeys("abc", 4)
    rounds = [log[i : i + 3] for i in range(0, len(log), 3)]
    assert all(sorted(r) == ["a", "b", "c"] for r in rounds)
    assert [r[0] for r in rounds[1:]] == ["b", "c", "a"]


def test_without_a_budget_everybody_still_gets_the_least_number_of_rounds():
    log: list[str] = []
    samples = take_turns(recorders("ab", log), CPU, budget_s=0.0, min_rounds=3)
    assert Counter(log) == {"a": 3, "b": 3}
    assert all(x >= 0.0 for s in samples.values() for x in s)


def test_a_slow_candidate_sits_out_rounds_evenly(monkeypatch: pytest.MonkeyPatch):
    log: list[str] = []
    # one second a call for "s", a tenth for "f", on a clock of their own
    cost = {"s": 1.0, "f": 0.1}
    now = [0.0]

    def run(name: str) -> None:
        log.append(name)
        now[0] += cost[name]

    monkeypatch.setattr("benchmarks.measure.time.perf_counter", lambda: now[0])
    calls = {name: Call(lambda name=name: run(name)) for name in "sf"}
    samples = take_turns(calls, CPU, budget_s=10.0, max_rounds=20)
    assert len(samples["s"]) == 5 and len(samples["f"]) == 20
    assert samples["s"] == pytest.approx([1e3] * 5) and samples["f"] == pytest.approx([1e2] * 20)
    # its turns are a fifth of the rounds apart, give or take the order's moving on
    rounds = [log[:i].count("f") for i, name in enumerate(log) if name == "s"]
    assert all(3 <= b - a <= 6 for a, b in pairwise(rounds[1:]))


def test_some_may_have_more_rounds_than_the_rest():
    log: list[str] = []
    take_turns(recorders("ab", log), CPU, budget_s=0.0, min_rounds=3, more_rounds={"a": 7})
    assert Counter(log) == {"a": 7, "b": 3}


def test_who_raises_in_a_turn_has_no_further_turns_and_no_samples():
    log: list[str] = []
    told: list[str] = []

    def run() -> None:
        log.append("b")
        if log.count("b") == 2:
            raise RuntimeError("a launch fails")

    calls = recorders("ac", log) | {"b": Call(run)}
    samples = take_turns(
        calls,
        CPU,
        budget_s=0.0,
        min_rounds=4,
        on_failure=lambda name, e: told.append(f"{name} {e}"),
    )
    assert Counter(log) == {"a": 4, "b": 2, "c": 4} and told == ["b a launch fails"]
    assert {name: len(s) for name, s in samples.items()} == {"a": 4, "c": 4}
    with pytest.raises(ZeroDivisionError):
        take_turns({"a": Call(lambda: 1 / 0)}, CPU, budget_s=0.0)


def test_on_cuda_the_clock_starts_while_the_device_is_busy(monkeypatch: pytest.MonkeyPatch):
    log: list[str] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            log.append("record")

        def synchronize(self) -> None:
            log.append("wait")

        def elapsed_time(self, end: "Event") -> float:
            return 1.5

    class Flush:
        def amax(self) -> None:
            log.append("flush")

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: log.append("sleep"))
    watch = Stopwatch(CPU)
    watch._cuda, watch._flush = True, Flush()
    call = Call(lambda: log.append("run"), prepare=lambda: log.append("prepare"))
    assert watch.time_ms(call) == 1.5
    assert log == ["prepare", "flush", "sleep", "record", "run", "record", "wait"]


def test_prepare_comes_before_each_run():
    log: list[str] = []
    call = Call(lambda: log.append("run"), prepare=lambda: log.append("prepare"))
    take_turns({"a": call}, CPU, budget_s=0.0, min_rounds=3)
    assert log == ["prepare", "run"] * 3


def test_quantiles_interpolate():
    assert quantile([1.0, 2.0, 3.0, 4.0, 5.0], 0.5) == 3.0
    assert quantile([0.0, 10.0], 0.2) == pytest.approx(2.0)


FREED_AND_RETURNED = """
import torch
from benchmarks.measure import Call, run_with_peak
def run():
    torch.ones(48 * 2**20, dtype=torch.int8)
    return torch.ones(16 * 2**20, dtype=torch.int8)
print(run_with_peak(Call(run), torch.device("cpu"))[1])
"""


def test_peak_memory_counts_what_is_freed_and_what_is_returned():
    # in a process of its own: an allocator that other tests have worked keeps pages back
    done = subprocess.run(
        [sys.executable, "-c", FREED_AND_RETURNED], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    if done.stdout.strip() == "None":
        pytest.skip("this system has no resettable high-water mark")
    # the first tensor is gone before the second one is made
    assert 46 <= float(done.stdout) <= 56


def test_peak_memory_counts_buffers_that_are_kept_between_calls():
    from polaris_kernels.backends.workspace import borrowed

    def run() -> None:
        with borrowed(((32 * MIB // 4, 1),), torch.empty(0)) as (buffer,):
            buffer.fill_(1.0)

    run()
    _, peak = run_with_peak(Call(run), CPU)
    if peak is None:
        pytest.skip("this system has no resettable high-water mark")
    assert 30 <= peak <= 40


@pytest.mark.gpu
def test_cuda_times_and_peaks():
    device = torch.device("cuda")
    call = Call(lambda: torch.ones(64 * MIB, dtype=torch.int8, device=device))
    call.once()
    assert run_with_peak(call, device)[1] == pytest.approx(64.0)
    samples = take_turns({"a": call}, device, budget_s=0.0, min_rounds=3)
    assert len(samples["a"]) == 3 and min(samples["a"]) > 0.0
