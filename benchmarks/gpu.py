"""Everything worth knowing of this machine's GPU, in one JSON: `make gpu`.

    python -m benchmarks.gpu

Runs the tests marked `gpu`, the benchmarks, and a short training run, each in a process of its own;
a part that fails is recorded with its last lines and the others still run.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import platform
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PEERS = ("flash_attn", "fla", "liger_kernel", "trl", "cut_cross_entropy", "quack", "vllm")
LIMIT_S = 420  # of the whole script, so that it ends within eight minutes


def main() -> int:
    if not torch.cuda.is_available():
        print("error: make gpu needs a CUDA device, torch finds none on this machine")
        return 2
    started = time.monotonic()
    result: dict[str, Any] = {"machine": machine(), "parts": {}}
    with tempfile.TemporaryDirectory() as folder:
        for name, command in parts(Path(folder)).items():
            left = LIMIT_S - (time.monotonic() - started)
            print(f"{name} ...", flush=True)
            result["parts"][name] = run(command, left)
            print(f"{name}: {result['parts'][name]['status']}", flush=True)
        result["benchmarks"] = read(Path(folder) / "bench.json")
        metrics = Path(folder) / "run" / "metrics.jsonl"
        if metrics.is_file():
            result["training"] = [json.loads(x) for x in metrics.read_text().splitlines()]
    RESULTS.mkdir(exist_ok=True)
    gpu = re.sub(r"[^a-z0-9]+", "-", result["machine"]["gpu"].lower()).strip("-")
    path = RESULTS / f"gpu-{gpu}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(f"wrote {path.relative_to(ROOT)}")
    return 0 if all(p["status"] == "passed" for p in result["parts"].values()) else 1


def parts(folder: Path) -> dict[str, list[str]]:
    """What is run, in order."""
    python = [sys.executable, "-m"]
    train = [*python, "polaris_fast.train", "--config", "debug", "--dtype", "bfloat16"]
    return {
        "tests": [*python, "pytest", "-q", "-m", "gpu"],
        "training": [*train, "--output_dir", str(folder / "run")],
        "benchmarks": [
            *python, "pytest", "benchmarks", "-q", "--benchmark-only",
            f"--benchmark-json={folder / 'bench.json'}",
        ],
    }  # fmt: skip


def run(command: list[str], limit_s: float) -> dict[str, Any]:
    """Status, seconds and last lines of one part."""
    start = time.monotonic()
    try:
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=max(1.0, limit_s)
        )
        status = "passed" if done.returncode == 0 else f"exit {done.returncode}"
        output = done.stdout + done.stderr
    except subprocess.TimeoutExpired as error:
        status, output = "timed out", _text(error.stdout) + _text(error.stderr)
    lines = output.splitlines()[-40:]
    return {"status": status, "seconds": round(time.monotonic() - start, 1), "tail": lines}


def machine() -> dict[str, Any]:
    """Device, versions, and which peers are there to compare with."""
    return {
        "gpu": torch.cuda.get_device_name(),
        "capability": ".".join(map(str, torch.cuda.get_device_capability())),
        "memory_gib": round(torch.cuda.mem_get_info()[1] / 2**30, 1),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": _version("triton"),
        "transformers": _version("transformers"),
        "peers": {name: importlib.util.find_spec(name) is not None for name in PEERS},
    }


def read(path: Path) -> Any:
    return json.loads(path.read_text()) if path.is_file() else None


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _text(output: str | bytes | None) -> str:
    return output.decode(errors="replace") if isinstance(output, bytes) else output or ""


if __name__ == "__main__":
    sys.exit(main())
