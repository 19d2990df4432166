"""The judge pool against scripted endpoints in processes of their own.

    pytest benchmarks/bench_judge.py --benchmark-only -s

Faults: 10,000 calls of which 30 % meet a fault at their first attempt; nothing is lost, every score
is the script's truth, extra calls and wall time are near what the faults force.
Throughput: an endpoint that answers at once; judgements a second, the CPU of both sides, what the
pool adds to a bare request, memory.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from benchmarks.result_table import Table
from benchmarks.scripted_endpoint import (
    STATED_FAULTS,
    Latency,
    Limits,
    Script,
    ScriptedProcess,
    ideal_seconds,
)
from polaris_fast.collector import setup_spared
from polaris_fast.config import JudgeConfig
from polaris_fast.judge import Backoff, JudgeJob, JudgePool
from polaris_fast.judge.client import JudgeClient
from polaris_fast.judge.request import build_messages
from polaris_fast.types import Failed, Outcome, Rejected, Scored

FAULT_CALLS, CONCURRENCY, TIMEOUT_S = 10_000, 64, 4.0
MIN_SCORED, MAX_EXTRA, MAX_OVER_IDEAL = 0.995, 1.15, 1.3
MIN_RATE_PER_S = 500.0
RATE_CALLS, ALONE_CALLS = 5_000, 500
MEMORY_CALLS, MAX_GROWTH_MIB = 50_000, 16.0
WORDS = ("the bell rang over the harbour and nobody came to count the boats again " * 30).strip()


@pytest.fixture(scope="module")
def table() -> Iterator[Table]:
    """Printed and kept when all benchmarks are done."""
    found = Table("judge", "Judge pool against scripted endpoints", ("what", "value", "bound"))
    yield found
    found.finish()


@pytest.fixture(scope="module", autouse=True)
def _collector() -> Iterator[None]:
    """As a run has it."""
    with setup_spared():
        yield


def story(number: int) -> str:
    """About 400 words, no two alike."""
    return f"Story number {number}. {WORDS}"


def judge_stories(pool: JudgePool, numbers: Sequence[int]) -> list[Outcome]:
    """Outcomes of these stories, all submitted at once."""
    futures: list[Future[Outcome]] = [
        pool.submit(JudgeJob(f"0/{i}/0", "A prompt.", story(i), group=f"0/{i}")) for i in numbers
    ]
    return [future.result() for future in futures]


def test_faulty_first_attempts(benchmark: Any, table: Table, tmp_path: Path) -> None:
    latency = Latency(0.2, 0.5, tail=0.01, tail_factor=5, fault_s=0.02)
    script = Script(seed=1, faults=STATED_FAULTS, latency=latency, retry_after_s=0.2)
    chains = [script.until_scored(story(i)) for i in range(FAULT_CALLS)]
    ideal = ideal_seconds(chains, concurrency=CONCURRENCY, timeout_s=TIMEOUT_S)
    with ScriptedProcess(script, limits=Limits(concurrency=CONCURRENCY)) as server:
        config = JudgeConfig(
            base_url=server.base_url,
            model="scripted-judge",
            timeout_s=TIMEOUT_S,
            timeout_s_per_1k_words=0.0,
            max_concurrency=CONCURRENCY,
            retry_budget=0.5,
            journal=str(tmp_path / "journal.sqlite"),
        )
        with JudgePool(config, backoff=Backoff(0.1, 2.0)) as pool:
            begin = time.perf_counter()
            outcomes = benchmark.pedantic(judge_stories, (pool, range(FAULT_CALLS)), rounds=1)
            wall = time.perf_counter() - begin
            metrics = pool.take_metrics()
        ledger = server.ledger()

    scored = {i: o for i, o in enumerate(outcomes) if isinstance(o, Scored)}
    wrong = [i for i, o in scored.items() if abs(o.quality - script.truth(story(i)).quality) > 1e-9]
    rejected = sum(isinstance(o, Rejected) for o in outcomes)
    failed = Counter(o.kind for o in outcomes if isinstance(o, Failed))
    forced, extra = sum(map(len, chains)) - FAULT_CALLS, ledger.calls - FAULT_CALLS
    for row in (
        ("stories scored", f"{len(scored):,} of {FAULT_CALLS:,}", f">= {MIN_SCORED:.1%}"),
        ("failed", ", ".join(f"{k} {v}" for k, v in sorted(failed.items())) or 0, ""),
        ("rejected", rejected, ""),
        ("scores that are not the script's truth", len(wrong), "0"),
        ("extra calls / calls that the faults force", f"{extra / forced:.3f}", f"<= {MAX_EXTRA}"),
        ("faults", ", ".join(f"{k} {v}" for k, v in sorted(ledger.faults.items())), ""),
        ("throttled over the endpoint's own limit", sum(ledger.turned_away.values()), ""),
        ("judgements paid twice", ledger.repeated_judgements, "hedges only"),
        ("hedges", int(metrics.get("judge/hedges", 0)), ""),
        ("seconds", f"{wall:.1f}", f"ideal {ideal:.1f}"),
        ("seconds / ideal", f"{wall / ideal:.3f}", f"<= {MAX_OVER_IDEAL}"),
    ):
        table.add(*row)
    assert len(scored) + failed.total() + rejected == FAULT_CALLS == metrics["judge/submitted"]
    assert len(scored) >= MIN_SCORED * FAULT_CALLS
    assert not wrong
    assert extra <= MAX_EXTRA * forced
    assert ledger.repeated_judgements <= metrics.get("judge/hedges", 0)
    assert wall <= MAX_OVER_IDEAL * ideal


@pytest.mark.parametrize("journal", ["in memory", "on disk"])
def test_throughput(benchmark: Any, table: Table, tmp_path: Path, journal: str) -> None:
    path = "off" if journal == "in memory" else str(tmp_path / "journal.sqlite")
    with ScriptedProcess(Script(quirks=0.0)) as server, _instant_pool(server, path) as pool:
        judge_stories(pool, range(500))  # connections, caches
        numbers = range(1_000, 1_000 + RATE_CALLS)
        others, cpu, begin = server.cpu_s(), time.process_time(), time.perf_counter()
        outcomes = benchmark.pedantic(judge_stories, (pool, numbers), rounds=1)
        wall, cpu = time.perf_counter() - begin, time.process_time() - cpu
        others = server.cpu_s() - others
    assert all(isinstance(outcome, Scored) for outcome in outcomes)
    rate = RATE_CALLS / wall
    table.add(f"judgements a second, journal {journal}", f"{rate:.0f}", f">= {MIN_RATE_PER_S:.0f}")
    both = f"{1000 * cpu / RATE_CALLS:.2f} and {1000 * others / RATE_CALLS:.2f}"
    table.add(f"CPU ms a judgement, pool and endpoint, journal {journal}", both, "")
    assert rate >= MIN_RATE_PER_S


def test_overhead_of_one_call(benchmark: Any, table: Table, tmp_path: Path) -> None:
    """One judgement at a time, through the pool and as a bare request; medians, turn by turn."""
    path = str(tmp_path / "journal.sqlite")
    with ScriptedProcess(Script(quirks=0.0)) as server, _instant_pool(server, path) as pool:
        judge_stories(pool, range(500))
        times = benchmark.pedantic(_one_by_one, (server, pool), rounds=1)
    bare, ours = (1000 * statistics.median(column) for column in zip(*times, strict=True))
    table.add("ms one judgement, bare request", f"{bare:.2f}", "")
    table.add("ms one judgement, through the pool, journal on disk", f"{ours:.2f}", "")


def _one_by_one(server: ScriptedProcess, pool: JudgePool) -> list[tuple[float, float]]:
    """Seconds of (a request by the client alone, a judgement by the pool), one after the other."""
    config = _instant_config(server, "off")
    times = []
    with asyncio.Runner() as runner:
        client = runner.run(JudgeClient(config, server.base_url).__aenter__())
        for number in range(10_000, 10_000 + ALONE_CALLS):
            messages = build_messages("A prompt.", story(number))
            begin = time.perf_counter()
            runner.run(client.ask(messages, timeout_s=10.0, max_tokens=config.max_output_tokens))
            middle = time.perf_counter()
            assert isinstance(judge_stories(pool, [number])[0], Scored)
            times.append((middle - begin, time.perf_counter() - middle))
        runner.run(client.__aexit__())
    return times


def test_memory_is_flat(benchmark: Any, table: Table, tmp_path: Path) -> None:
    """Growth of the resident set from call 10,000 to call 50,000."""

    def run() -> tuple[float, float]:
        seen = []
        for first in range(0, MEMORY_CALLS, 1_000):
            judge_stories(pool, range(first, first + 1_000))
            pool.take_metrics()
            seen.append(resident_mib())
        return seen[9], seen[-1]

    path = str(tmp_path / "journal.sqlite")
    with ScriptedProcess(Script(quirks=0.0)) as server, _instant_pool(server, path) as pool:
        early, late = benchmark.pedantic(run, rounds=1)
    growth = late - early
    table.add("MiB resident after 10,000 calls", f"{early:.1f}", "")
    table.add("MiB more after 50,000 calls", f"{growth:+.1f}", f"<= {MAX_GROWTH_MIB:.0f}")
    assert growth <= MAX_GROWTH_MIB


def _instant_pool(server: ScriptedProcess, journal: str) -> JudgePool:
    return JudgePool(_instant_config(server, journal))


def _instant_config(server: ScriptedProcess, journal: str) -> JudgeConfig:
    return JudgeConfig(base_url=server.base_url, model="scripted-judge", journal=journal)


def resident_mib() -> float:
    """Resident set of this process, by Linux."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("/proc/self/status has no VmRSS")
