"""What a failure costs: its own entry; a process that ends is followed by one that goes on."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import journal as journals
from benchmarks.journal import DeviceLost, Journal, read_json, write_json

CPU = torch.device("cpu")
ROOT = Path(__file__).resolve().parents[2]


def test_what_raises_costs_its_own_entry(tmp_path: Path):
    out = tmp_path / "part.json"
    journal = Journal(out, CPU, {"rows": []})
    with journal.trying("shape", "bad"):
        assert json.loads(out.read_text())["running"] == ["shape", "bad"]
        raise ValueError("no such kernel\nand a trace")
    with journal.trying("shape", "good"):
        journal.results["rows"].append(1)
    made = json.loads(out.read_text())
    assert made["rows"] == [1] and "running" not in made
    assert made["failed"] == {"shape: bad": "failed with ValueError: no such kernel"}
    assert journal.refusal("shape", "bad") and journal.refusal("shape", "good") is None
    # elsewhere it may work
    assert journal.refusal("other", "bad") is None


def test_a_lost_device_ends_the_part_and_names_who_lost_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    out = tmp_path / "part.json"
    journal = Journal(out, CPU, {"rows": [1]})
    monkeypatch.setattr(journals, "is_lost", lambda device: True)
    with (
        pytest.raises(DeviceLost, match="illegal access"),
        journal.trying("case", "all"),
        journal.trying("shape", "bad"),
    ):
        raise RuntimeError("illegal access")
    made = json.loads(out.read_text())
    assert made["rows"] == [1] and made["running"] == ["shape", "bad"]
    again = Journal(out, CPU, {"rows": []}, resume=True)
    assert again.results["rows"] == [1] and "running" not in again.results
    # the outer attempt is made again, without who ended it, here and elsewhere
    assert again.refusal("case", "all") is None
    assert "illegal access (shape)" in (again.refusal("other", "bad") or "")


def test_a_process_that_is_killed_leaves_a_whole_file_that_says_where_it_was(tmp_path: Path):
    out = tmp_path / "part.json"
    code = f"""
import os, pathlib, signal, torch
from benchmarks.journal import Journal
journal = Journal(pathlib.Path({str(out)!r}), torch.device("cpu"), {{"rows": []}})
with journal.trying("shape", "fine"):
    journal.results["rows"].append(1)
with journal.trying("shape", "deadly"):
    os.kill(os.getpid(), signal.SIGSEGV)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True)
    assert done.returncode < 0
    again = Journal(out, CPU, {"rows": []}, resume=True)
    assert again.results["rows"] == [1]
    assert again.failed == {"shape: deadly": "the process ended while it ran"}


def test_what_hangs_on_a_gpu_ends_its_process(tmp_path: Path):
    out = tmp_path / "part.json"
    code = f"""
import pathlib, time, torch
from benchmarks.journal import Journal
journal = Journal(pathlib.Path({str(out)!r}), torch.device("cuda"), {{}})
with journal.trying("case", "all", limit_s=0.2):
    with journal.trying("shape", "quick"):
        pass
    time.sleep(60)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, timeout=50)
    assert done.returncode == 1 and b"Timeout" in done.stderr
    assert json.loads(out.read_text())["running"] == ["case", "all"]


def test_without_resume_a_part_starts_afresh(tmp_path: Path):
    out = tmp_path / "part.json"
    write_json(out, {"rows": [1], "running": ["shape", "bad"]})
    assert Journal(out, CPU, {"rows": []}).results == {"rows": [], "failed": {}, "ended": {}}


def test_half_a_file_is_none(tmp_path: Path):
    half = tmp_path / "half.json"
    half.write_text('{"rows": [')
    assert read_json(half) is None and read_json(tmp_path / "none.json") is None
    write_json(half, {"rows": []})
    assert read_json(half) == {"rows": []} and list(tmp_path.iterdir()) == [half]
