"""Everything worth knowing of this machine's GPU, in one JSON: `make gpu`.

    python -m benchmarks.gpu
    python -m benchmarks.gpu --device cpu --tiny     # a dry run of every part, without a GPU
    python -m benchmarks.gpu --parts build peers floors head      # all there is, in two calls whose
    python -m benchmarks.gpu --parts build tests layers step training     # results make one file

Builds csrc, imports the peers, measures the chip's floors and the row kernels against them, the
head benchmarks at the headline shapes, runs the tests marked `gpu`, the kernels of attention and
delta-net layers, a whole training step of a model of 1.9 B parameters and a short training run;
ends with each headline as a share of its floor. Each part, and each file of tests, is a process of
its own with a time limit; what fails is recorded with its last lines, what does not fit into the
eight minutes is named, and the others still run. A part whose device is lost, which crashes or
hangs is started again and goes on after what it had. Nothing is downloaded: from a bare checkout,
`PYTHONPATH=.:kernels` is enough.
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
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .gpu_summary import headlines
from .journal import read_json, write_json

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
_TESTS_S = 150.0  # of all files of tests together
_MOST_STARTS = 5  # of one part
_DYING_S = 10.0  # a process in the driver may outlive its kill
_TAIL = 60  # lines that are kept of each part's output
LATE = "skipped for time"
SKIPPED = ("skipped", LATE)
# parts that leave a JSON of their name
MADE = ("peers", "floors", "head", "layers", "step")
_PARTS_HELP = (
    "only these, added to what the file has of this machine; all of it in two calls: "
    "`--parts build peers floors head`, then `--parts build tests layers step training`"
)
_MARK = re.compile(r"mark\.gpu\b")
# a line of `pytest -v`
_TEST = re.compile(r"\S+::.* (PASSED|FAILED|SKIPPED|ERROR|XFAIL)\b")
# settings of pyproject.toml belong to plugins that a GPU machine need not have
_PYTEST_INI = "[pytest]\nmarkers =\n    gpu: needs a CUDA device\n    slow: takes long\n"


@dataclass(frozen=True)
class Part:
    """One process."""

    command: list[str]
    limit_s: float
    needs: tuple[str, ...] = ()
    """modules without which it is skipped by name"""
    journal: Path | None = None
    """its JSON, where it goes on after what that holds when it is started again"""
    group: str = ""
    """parts of one group share their limit, and are asked for by its name"""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="small shapes, one training step")
    parser.add_argument("--parts", nargs="+", metavar="NAME", help=_PARTS_HELP)
    parser.add_argument("--out", type=Path, help="JSON to write; default: by the GPU's name")
    parser.add_argument("--peers", type=Path, help=argparse.SUPPRESS)
    known = parser.parse_args(arguments)
    if known.peers is not None:
        write_json(known.peers, import_all(PEERS))
        return 0
    if known.device == "cuda" and not torch.cuda.is_available():
        print("error: make gpu needs a CUDA device, torch finds none; --device cpu --tiny is a try")
        return 2
    out = known.out or (DRY_RUN if known.device == "cpu" else RESULTS / _file_name())
    with tempfile.TemporaryDirectory() as folder:
        plan = parts(Path(folder), known.device, tiny=known.tiny)
        names = {name: part.group or name for name, part in plan.items()}
        unknown = set(known.parts or ()) - set(names.values())
        if unknown:
            there = ", ".join(dict.fromkeys(names.values()))
            parser.error(f"--parts {' '.join(sorted(unknown))}: there are {there}")
        chosen = known.parts or names.values()
        plan = {name: part for name, part in plan.items() if names[name] in chosen}
        before = read_json(out) if known.parts else None
        result = run_parts(plan, Path(folder), out, known.device, before)
    print(f"wrote {out}")
    done = result["last_call"]
    late = dict.fromkeys(names[name] for name, status in done.items() if status == LATE)
    if late:
        print(f"not run for lack of time; adds them to this file: --parts {' '.join(late)}")
    # a dry run's machine need not have everything
    fine = ("passed",) if known.device == "cuda" else ("passed", "skipped")
    return 0 if all(status in fine for status in done.values()) else 1


def parts(folder: Path, device: str, *, tiny: bool) -> dict[str, Part]:
    """What is run, in order; results go into `folder`."""
    python = [sys.executable, "-m"]
    head_s, last_s = (150.0, _LAST_TINY_CASE_S) if tiny else (210.0, _LAST_CASE_S)
    build = [sys.executable, str(ROOT / "csrc" / "build.py")]

    def measured(name: str, module: str, limit_s: float, *options: str, needs: Any = ()) -> Part:
        path = folder / f"{name}.json"
        asked = ["--device", device, "--json", str(path), "--resume", *options]
        return Part([*python, f"benchmarks.{module}", *asked], limit_s, needs, path)

    small = ["--tiny"] if tiny else []
    sizes = ["--sizes", "tiny", "--budget_s", "0.2"] if tiny else [
        "--sizes", "headline", "--budget_s", "6", "--our_rounds", "7",
    ]  # fmt: skip
    return {
        "build": Part([*build, *(["--require-cuda"] if device == "cuda" else [])], 120.0),
        "peers": Part([*python, "benchmarks.gpu", "--peers", str(folder / "peers.json")], 60.0),
        "floors": measured("floors", "gpu_floors", 75.0, *small),
        "head": measured("head", "head", head_s, *sizes, "--limit_s", str(head_s - last_s)),
        **_tests(folder, tiny=tiny),
        "layers": measured("layers", "gpu_layers", 90.0, *small, needs=("transformers",)),
        "step": measured(
            "step", "gpu_step", 80.0, "--limit_s", "40", *small, needs=("transformers",)
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


def test_files() -> list[str]:
    """Those that hold tests marked `gpu`, the kernels' first."""
    files = (path.relative_to(ROOT) for path in (ROOT / "tests").rglob("test_*.py"))
    marked = [path for path in files if _MARK.search((ROOT / path).read_text())]
    return [str(path) for path in sorted(marked, key=lambda p: ("kernels" not in p.parts, p))]


def _tests(folder: Path, *, tiny: bool) -> dict[str, Part]:
    """A process a file: an illegal access spoils all later tests of its process."""
    ini = folder / "pytest.ini"
    ini.write_text(_PYTEST_INI)
    command = [
        sys.executable, "-m", "pytest", "-v", "-m", "gpu", "-c", str(ini), "--rootdir", str(ROOT),
        "-p", "no:cacheprovider", "--tb=short", "--durations=10",
    ]  # fmt: skip
    files = test_files()[: 1 if tiny else None]
    return {file: Part([*command, file], _TESTS_S, ("pytest",), group="tests") for file in files}


def run_parts(
    plan: dict[str, Part],
    folder: Path,
    out: Path,
    device: str,
    before: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Run them one by one; `out` is written after each, so nothing is lost to a lost machine.

    Args:
        before: an earlier result, kept where it is of the same machine and not measured again.
    """
    started = time.monotonic()
    result: dict[str, Any] = {"machine": machine(device), "parts": {}}
    if before is not None and before.get("machine") == result["machine"]:
        result = before
    result["last_call"] = {}
    out.parent.mkdir(parents=True, exist_ok=True)
    spent: Counter[str] = Counter()
    for name, part in plan.items():
        print(f"{name} ...", flush=True)
        left = LIMIT_S - (time.monotonic() - started)
        if part.group:
            left = min(left, part.limit_s - spent[part.group])
        done = run(part, left)
        spent[part.group] += done.get("seconds", 0.0)
        print(f"{name}: {describe(done)}", flush=True)
        earlier = result["parts"].get(name, done)
        result["last_call"][name] = done["status"]
        # what is skipped now may have been measured before
        result["parts"][name] = earlier if done["status"] in SKIPPED else done
        if name in MADE and done["status"] not in SKIPPED:
            result[name] = read_json(folder / f"{name}.json")
        metrics = folder / "run" / "metrics.jsonl"
        if metrics.is_file():
            result["training"] = [json.loads(x) for x in metrics.read_text().splitlines()]
        result["seconds"] = round(time.monotonic() - started, 1)
        result["headlines"] = headlines(result)
        write_json(out, result)
    print("\n".join(result.get("headlines", [])))
    return result


def run(part: Part, left_s: float) -> dict[str, Any]:
    """Status, seconds and last lines of one part, with at most `left_s` seconds for it.

    It is started again where its JSON says that a process ended before its time.
    """
    absent = [name for name in part.needs if importlib.util.find_spec(name) is None]
    if absent:
        return {"status": "skipped", "reason": f"not installed: {', '.join(absent)}"}
    if left_s < _LEAST_S:
        return {"status": LATE, "reason": "its time is over"}
    start = time.monotonic()
    limit_s = min(part.limit_s, left_s)
    lines: list[str] = []
    for _ in range(_MOST_STARTS):
        status, output = run_limited(part.command, limit_s - (time.monotonic() - start))
        lines += output.splitlines()
        ended_early = part.journal is not None and "running" in (read_json(part.journal) or {})
        if status == "timed out" or not ended_early or limit_s - (time.monotonic() - start) < 0:
            break
    done: dict[str, Any] = {"status": status, "seconds": round(time.monotonic() - start, 1)}
    if counts := Counter(match[1].lower() for match in map(_TEST.match, lines) if match):
        done["tests"] = dict(counts)
    return done | {"tail": lines[-_TAIL:]}


def run_limited(command: list[str], limit_s: float) -> tuple[str, str]:
    """How it ended, and what it wrote."""
    paths = [str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")]
    more = {"PYTHONPATH": os.pathsep.join(p for p in paths if p), "PYTHONUNBUFFERED": "1"}
    # a file, no pipe: a grandchild that lives on cannot keep anybody waiting for its end
    with tempfile.TemporaryFile("w+", errors="replace") as output:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | more,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = process.wait(max(limit_s, 0.0))
            status = f"exit {code}" if code else "passed"
        except subprocess.TimeoutExpired:
            status = "timed out"
        finally:
            # its own children too: a compiler, a judge server. ctrl-C does not reach a session
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                with suppress(subprocess.TimeoutExpired):
                    process.wait(_DYING_S)
        output.seek(0)
        return status, output.read()


def describe(done: dict[str, Any]) -> str:
    """One line; with the last output when it did not pass."""
    if done["status"] in SKIPPED:
        return f"skipped: {done['reason']}"
    line = f"{done['status']} after {done['seconds']} s"
    if "tests" in done:
        line += ": " + ", ".join(f"{count} {word}" for word, count in done["tests"].items())
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
