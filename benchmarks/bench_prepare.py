"""5,000 stories of 1,000 to 12,000 words through `polaris_fast.prepare`: time and memory.

    pytest benchmarks/bench_prepare.py --benchmark-only -s
    python -m benchmarks.prepare_corpus FOLDER --stories 5000   # the books alone

The corpus has every format: half in EPUB anthologies, the rest TXT, Markdown, HTML and JSONL, with
one story in fifty a near-copy of an earlier one. Memory is measured at 1,250 and 5,000 stories: it
may grow by the index, never by the texts. The numbers are kept in results/prepare.{json,md}.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from .prepare_corpus import write_corpus
from .result_table import Table

WORKERS = 2
NUM_STORIES = int(os.environ.get("POLARIS_BENCH_STORIES", "5000"))


CODE = """
import json, os, re, sys, time
from polaris_fast.prepare.__main__ import main

begin = time.monotonic()
status = main(sys.argv[1:])
seconds = time.monotonic() - begin
times = os.times()
# Not ru_maxrss: it carries over the peak of the process that started this one.
peak_kib = int(re.search(r"VmHWM:\\s*(\\d+)", open("/proc/self/status").read())[1])
print(json.dumps({
    "status": status,
    "seconds": seconds,
    "cpu_s": times.user + times.system + times.children_user + times.children_system,
    "parent_mib": peak_kib / 1024,
}))
"""


def prepare(books: Path, out: Path) -> dict[str, float]:
    """Run the command in a process of its own: seconds, CPU seconds of all, MiB of the parent."""
    command = [sys.executable, "-c", CODE, str(books), "--out", str(out)]
    command += ["--workers", str(WORKERS)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def table() -> Iterator[Table]:
    columns = ("stories", "words", "kept", "seconds", "CPU seconds", "peak MiB, main process")
    title = f"Books to records, {WORKERS} worker processes, one story in fifty a near-copy"
    found = Table("prepare", title, columns)
    yield found
    found.finish()


@pytest.mark.parametrize("num", [NUM_STORIES // 4, NUM_STORIES])
def test_prepare(benchmark, table: Table, tmp_path: Path, num: int) -> None:
    made = write_corpus(tmp_path / "books", num)
    result = benchmark.pedantic(
        prepare, args=(tmp_path / "books", tmp_path / "data"), rounds=1, iterations=1
    )
    assert result["status"] == 0
    files = [tmp_path / "data" / f"{name}.jsonl" for name in ("train", "test")]
    kept = sum(len(path.read_bytes().splitlines()) for path in files if path.exists())
    assert kept == made.originals, f"{kept} of {made.originals} originals, {made.copies} copies"
    benchmark.extra_info |= result | {"stories": num, "words": made.words, "kept": kept}
    table.add(
        f"{num:,}",
        f"{made.words / 1e6:.1f} M",
        f"{kept:,}",
        f"{result['seconds']:.1f}",
        f"{result['cpu_s']:.1f}",
        f"{result['parent_mib']:.0f}",
    )
