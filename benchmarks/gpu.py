"""Everything worth knowing of this machine's GPU, in one JSON: `make gpu`.

    python -m benchmarks.gpu
    python -m benchmarks.gpu --device cpu --tiny     # a dry run of every part, without a GPU

Builds csrc, imports the peers, measures the chip's floors and the row kernels against them, runs
the tests marked `gpu`, the head benchmarks at the headline shapes, the kernels of attention and
delta-net layers, a whole training step of a model of 1.9 B parameters and a short training run;
ends with each headline as a share of its floor. Each part is a process of its own with a time
limit; what fails is recorded with its last lines, what does not fit into the eight minutes is
named, and the others still run. Nothing is downloaded: from a bare checkout, `PYTHONPATH=.:kernels`
is enough.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .gpu_summary import headlines

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
DRY_RUN = ROOT / "runs" / "gpu-dry-run.json"
# the modules that a comparison or a fast path needs, not just their packages
PEERS = (
    "trl.kernels", "liger_kernel.chunked_loss", "liger_kernel.transformers.grpo_loss",
    "cut_cross_entropy", "quack", "fla", "flash_attn",
)  # fmt: skip
LIMIT_S = 465.0  # of the whole script, so that it ends within eight minutes
_LEAST_S = 5.0  # no part starts with less
_LAST_CASE_S = 45.0  # a head case that has started may take this long
_LAST_TINY_CASE_S = 30.0
# settings of pyproject.toml belong to plugins that a GPU machine need not have
_PYTEST_INI = "[pytest]\nmarkers =\n    gpu: needs a CUDA device\n    slow: takes long\n"


@dataclass(frozen=True)
class Part:
    """One process."""

    command: list[str]
    limit_s: float
    needs: tuple[str, ...] = ()
    """modules without which it is skipped by name"""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="small shapes, one training step")
    parser.add_argument("--parts", nargs="+", metavar="NAME", help="only these")
    parser.add_argument("--out", type=Path, help="JSON to write; default: by the GPU's name")
    parser.add_argument("--peers", type=Path, help=argparse.SUPPRESS)
    known = parser.parse_args(arguments)
    if known.peers is not None:
        known.peers.write_text(json.dumps(import_all(PEERS)))
        return 0
    if known.device == "cuda" and not torch.cuda.is_available():
        print("error: make gpu needs a CUDA device, torch finds none; --device cpu --tiny is a try")
        return 2
    out = known.out or (DRY_RUN if known.device == "cpu" else RESULTS / _file_name())
    with tempfile.TemporaryDirectory() as folder:
        plan = parts(Path(folder), known.device, tiny=known.tiny)
        unknown = set(known.parts or ()) - set(plan)
        if unknown:
            parser.error(f"--parts {' '.join(sorted(unknown))}: there are {', '.join(plan)}")
        plan = {name: part for name, part in plan.items() if name in (known.parts or plan)}
        result = run_parts(plan, Path(folder), out, known.device)
    print(f"wrote {out}")
    return 0 if all(p["status"] in ("passed", "skipped") for p in result["parts"].values()) else 1


def parts(folder: Path, device: str, *, tiny: bool) -> dict[str, Part]:
    """What is run, in order; results go into `folder`."""
    python = [sys.executable, "-m"]
    ini = folder / "pytest.ini"
    ini.write_text(_PYTEST_INI)
    head_s, last_s = (150.0, _LAST_TINY_CASE_S) if tiny else (210.0, _LAST_CASE_S)
    return {
        "build": Part([sys.executable, str(ROOT / "csrc" / "build.py")], 120.0),
        "peers": Part([*python, "benchmarks.gpu", "--peers", str(folder / "peers.json")], 60.0),
        "floors": Part(
            [
                *python, "benchmarks.gpu_floors", "--device", device,
                "--json", str(folder / "floors.json"), *(["--tiny"] if tiny else []),
            ],
            45.0,
        ),
        "tests": Part(
            [
                *python, "pytest", "-q", "-m", "gpu", "-c", str(ini), "--rootdir", str(ROOT),
                "-p", "no:cacheprovider", "--continue-on-collection-errors",
                *(["tests/kernels/test_cuda.py"] if tiny else ["tests/kernels", "tests/model"]),
            ],
            90.0,
            ("pytest",),
        ),
        "head": Part(
            [
                *python, "benchmarks.head", "--device", device, "--json", str(folder / "head.json"),
                "--sizes", "tiny" if tiny else "headline", "--budget_s", "0.2" if tiny else "6",
                "--limit_s", str(head_s - last_s),
            ],
            head_s,
        ),
        "layers": Part(
            [
                *python, "benchmarks.gpu_layers", "--device", device,
                "--json", str(folder / "layers.json"), *(["--tiny"] if tiny else []),
            ],
            60.0,
            ("transformers", "pydantic"),
        ),
        "step": Part(
            [
                *python, "benchmarks.gpu_step", "--device", device,
                "--json", str(folder / "step.json"), "--limit_s", "40",
                *(["--tiny"] if tiny else []),
            ],
            80.0,
            ("transformers", "pydantic"),
        ),
        "training": Part(
            [
                *python, "polaris_fast.train", "--config", "debug", "--progress", "false",
                "--output_dir", str(folder / "run"),
                "--dtype", "bfloat16" if device == "cuda" else "float32",
                *(["--max_steps", "1"] if tiny else []),
            ],
            75.0,
            ("transformers", "pydantic", "aiohttp", "tenacity", "datasets"),
        ),
    }  # fmt: skip


def run_parts(plan: dict[str, Part], folder: Path, out: Path, device: str) -> dict[str, Any]:
    """Run them one by one; `out` is written after each, so nothing is lost to a lost machine."""
    started = time.monotonic()
    result: dict[str, Any] = {"machine": machine(device), "parts": {}}
    out.parent.mkdir(parents=True, exist_ok=True)
    for name, part in plan.items():
        print(f"{name} ...", flush=True)
        left = LIMIT_S - (time.monotonic() - started)
        result["parts"][name] = run(part, left)
        print(f"{name}: {describe(result['parts'][name])}", flush=True)
        for made in ("peers", "floors", "head", "layers", "step"):
            result[made] = read(folder / f"{made}.json")
        metrics = folder / "run" / "metrics.jsonl"
        if metrics.is_file():
            result["training"] = [json.loads(x) for x in metrics.read_text().splitlines()]
        result["seconds"] = round(time.monotonic() - started, 1)
        result["headlines"] = headlines(result)
        out.write_text(json.dumps(result, indent=1) + "\n")
    print("\n".join(result.get("headlines", [])))
    return result


def run(part: Part, left_s: float) -> dict[str, Any]:
    """Status, seconds and last lines of one part, with at most `left_s` seconds for it."""
    absent = [name for name in part.needs if importlib.util.find_spec(name) is None]
    if absent:
        return {"status": "skipped", "reason": f"not installed: {', '.join(absent)}"}
    if left_s < _LEAST_S:
        return {"status": "skipped", "reason": f"{LIMIT_S:.0f} s are over"}
    start = time.monotonic()
    paths = [str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")]
    process = subprocess.Popen(
        part.command,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(p for p in paths if p)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=min(part.limit_s, left_s))
        status = "passed" if process.returncode == 0 else f"exit {process.returncode}"
    except subprocess.TimeoutExpired:
        # its own children too: a compiler, a judge server
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        status = "timed out"
    finally:
        # ctrl-C does not reach a session of its own
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    tail = output.splitlines()[-40:]
    return {"status": status, "seconds": round(time.monotonic() - start, 1), "tail": tail}


def describe(done: dict[str, Any]) -> str:
    """One line; with the last output when it did not pass."""
    if done["status"] == "skipped":
        return f"skipped: {done['reason']}"
    line = f"{done['status']} after {done['seconds']} s"
    return line if done["status"] == "passed" else "\n".join([line, *done["tail"][-15:]])


def machine(device: str) -> dict[str, Any]:
    """Device and versions."""
    found = {
        "device": platform.processor() or platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "triton": _version("triton"),
        "transformers": _version("transformers"),
    }
    if device == "cuda":
        found |= {
            "device": torch.cuda.get_device_name(),
            "capability": ".".join(map(str, torch.cuda.get_device_capability())),
            "memory_gib": round(torch.cuda.mem_get_info()[1] / 2**30, 1),
        }
    return found


def import_all(names: tuple[str, ...]) -> dict[str, str]:
    """Version of each module's package, or why it cannot be imported."""
    found = {}
    for name in names:
        try:
            importlib.import_module(name)
            found[name] = _version(name.partition(".")[0]) or "imported"
        except Exception as error:
            # an import may fail in any way: a missing symbol, another torch, no compiler
            found[name] = f"not imported: {type(error).__name__}: {error}".partition("\n")[0]
    return found


def read(path: Path) -> Any:
    """The JSON in a file, or None."""
    return json.loads(path.read_text()) if path.is_file() else None


def _file_name() -> str:
    gpu = re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name().lower()).strip("-")
    return f"gpu-{gpu}.json"


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    sys.exit(main())
