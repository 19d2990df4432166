"""How things are timed and how their memory is measured, on the CPU and on CUDA alike.

Candidates take turns in one process: each round runs every one of them once, in an order that
moves on by one a round, so that a clock that drifts or a neighbour that wakes up hits all of them.
Slow ones sit out some rounds. What is compared is medians of such samples.
"""

from __future__ import annotations

import ctypes
import gc
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from polaris_kernels import release_workspace

# larger than any GPU's L2 cache
_FLUSH_BYTES = 256 * 2**20
# about 2 ms of a GPU's clock, in which the host launches what is timed: a launch of a Triton kernel
# takes .1 to .3 ms of a slow core, as long as a row kernel itself
_HEAD_START_CYCLES = 4_000_000
_LIBC = ctypes.CDLL(None)
_CLEAR_REFS, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


@dataclass(frozen=True)
class Call:
    """Something to measure."""

    run: Callable[[], Any]
    """the timed part; what it returns is freed after the clock has stopped"""
    prepare: Callable[[], object] | None = None
    """runs before each call, untimed: puts back what an in-place call overwrites"""

    def once(self) -> Any:
        """Prepare and run, without a clock."""
        if self.prepare is not None:
            self.prepare()
        return self.run()


class Stopwatch:
    """Milliseconds of single calls: wall time on the CPU, events on CUDA.

    There L2 is flushed before, and the device is kept busy while the host launches, so that what is
    timed is the device's work. A call that waits for the device pays for its launches after that.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._flush = None
        if self._cuda:
            self._flush = torch.zeros(_FLUSH_BYTES // 4, dtype=torch.float32, device=device)

    def time_ms(self, call: Call) -> float:
        """One call."""
        if call.prepare is not None:
            call.prepare()
        return self._cuda_ms(call) if self._cuda else self._cpu_ms(call)

    def _cpu_ms(self, call: Call) -> float:
        start = time.perf_counter()
        result = call.run()
        elapsed = time.perf_counter() - start
        del result
        return 1e3 * elapsed

    def _cuda_ms(self, call: Call) -> float:
        assert self._flush is not None
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        # by reading: lines written here would be written back while the clock runs
        self._flush.amax()
        torch.cuda._sleep(_HEAD_START_CYCLES)
        start.record()
        result = call.run()
        end.record()
        end.synchronize()
        del result
        return start.elapsed_time(end)


def take_turns(
    calls: Mapping[str, Call],
    device: torch.device,
    *,
    budget_s: float,
    min_rounds: int = 3,
    max_rounds: int = 40,
    more_rounds: Mapping[str, int] | None = None,
    on_failure: Callable[[str, Exception], None] | None = None,
) -> dict[str, list[float]]:
    """Milliseconds of every call of every candidate; all must have run once before.

    Args:
        calls: candidates by name.
        device: where they run.
        budget_s: about how long to measure, shared evenly between the candidates.
        min_rounds, max_rounds: bounds of the number of samples of each.
        more_rounds: a larger `min_rounds` of some of them.
        on_failure: told who raised what; who did has no further turns and no samples. None: raise.
    """
    watch = Stopwatch(device)
    samples: dict[str, list[float]] = {name: [] for name in calls}

    def sample(name: str) -> None:
        if name not in samples:
            return
        try:
            samples[name].append(watch.time_ms(calls[name]))
        except Exception as error:
            if on_failure is None:
                raise
            del samples[name]
            on_failure(name, error)

    for name in calls:
        sample(name)
    share_ms = 1e3 * budget_s / max(len(calls), 1)
    least = dict.fromkeys(calls, min_rounds) | dict(more_rounds or {})
    wanted = {
        name: min(max_rounds, max(least[name], int(share_ms / max(first[0], 1e-6)))) - 1
        for name, first in samples.items()
    }
    rounds = max(wanted.values(), default=0)
    order = list(wanted)
    gc_was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        for i in range(rounds):
            order = [*order[1:], *order[:1]]
            for name in order:
                if (i + 1) * wanted[name] // rounds > i * wanted[name] // rounds:
                    sample(name)
    finally:
        if gc_was_on:
            gc.enable()
    return samples


def quantile(samples: list[float], q: float) -> float:
    """The q-quantile, interpolated."""
    return float(torch.tensor(samples, dtype=torch.float64).quantile(q))


def run_with_peak(call: Call, device: torch.device) -> tuple[Any, float | None]:
    """A call's result, and the MiB that existed at its worst moment beyond what was there before.

    Results count. CUDA: the caching allocator's peak of bytes. CPU: the process's resident
    high-water mark, which Linux resets on request, so it counts what libraries allocate for
    themselves; None where the system has no such mark. Buffers that `polaris_kernels` keeps between
    calls are given back first, so they count.
    """
    if call.prepare is not None:
        call.prepare()
    release_workspace()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        result = call.run()
        torch.cuda.synchronize()
        return result, (torch.cuda.max_memory_allocated() - before) / 2**20
    if not _reset_high_water():
        return call.run(), None
    before = _resident_bytes("VmRSS")
    result = call.run()
    return result, (_resident_bytes("VmHWM") - before) / 2**20


def _reset_high_water() -> bool:
    # free pages that malloc keeps would take a small buffer in without being counted
    if hasattr(_LIBC, "malloc_trim"):
        _LIBC.malloc_trim(0)
    try:
        _CLEAR_REFS.write_text("5")
    except OSError:
        return False
    return True


def _resident_bytes(name: str) -> int:
    for line in _STATUS.read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"{_STATUS} has no {name}")
