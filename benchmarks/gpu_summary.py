"""The headlines of one `make gpu` run, each beside its goal: what is written here was measured in
that run, and what was not is said to be missing.

    python -m benchmarks.gpu_summary benchmarks/results/gpu-nvidia-h200.json
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .head_ours import OURS

# peers that compute a policy loss or differentiable log-probs with a temperature and an entropy
RL_PEERS = ("torch", "torch.compile", "trl", "liger")
NOT_MEASURED = "not measured"


@dataclass(frozen=True)
class Goal:
    """A head case and the least share of its floor."""

    case: str
    share: float
    peer_ratio: float | None = None
    """how many times faster than the best peer of RL_PEERS"""


GOALS = (
    Goal("loss-N16384-D4096-V248320-bf16", 0.92, 1.25),
    Goal("frozen-N16384-D4096-V248320-bf16", 0.90),
    Goal("logps-N20480-D4096-V248320-bf16", 0.90),
)
ROW_SHARE = 0.85


def headlines(result: dict[str, Any]) -> list[str]:
    """One line a headline, from the JSON of `benchmarks.gpu`."""
    entries = (result.get("head") or {}).get("entries", [])
    cases = {entry["case"] for entry in entries}
    wanted = [*GOALS, *(Goal(c, 0.0) for c in sorted(cases - {g.case for g in GOALS}))]
    lines = [_head_line(goal, [e for e in entries if e["case"] == goal.case]) for goal in wanted]
    lines += _row_lines(result.get("floors"))
    lines += [*_layer_lines(result.get("layers")), *_step_lines(result.get("step"))]
    return [*lines, *_failure_lines(result)]


def _head_line(goal: Goal, entries: list[dict[str, Any]]) -> str:
    ours = [e for e in entries if e["provider"].startswith(OURS)]
    if not ours:
        return f"{goal.case}: {NOT_MEASURED}"
    best = min(ours, key=lambda e: e["p50_ms"])
    share = best["share_of_floor"]
    line = f"{goal.case}: {best['provider']} {best['p50_ms']:,.2f} ms, {share:.1%} of the floor"
    line += _against(share, goal.share)
    if (peak := best.get("peak_extra_mib")) is not None:
        line += f", {peak / 1024:.2f} GiB"
    peers = [e for e in entries if e["provider"].partition(" (")[0] in RL_PEERS]
    if not peers:
        return line + f"; no peer {NOT_MEASURED.removeprefix('not ')}"
    peer = min(peers, key=lambda e: e["p50_ms"])
    ratio = peer["p50_ms"] / best["p50_ms"]
    line += f"; {ratio:.2f}x faster than {peer['provider']}"
    return line + ("" if goal.peer_ratio is None else _against(ratio, goal.peer_ratio))


def _row_lines(floors: dict[str, Any] | None) -> list[str]:
    if not floors or not floors["rows"]:
        return [f"row kernels: {NOT_MEASURED}"]
    lines = []
    for row in floors["rows"]:
        shape = " x ".join(f"{n:,}" for n in row["shape"])
        line = f"rows {shape} {row['dtypes']}: {row['form']} {row['p50_ms']:.3f} ms, "
        line += f"{row['share_of_copy']:.1%} of the copy rate"
        if row["form"].endswith("one read"):
            line += _against(row["share_of_copy"], ROW_SHARE)
        lines.append(line)
    return lines


def _layer_lines(layers: dict[str, Any] | None) -> list[str]:
    if not layers:
        return [f"attention and delta-net kernels: {NOT_MEASURED}"]
    lines = [
        f"{entry['kind']} {entry['kernel']}: {NOT_MEASURED}: {entry['failed']}"
        for entry in layers["parity"]
        if "failed" in entry
    ]
    for entry in layers["times"]:
        rate = "" if entry["tflops"] is None else f", {entry['tflops']:.1f} TFLOP/s"
        what = "forward" if entry["what"] == "forward" else "forward and backward"
        lines.append(
            f"{entry['kind']} {entry['kernel']}, {entry['rows']} rows of {entry['tokens']:,} "
            f"tokens, {what}: {entry['p50_ms']:.2f} ms{rate}"
        )
    return lines


def _step_lines(step: dict[str, Any] | None) -> list[str]:
    if not step:
        return [f"training step: {NOT_MEASURED}"]
    size = f"{step['parameters'] / 1e9:.2f} B parameters, {step['tokens']:,} tokens"
    lines = []
    for form in step["forms"]:
        if "failed" in form:
            lines.append(f"step, {form['form']}: {NOT_MEASURED}: {form['failed']}")
            continue
        peak = "" if form["peak_gib"] is None else f", {form['peak_gib']:.1f} GiB"
        lines.append(
            f"step, {form['form']} ({size}): {form['step_ms']:,.0f} ms, "
            f"{form['tokens_per_s']:,.0f} tokens/s, {form['share_of_matrix_rate']:.1%} of the "
            f"matrix rate{peak}"
        )
    return lines


def _failure_lines(result: dict[str, Any]) -> list[str]:
    lines = []
    for part in ("floors", "head", "layers", "step"):
        found = result.get(part) or {}
        # of a step each form has its line
        failed = {} if part == "step" else found.get("failed", {})
        lines += [f"{part}: {key}: {why}" for key, why in failed.items()]
        if running := found.get("running"):
            lines.append(f"{part}: ended while it was at {': '.join(running)}")
    return lines


def _against(found: float, goal: float) -> str:
    if not goal:
        return ""
    return f" (goal {goal:g}: {'met' if found >= goal else 'MISSED'})"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("json", type=Path)
    print("\n".join(headlines(json.loads(parser.parse_args(arguments).json.read_text()))))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
