"""Options of the benchmarks and the table at the end of a run."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks.head_cases import SIZES
from benchmarks.head_table import render

HEAD_RESULTS = pytest.StashKey[list[dict[str, Any]]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("head benchmarks")
    group.addoption("--head-sizes", choices=SIZES, help="set of head cases; default: by device")
    group.addoption(
        "--head-device",
        choices=("cpu", "cuda"),
        default="cuda" if torch.cuda.is_available() else "cpu",
        help="where the head benchmarks run; default: CUDA when there is some",
    )
    group.addoption(
        "--head-providers",
        nargs="+",
        default=(),
        help="only these providers or projects, such as: torch polaris 'liger (triton)'",
    )
    group.addoption(
        "--head-budget", type=float, default=10.0, help="timed seconds of a head case, all in all"
    )


def pytest_configure(config: pytest.Config) -> None:
    config.stash[HEAD_RESULTS] = []


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    results = terminalreporter.config.stash[HEAD_RESULTS]
    if results:
        terminalreporter.section("head benchmarks")
        terminalreporter.write_line(render(results))
