"""The roofline of one `make gpu` run: measured points under measured ceilings.

    python -m benchmarks.gpu_roofline benchmarks/results/gpu-nvidia-h200.json --svg roofline.svg

Operations and bytes are those a task cannot do without: each operand and result of a product once,
each logit once. The head's best form of each case is one point, each row kernel's form another.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .head_floor import PRODUCTS
from .head_ours import OURS

_ITEM_BYTES = {"bf16": 2, "fp32": 4}
# operations a logit costs, as the Triton kernels tell a profiler: statistics, gradient
_STATISTICS_FLOPS, _GRADIENT_FLOPS = 8, 7


@dataclass(frozen=True)
class Point:
    """One measurement."""

    name: str
    flops: float
    num_bytes: float
    seconds: float

    @property
    def intensity(self) -> float:
        """Operations a byte."""
        return self.flops / self.num_bytes


def points(result: dict[str, Any]) -> list[Point]:
    """Of the JSON of `benchmarks.gpu`; nothing is made up for what was not measured."""
    best: dict[str, dict[str, Any]] = {}
    for entry in (result.get("head") or {}).get("entries", []):
        if entry["provider"].startswith(OURS) and entry["task"] in PRODUCTS:
            if (
                entry["p50_ms"]
                < best.get(entry["case"], entry | {"p50_ms": float("inf")})["p50_ms"]
            ):
                best[entry["case"]] = entry
    found = [_head_point(entry) for entry in best.values()]
    return found + [_row_point(row) for row in (result.get("floors") or {}).get("rows", [])]


def _head_point(entry: dict[str, Any]) -> Point:
    N, D, V = (entry["shape"][name] for name in "NDV")
    item = _ITEM_BYTES[entry["dtype"]]
    count = len(PRODUCTS[entry["task"]])
    num_bytes = count * item * (N * D + V * D + N * V)
    return Point(entry["case"], 2.0 * count * N * D * V, num_bytes, entry["p50_ms"] / 1e3)


def _row_point(row: dict[str, Any]) -> Point:
    C, V = row["shape"]
    seconds = row["p50_ms"] / 1e3
    writes = "->" in row["dtypes"]
    flops = _STATISTICS_FLOPS + (_GRADIENT_FLOPS if writes else 0)
    name = f"{row['form']} {row['dtypes']} {C} x {V}"
    return Point(name, float(flops * C * V), row["bytes_per_s"] * seconds, seconds)


def draw(result: dict[str, Any], path: Path) -> Path:
    """Write the picture; ValueError for a run without floors."""
    floors = result.get("floors")
    if not floors:
        raise ValueError("gpu_roofline: this run has no floors; run `make gpu` with that part")
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.fonttype"] = "none"
    from matplotlib import pyplot as plt

    copy, matrix = floors["copy"]["per_s"], floors["matrix"]["per_s"]
    figure, axes = plt.subplots(figsize=(9, 6), layout="constrained")
    shown = points(result)
    ridge = matrix / copy
    edges = [min([ridge, *(p.intensity for p in shown)]) / 4, ridge,
             max([ridge, *(p.intensity for p in shown)]) * 4]  # fmt: skip
    axes.loglog(edges, [min(x * copy, matrix) / 1e12 for x in edges], color="#334155")
    for i, point in enumerate(shown):
        rate = point.flops / point.seconds / 1e12
        axes.scatter(point.intensity, rate, s=24, color="#c2410c", zorder=3)
        axes.annotate(str(i + 1), (point.intensity, rate), fontsize=7, xytext=(4, 2),
                      textcoords="offset points")  # fmt: skip
    legend = "\n".join(f"{i + 1}  {point.name}" for i, point in enumerate(shown))
    axes.text(0.98, 0.02, legend, transform=axes.transAxes, fontsize=6, ha="right", va="bottom")
    axes.set_xlabel("operations a byte")
    axes.set_ylabel("TFLOP/s")
    device = result.get("machine", {}).get("device", "")
    axes.set_title(f"{device}: {copy / 1e9:,.0f} GB/s copy, {matrix / 1e12:,.1f} TFLOP/s bf16")
    figure.savefig(path)
    plt.close(figure)
    return path


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("json", type=Path)
    parser.add_argument("--svg", type=Path, required=True)
    known = parser.parse_args(arguments)
    print(f"wrote {draw(json.loads(known.json.read_text()), known.svg)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
