"""Which of several right kernels packed rows run on: one choice a process, made by measurement.

`model.measured_kernels` makes it when a run starts on a GPU; until then the layers take the first
right one by name.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any, Literal

import torch

log = logging.getLogger("polaris_fast")

Kind = Literal["attention", "delta_net"]
Clock = Callable[[Callable[[], Any]], float]

_ROUNDS = 5
_chosen: dict[Kind, str] = {}


def chosen(kind: Kind) -> str | None:
    """The name that the run has chosen, or None."""
    return _chosen.get(kind)


def choose(kind: Kind, name: str | None) -> None:
    """Let all layers of this process run on `name`; None: on the first right one again."""
    if name is None:
        _chosen.pop(kind, None)
    else:
        _chosen[kind] = name


def median_times(calls: Mapping[str, Callable[[], Any]], clock: Clock) -> dict[str, float]:
    """Median milliseconds of each call, which take turns; one that fails is logged and left out.

    The first round compiles and is not counted.
    """
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for round_ in range(_ROUNDS + 1):
        for name in list(samples):
            try:
                ms = clock(calls[name])
            except Exception as error:
                # of memory, of a launch, of Triton's compiler: not a kernel for this shape
                log.warning("%s fails on the run's longest row: %s", name, error)
                del samples[name]
                continue
            if round_:
                samples[name].append(ms)
    return {name: median(found) for name, found in samples.items()}


def cuda_ms(call: Callable[[], Any]) -> float:
    """Milliseconds of one call between two events on the current stream."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)
