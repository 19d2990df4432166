"""A step of work captured as a CUDA graph, for tests on a GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

Outputs = TypeVar("Outputs")


def capture(step: Callable[[], Outputs]) -> tuple[torch.cuda.CUDAGraph, Outputs]:
    """The graph of `step`, and the outputs that a replay fills anew."""
    # compiled, probed and with its libraries' buffers made, on a stream as the capture's
    warm = torch.cuda.Stream()
    warm.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(warm):
        step()
    torch.cuda.current_stream().wait_stream(warm)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    return graph, captured
