"""The endpoint in a process of its own: what it takes of the CPU is not the client's."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from .ledger import LedgerSummary
from .limits import Limits
from .script import Script

ROOT = Path(__file__).resolve().parents[2]


class ScriptedProcess:
    """Starts `python -m benchmarks.scripted_endpoint` on a free port; a context manager."""

    def __init__(self, script: Script | None = None, *, limits: Limits | None = None) -> None:
        """
        Args:
            script: what to play; None: every story is judged at once.
            limits: the endpoint's own limits.
        """
        self._arguments = command_line(script or Script(), limits or Limits())

    def __enter__(self) -> Self:
        command = [sys.executable, "-m", "benchmarks.scripted_endpoint", *self._arguments]
        self._process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.base_url = self._process.stdout.readline().strip()
        if not self.base_url:
            raise RuntimeError(f"the endpoint did not start: exit status {self._process.wait()}")
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._process.send_signal(signal.SIGINT)
        self._process.wait(timeout=10)
        assert self._process.stdout is not None
        self._process.stdout.close()

    def cpu_s(self) -> float:
        """CPU seconds that the endpoint has used, by Linux."""
        stat = Path(f"/proc/{self._process.pid}/stat").read_text()
        user, system = stat.rpartition(")")[2].split()[11:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")

    def ledger(self) -> LedgerSummary:
        """The ledger's sums as they are now."""
        return LedgerSummary(**self._get("/ledger"))

    def by_story(self) -> dict[str, dict[str, Any]]:
        """Each story's account by `script.story_hash`."""
        return self._get("/ledger?stories=1")

    def _get(self, path: str) -> Any:
        url = self.base_url.removesuffix("/v1") + path
        with urllib.request.urlopen(url, timeout=10) as response:
            return json.load(response)


def command_line(script: Script, limits: Limits) -> list[str]:
    """The arguments that make `python -m benchmarks.scripted_endpoint` play this script."""
    latency = script.latency
    arguments = {
        "--seed": script.seed,
        "--faults": format_faults(script.faults),
        "--again": script.again,
        "--quirks": script.quirks,
        "--retry-after": script.retry_after_s,
        "--median": latency.median_s,
        "--sigma": latency.sigma,
        "--tail": latency.tail,
        "--tail-factor": latency.tail_factor,
        "--fault-seconds": latency.fault_s,
    }
    if limits.concurrency is not None:
        arguments["--concurrency-limit"] = limits.concurrency
    if limits.requests_per_minute is not None:
        arguments["--requests-per-minute"] = limits.requests_per_minute
    return [part for name, value in arguments.items() for part in (name, str(value))]


def format_faults(faults: Mapping[str, float]) -> str:
    """`throttle=0.08,transient=0.1`, or `none`."""
    return ",".join(f"{name}={share}" for name, share in faults.items()) or "none"
