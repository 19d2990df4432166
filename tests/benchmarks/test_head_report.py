"""What a measured case reports: shares, missing and wrong providers, table, picture, JSON."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import head
from benchmarks.head import FLOOR, measure_case, run_cases
from benchmarks.head_cases import HeadCase
from benchmarks.head_exact import Outputs
from benchmarks.head_peers import Missing, torch_loss
from benchmarks.head_plot import draw
from benchmarks.head_table import best_of_ours, merged, read, render, write
from benchmarks.journal import Journal
from benchmarks.measure import Call

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")
CASE = HeadCase("loss", 64, 16, 307, "fp32")


def _absent(_):
    raise Missing("not on this machine")


def _broken(_):
    raise RuntimeError("no kernel image\nand a long trace")


def _half(inputs):
    call = torch_loss(inputs)

    def run() -> Outputs:
        found = call.run()
        return Outputs(loss=found.loss, grad_hidden=0.5 * found.grad_hidden)

    return Call(run)


@pytest.fixture
def report(monkeypatch: pytest.MonkeyPatch) -> head.CaseReport:
    peers = {
        "torch": torch_loss,
        "absent": _absent,
        "broken": _broken,
        "half": _half,
        "other": "computes something else",
    }
    monkeypatch.setitem(head.PEERS, "loss", peers)
    return measure_case(CASE, CPU, budget_s=0.0)


def test_shares_ratios_and_keys(report: head.CaseReport):
    info = report.info("torch")
    keys = "provider shape dtype floor_ms share_of_floor peak_extra_mib rel_error p20_ms p80_ms"
    assert set(keys.split()) <= set(info)
    assert info["share_of_floor"] == pytest.approx(info["floor_ms"] / info["p50_ms"])
    assert info["p20_ms"] <= info["p50_ms"] <= info["p80_ms"]
    assert info["shape"] == {"N": 64, "D": 16, "V": 307}
    assert 0 < info["rel_error"] < 1e-5
    assert report.info(FLOOR)["share_of_floor"] == 1.0
    json.dumps(info)


def test_who_is_missing_and_who_is_wrong_is_named_and_not_timed(report: head.CaseReport):
    floor = report.info(FLOOR)
    assert floor["missing"] == {
        "absent": "not on this machine",
        "broken": "failed with RuntimeError: no kernel image",
        "other": "computes something else",
    }
    assert set(floor["wrong"]) == {"half"} and "grad_hidden 5.0e-01" in floor["wrong"]["half"]
    assert not set(report.measured()) & {"absent", "broken", "half", "other"}
    assert "polaris (torch)" in report.measured()


def test_our_own_failure_is_named_and_costs_nobody_else_a_number(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    found = head.ours.providers(CASE, "cpu")
    monkeypatch.setattr(head.ours, "providers", lambda *_: {"polaris (cuda)": _broken, **found})
    monkeypatch.setitem(head.SIZES, "tiny", lambda: [CASE])
    out = tmp_path / "head.json"
    asked = ["--device", "cpu", "--sizes", "tiny", "--budget_s", "0", "--json", str(out)]
    assert head.main([*asked, "--providers", "torch", "polaris"]) == 1
    made = json.loads(out.read_text())
    why = "failed with RuntimeError: no kernel image"
    assert made["failed"] == {f"{CASE.id}: polaris (cuda)": why}
    assert made["faults"] == [f"{CASE.id}: polaris (cuda): {why}"]
    by_name = {entry["provider"]: entry for entry in made["entries"]}
    assert {FLOOR, "torch", "polaris (torch)"} <= set(by_name)
    assert by_name[FLOOR]["failed"] == {"polaris (cuda)": why} and not by_name[FLOOR]["missing"]
    assert f"- polaris (cuda): FAILED: {why}" in capsys.readouterr().out


def test_a_provider_that_fails_in_its_turn_has_no_number(monkeypatch: pytest.MonkeyPatch):
    def twice(inputs):
        call, calls = torch_loss(inputs), []

        def run() -> Outputs:
            calls.append(1)
            if len(calls) > 2:
                raise RuntimeError("out of luck")
            return call.run()

        return Call(run)

    monkeypatch.setitem(head.PEERS, "loss", {"torch": torch_loss, "peer": twice})
    report = measure_case(CASE, CPU, budget_s=0.0)
    assert report.info(FLOOR)["missing"] == {"peer": "failed with RuntimeError: out of luck"}
    assert {"torch", "polaris (torch)"} <= set(report.measured()) and not report.faults()


def test_plain_torch_is_first_and_ours_come_before_peers():
    names = list(head.providers_of(CASE, "cuda"))
    ours = [i for i, name in enumerate(names) if name.startswith("polaris")]
    assert names[0] == "torch" and ours == list(range(1, 1 + len(ours))) and "trl" in names


def test_ours_and_the_floor_get_more_samples(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(head.PEERS, "loss", {"torch": torch_loss})
    report = measure_case(CASE, CPU, budget_s=0.0, our_rounds=5)
    rounds = {name: report.info(name)["rounds"] for name in report.measured()}
    assert rounds.pop("torch") == 3 and set(rounds.values()) == {5} and FLOOR in rounds


def test_a_run_that_ended_goes_on_without_whom_it_ended_with(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    other = HeadCase("loss", 64, 16, 211, "fp32")
    monkeypatch.setitem(head.SIZES, "tiny", lambda: [CASE, other])
    out = tmp_path / "head.json"
    first = {"case": CASE.id, "provider": "floor"}
    before = {"entries": [first], "skipped": [], "running": [other.id, "polaris (torch)"]}
    out.write_text(json.dumps(before))
    asked = ["--device", "cpu", "--sizes", "tiny", "--budget_s", "0", "--json", str(out)]
    assert head.main([*asked, "--resume", "--providers", "torch", "polaris"]) == 1
    made = json.loads(out.read_text())
    assert made["entries"][0] == first and "running" not in made
    providers = {e["provider"] for e in made["entries"] if e["case"] == other.id}
    assert {FLOOR, "torch"} <= providers and "polaris (torch)" not in providers
    assert made["faults"] == [f"{other.id}: polaris (torch): the process ended while it ran"]


def test_ours_may_not_be_much_worse_than_plain_torch():
    entry = head.Entry("polaris (torch)", errors={"grad_hidden": 5e-5})
    limits = head._limits(entry, CASE, {"grad_hidden": 1e-6})
    assert "grad_hidden" in (head._fault(entry, limits) or "")
    assert head._fault(entry, head._limits(entry, CASE, {})) is None
    entry.errors["grad_hidden"] = float("nan")
    assert head._fault(entry, head._limits(entry, CASE, {})) is not None


def test_table_and_picture(report: head.CaseReport, tmp_path: Path):
    entries = [report.info(name) for name in report.measured()]
    table = render(entries)
    assert "- half: WRONG: relative error" in table
    assert "- absent: not measured: not on this machine" in table
    ours, plain = best_of_ours(entries), report.info("torch")
    assert f"{plain['p50_ms'] / ours['p50_ms']:.2f}x" in table
    picture = draw(entries, tmp_path / "head.svg").read_text()
    assert "polaris (torch)" in picture and "N 64, D 16, V 307, fp32" in picture


def test_a_run_may_come_in_pieces(report: head.CaseReport, tmp_path: Path):
    first = [report.info(name) for name in report.measured()]
    again = [first[0] | {"rounds": 99}]
    elsewhere = [first[0] | {"case": "another"}]
    entries = merged([first, elsewhere, again])
    assert entries == [*again, *elsewhere]
    data, text, picture = write(entries, tmp_path / "results" / "head")
    assert read(data) == entries
    assert render(entries) in text.read_text()
    assert picture.suffix == ".svg" and picture.exists()


def test_cases_after_the_time_limit_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "head.json"
    journal = Journal(out, CPU, {"entries": [], "skipped": []})
    run_cases([CASE], lambda case: pytest.fail(case.id), journal, limit_s=-1.0)
    made = json.loads(out.read_text())
    assert not made["entries"] and not made["faults"] and made["skipped"] == [CASE.id]
    assert "skipped" in capsys.readouterr().out


def test_pytest_benchmarks_json_holds_the_recorded_samples(tmp_path: Path):
    out = tmp_path / "bench.json"
    command = [
        sys.executable, "-m", "pytest", "benchmarks/bench_head.py", "--benchmark-only", "-q",
        "-p", "no:cacheprovider", "--head-device", "cpu", "--head-sizes", "tiny",
        "--head-budget", "0", "--head-providers", "torch", "polaris",
        f"--benchmark-json={out}", "-k", "logps-N64-D16-V307-fp32",
    ]  # fmt: skip
    # pytest-benchmark measures nothing in a worker of pytest-xdist, and looks at these
    alone = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_XDIST")}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=alone)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "log-probs + entropy without gradient" in done.stdout
    made = json.loads(out.read_text())["benchmarks"]
    assert {b["extra_info"]["provider"] for b in made} >= {"floor", "torch", "polaris (torch)"}
    for b in made:
        assert "head" in b["name"] and b["stats"]["rounds"] == b["extra_info"]["rounds"]
        assert 1e3 * b["stats"]["median"] == pytest.approx(b["extra_info"]["p50_ms"], rel=1e-6)
    assert read(out) == [b["extra_info"] for b in made]
