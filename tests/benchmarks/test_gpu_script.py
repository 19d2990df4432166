"""`make gpu` without a GPU: its plan, its limits, and each part's command on tiny shapes."""

import json
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks import gpu, gpu_floors, gpu_layers, gpu_roofline, gpu_step, gpu_summary, head
from benchmarks.head_cases import SIZES, HeadCase
from benchmarks.journal import Journal, read_json
from benchmarks.measure import Call

CPU = torch.device("cpu")


def python(code: str, limit_s: float = 30.0, **rest) -> gpu.Part:
    return gpu.Part([sys.executable, "-c", code], limit_s, **rest)


def test_parts_pass_fail_time_out_and_are_skipped_by_name():
    assert gpu.run(python("print('fine')"), 60)["status"] == "passed"
    failed = gpu.run(python("import sys; print('why'); sys.exit(3)"), 60)
    assert failed["status"] == "exit 3" and failed["tail"] == ["why"]
    assert gpu.describe(failed).endswith("why")
    late = gpu.run(python("print('on', flush=True); import time; time.sleep(60)", 1.5), 60)
    assert late["status"] == "timed out" and late["tail"] == ["on"]
    absent = gpu.run(python("", needs=("json", "no_such_module")), 60)
    assert absent == {"status": "skipped", "reason": "not installed: no_such_module"}
    assert gpu.run(python(""), 1.0) == {"status": gpu.LATE, "reason": "its time is over"}


def test_a_grandchild_that_lives_on_keeps_nobody_waiting():
    code = """
import subprocess, sys
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(40)"], start_new_session=True)
print("done")
"""
    started = time.monotonic()
    done = gpu.run(python(code), 60)
    assert done["status"] == "passed" and done["tail"] == ["done"]
    assert time.monotonic() - started < 35


def test_a_part_that_ended_early_is_started_again_and_goes_on(tmp_path: Path):
    out = tmp_path / "part.json"
    code = f"""
import os, pathlib, signal, torch
from benchmarks.journal import Journal, read_json
journal = Journal(pathlib.Path({str(out)!r}), torch.device("cpu"), {{"rows": []}}, resume=True)
for name in ("one", "deadly", "two"):
    if name in journal.results["rows"] or journal.refusal("shape", name):
        continue
    with journal.trying("shape", name):
        if name == "deadly":
            os.kill(os.getpid(), signal.SIGSEGV)
        print(name, flush=True)
        journal.results["rows"].append(name)
raise SystemExit(journal.status())
"""
    done = gpu.run(python(code, 60.0, journal=out), 60)
    why = "shape: deadly: the process ended while it ran"
    assert done["status"] == "exit 1" and done["tail"] == ["one", "two", f"FAILED: {why}"]
    assert json.loads(out.read_text())["rows"] == ["one", "two"]
    assert f"head: {why}" in gpu_summary.headlines({"head": read_json(out) | {"entries": []}})


def test_tests_are_counted_even_when_their_time_is_over(tmp_path: Path):
    code = """
print("tests/a/test_b.py::test_c[1-x y] PASSED   [ 10%]")
print("tests/a/test_b.py::test_c[2] FAILED   [ 20%]")
print("FAILED tests/a/test_b.py::test_c[2] - assert 0", flush=True)
import time; time.sleep(60)
"""
    done = gpu.run(python(code, 2.0), 60)
    assert done["status"] == "timed out" and done["tests"] == {"passed": 1, "failed": 1}
    assert gpu.describe(done | {"status": "passed"}).endswith(" s: 1 passed, 1 failed")


def test_a_group_shares_its_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(gpu, "_LEAST_S", 0.5)
    slow = python("import time; time.sleep(60)", 1.0, group="tests")
    result = gpu.run_parts({"a": slow, "b": slow}, tmp_path, tmp_path / "gpu.json", "cpu")
    assert [p["status"] for p in result["parts"].values()] == ["timed out", gpu.LATE]


def test_files_with_tests_for_a_gpu_are_found_by_their_mark(tmp_path: Path):
    found = gpu.test_files()
    assert {
        "tests/kernels/test_cuda.py", "tests/model/test_packed.py",
        "tests/engine/test_optimizer.py", "tests/benchmarks/test_measure.py",
    } <= set(found)  # fmt: skip
    assert found[0].startswith("tests/kernels/") and "tests/test_docs.py" not in found
    plan = gpu.parts(tmp_path, "cuda", tiny=False)
    assert [plan[file].command[-1] for file in found] == found


def test_a_folder_called_gpu_skips_no_test(monkeypatch: pytest.MonkeyPatch):
    from tests.conftest import pytest_collection_modifyitems

    class Item:
        def __init__(self, marks: tuple[str, ...]) -> None:
            self.keywords = {"gpu": True}
            self.marks = marks
            self.added: list[object] = []
            self.add_marker = self.added.append

        def get_closest_marker(self, name: str) -> bool | None:
            return name in self.marks or None

    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    inside, marked = items = Item(()), Item(("gpu",))
    pytest_collection_modifyitems(items)  # type: ignore[arg-type]
    assert not inside.added and len(marked.added) == 1


def test_results_of_two_calls_make_one(tmp_path: Path):
    out = tmp_path / "gpu.json"
    save = "import pathlib; pathlib.Path({!r}).write_text('{{\"entries\": []}}')"
    plan = {"head": python(save.format(str(tmp_path / "head.json"))), "late": python("")}
    first = gpu.run_parts(plan, tmp_path, out, "cpu")
    (tmp_path / "head.json").unlink()
    rest = {"late": python("", needs=("no_such_module",)), "build": python("print(1)")}
    made = gpu.run_parts(rest, tmp_path, out, "cpu", read_json(out))
    assert made["head"] == {"entries": []} and made["parts"]["head"] == first["parts"]["head"]
    assert list(made["parts"]) == ["head", "late", "build"]
    assert made["parts"]["late"]["status"] == "passed", "a skip takes nothing away"
    other = read_json(out) | {"machine": {"device": "another"}}
    assert "head" not in gpu.run_parts(rest, tmp_path, out, "cpu", other)["parts"]


def test_what_was_skipped_is_no_success_on_a_gpu(tmp_path: Path, monkeypatch, capsys):
    out = tmp_path / "gpu.json"
    plan = {"build": python("", needs=("no_such_module",)), "peers": python("")}
    monkeypatch.setattr(gpu, "parts", lambda *_, **__: plan)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr(gpu, "machine", lambda device: {"device": "gpu"})
    assert gpu.main(["--out", str(out)]) == 1
    assert gpu.main(["--out", str(out), "--device", "cpu"]) == 0
    assert gpu.main(["--out", str(out), "--parts", "peers"]) == 0
    monkeypatch.setattr(gpu, "LIMIT_S", 0.0)
    assert gpu.main(["--out", str(out), "--parts", "peers"]) == 1
    assert "adds them to this file: --parts peers" in capsys.readouterr().out


def test_a_part_imports_the_checkout_and_its_kernels():
    code = "import os, polaris_kernels, benchmarks; print(os.environ['PYTHONPATH'])"
    done = gpu.run(python(code), 60)
    assert done["status"] == "passed", done["tail"]
    assert done["tail"][0].split(":")[:2] == [str(gpu.ROOT), str(gpu.ROOT / "kernels")]


def test_one_json_is_complete_after_every_part(tmp_path: Path):
    out = tmp_path / "all" / "gpu.json"
    look = f"import json, pathlib; print(list(json.loads(pathlib.Path({str(out)!r}).read_text())))"
    save = "import pathlib; pathlib.Path({!r}).write_text('{{\"entries\": []}}')"
    plan = {"head": python(save.format(str(tmp_path / "head.json"))), "look": python(look)}
    result = gpu.run_parts(plan, tmp_path, out, "cpu")
    assert json.loads(out.read_text()) == result
    assert result["head"] == {"entries": []}
    assert "machine" in result["parts"]["look"]["tail"][0]
    assert {"device", "python", "torch", "triton"} <= set(result["machine"])


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_the_plan_fits_the_limit_but_for_caps(tmp_path: Path, device: str):
    plan = gpu.parts(tmp_path, device, tiny=device == "cpu")
    names = dict.fromkeys(part.group or name for name, part in plan.items())
    assert list(names) == [
        "build", "peers", "floors", "head", "tests", "layers", "step", "training",
    ]  # fmt: skip
    first = [plan[name].limit_s for name in ("build", "peers", "floors", "head")]
    second = [plan[name].limit_s for name in ("build", "layers", "step", "training")]
    assert sum(first) <= gpu.LIMIT_S and sum(second) <= gpu.LIMIT_S
    assert ("--require-cuda" in plan["build"].command) == (device == "cuda")
    assert device in plan["head"].command
    assert gpu.LIMIT_S < 8 * 60


def test_the_head_part_runs_on_tiny_shapes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    part = gpu.parts(tmp_path, "cpu", tiny=True)["head"]
    case = HeadCase("loss", 64, 16, 307, "bf16")
    monkeypatch.setitem(SIZES, "tiny", lambda: [case])
    assert part.command[:3] == [sys.executable, "-m", "benchmarks.head"]
    assert head.main([*part.command[3:], "--providers", "torch", "polaris"]) == 0
    made = json.loads((tmp_path / "head.json").read_text())["entries"]
    assert {"floor", "torch", "polaris (torch)"} <= {entry["provider"] for entry in made}


def test_headline_shapes_are_those_that_are_published():
    found = [(c.task, c.num_tokens, c.hidden_size, c.vocab_size) for c in SIZES["headline"]()]
    for wanted in (
        ("loss", 16_384, 4_096, 248_320),
        ("frozen", 16_384, 4_096, 248_320),
        ("logps", 20_480, 4_096, 248_320),
        ("loss", 16_384, 2_048, 248_320),
        ("loss", 16_384, 4_096, 131_072),
        ("loss", 8_192, 4_096, 151_936),
        ("logits", 8_192, 0, 151_936),
    ):
        assert wanted in found


def test_peers_are_named_with_the_reason():
    found = gpu.import_all(("json", "no_such_module.part"))
    assert found["json"] == "imported"
    assert found["no_such_module.part"].startswith("not imported: ModuleNotFoundError: No module")


def test_without_cuda_it_says_what_to_do(capsys: pytest.CaptureFixture[str], monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert gpu.main([]) == 2
    assert "--device cpu --tiny" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        gpu.main(["--device", "cpu", "--parts", "hed"])


def test_floors_and_row_kernels_on_tiny_shapes(tmp_path: Path, capsys):
    part = gpu.parts(tmp_path, "cpu", tiny=True)["floors"]
    assert part.command[:3] == [sys.executable, "-m", "benchmarks.gpu_floors"]
    assert gpu_floors.main(part.command[3:]) == 0
    made = json.loads((tmp_path / "floors.json").read_text())
    assert made["copy"]["per_s"] > 0 and made["matrix"]["per_s"] > 0
    for row in made["rows"]:
        size = {"bf16": 2, "fp32": 4}
        moved = 16 * 1_008 * sum(size[name] for name in row["dtypes"].split("->"))
        assert row["bytes_per_s"] == pytest.approx(moved / row["p50_ms"] * 1e3)
        assert row["share_of_copy"] == row["bytes_per_s"] / made["copy"]["per_s"]
    assert "of copy" in capsys.readouterr().out


def test_a_training_step_by_phase_on_a_tiny_model(tmp_path: Path):
    part = gpu.parts(tmp_path, "cpu", tiny=True)["step"]
    assert gpu_step.main(part.command[3:]) == 0
    made = json.loads((tmp_path / "step.json").read_text())
    ours, *theirs = made["forms"]
    assert list(ours["phases_ms"]) == list(gpu_step.PHASES)
    assert ours["step_ms"] == pytest.approx(sum(ours["phases_ms"].values()))
    assert ours["tokens_per_s"] == pytest.approx(48 / ours["step_ms"] * 1e3)
    for other in theirs:
        # random weights and equal inputs: a few updates of 1e-6 move the loss by less
        if "failed" not in other:
            assert other["first_loss"] == pytest.approx(ours["first_loss"], rel=1e-2)


def test_a_form_of_the_step_that_fails_costs_no_other_its_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    class CompilationError(Exception):
        """As Triton's, no RuntimeError."""

    def refuse(self, hidden):
        raise CompilationError("at 1:0\nand the source")

    monkeypatch.setattr(gpu_step.Bench, "_fused_loss", refuse)
    plain = lambda self: lambda hidden: hidden.float().square().mean()
    monkeypatch.setattr(gpu_step.Bench, "_trl_loss", plain)
    part = gpu.parts(tmp_path, "cpu", tiny=True)["step"]
    assert gpu_step.main(part.command[3:]) == 1
    made = json.loads((tmp_path / "step.json").read_text())
    ours, *theirs = made["forms"]
    why = "failed with CompilationError: at 1:0"
    assert ours == {"form": "polaris", "failed": why}
    assert len(theirs) == 2 and all(t["step_ms"] > 0 for t in theirs)
    lines = gpu_summary.headlines({"step": made})
    assert f"step, polaris: not measured: {why}" in lines


def test_late_forms_of_the_step_are_named_and_ours_has_its_steps(tmp_path: Path):
    journal = Journal(tmp_path / "step.json", torch.device("cpu"), {"forms": []})
    gpu_step.measure(journal, tiny=True, limit_s=0.0)
    ours, *theirs = json.loads((tmp_path / "step.json").read_text())["forms"]
    assert ours["steps"] == 1
    assert {t["failed"] for t in theirs} == {"no time was left"}


def test_a_row_kernel_that_fails_costs_no_other_its_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    forms = gpu_floors._forms

    def refuse():
        raise RuntimeError("the probe refuses\nbecause")

    def late():
        calls: list[int] = []

        def run() -> None:
            calls.append(1)
            if len(calls) > 1:
                raise RuntimeError("a launch fails")

        return Call(run)

    def planted(source, out_dtype, *, writes):
        yield "refused", refuse
        yield "late", late
        yield from forms(source, out_dtype, writes=writes)

    monkeypatch.setattr(gpu_floors, "_forms", planted)
    part = gpu.parts(tmp_path, "cpu", tiny=True)["floors"]
    assert gpu_floors.main(part.command[3:]) == 1
    made = json.loads((tmp_path / "floors.json").read_text())
    assert {row["form"] for row in made["rows"]} >= {"torch"}
    assert made["failed"]["rows 16 x 1,008 bf16: refused"].endswith("the probe refuses")
    assert made["failed"]["rows 16 x 1,008 bf16: late"].endswith("a launch fails")
    assert "FAILED: rows 16 x 1,008 bf16: refused" in capsys.readouterr().out
    # what is there is not measured again
    assert gpu_floors.main(part.command[3:]) == 1
    assert json.loads((tmp_path / "floors.json").read_text())["rows"] == made["rows"]


def test_kernels_of_the_layers_on_tiny_shapes(tmp_path: Path):
    part = gpu.parts(tmp_path, "cpu", tiny=True)["layers"]
    assert gpu_layers.main(part.command[3:]) == 0
    made = json.loads((tmp_path / "layers.json").read_text())
    assert [(p["kind"], p["kernel"]) for p in made["parity"]] == [
        ("attention", "grouped_sdpa"), ("delta_net", "torch"),
    ]  # fmt: skip
    assert all("failed" not in p for p in made["parity"])
    assert len(made["times"]) == 2 * 2 * 2
    rule = [t for t in made["times"] if t["kind"] == "delta_net" and t["what"] == "both"]
    flops = 2 * 48 * (2 * 2 * 64 * 16 + 3 * 4 * 16 * 16 + 4 * 64 * (16 + 32))
    assert rule[0]["tflops"] == pytest.approx(3 * flops / rule[0]["p50_ms"] / 1e9)
    assert "failed" in made and not made["failed"]
    wrong = {"kind": "delta_net", "kernel": "fla", "failed": "wrong: d g 1.0e+00"}
    lines = gpu_summary.headlines({"layers": made | {"parity": [wrong]}})
    assert "delta_net fla: not measured: wrong: d g 1.0e+00" in lines
    assert any("delta_net torch, 2 rows of 48 tokens, forward and backward: " in x for x in lines)


def test_a_layers_kernel_that_fails_costs_no_other_its_times(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    whole = gpu_layers.candidates
    plain = dict((name, rule) for kind, name, rule in whole(CPU, torch.bfloat16))["torch"]
    shapes: list[int] = []

    def refuse(*args):
        raise RuntimeError("no such symbol")

    def late(*args):
        # right on the probe's rows, then not
        shapes.append(1)
        return plain(*args) if len(shapes) == 1 else refuse()

    def planted(device, dtype):
        yield "delta_net", "refused", refuse
        yield "delta_net", "late", late
        yield from whole(device, dtype)

    monkeypatch.setattr(gpu_layers, "candidates", planted)
    part = gpu.parts(tmp_path, "cpu", tiny=True)["layers"]
    assert gpu_layers.main(part.command[3:]) == 1
    made = json.loads((tmp_path / "layers.json").read_text())
    failed = {p["kernel"]: p["failed"] for p in made["parity"] if "failed" in p}
    assert failed == {"refused": "failed with RuntimeError: no such symbol"}
    assert {t["kernel"] for t in made["times"]} == {"grouped_sdpa", "torch"}
    assert len([key for key in made["failed"] if key.endswith(": delta_net late")]) == 4


def test_fla_is_not_tried_where_its_backward_is_known_to_be_wrong():
    known = lambda capability, triton, tilelang=False: gpu_layers.fla_refusal(
        capability, triton, has_tilelang=tilelang
    )
    assert "Triton 3.4 to 3.7.0; this is 3.6.0" in (known((9, 0), "3.6.0") or "")
    assert known((9, 0), "3.7.0") and known((9, 0), "3.4.0+git1234")
    assert known((9, 0), "3.7.1") is None and known((9, 0), "3.3.1") is None
    assert known((8, 0), "3.6.0") is None and known((9, 0), "3.6.0", True) is None


def test_flops_of_a_step_are_counted_from_the_weights():
    bench = gpu_step.Bench(torch.device("cpu"), tiny=True)
    embeddings = 512 * 64
    body = sum(p.numel() for p in bench.parameters) - embeddings
    # one layer of full attention with two heads of 32
    expected = 6 * body * 48 + 6 * embeddings * 44 + 6 * 1 * 2 * 32 * 48 * 48
    assert bench.flops() == expected


def test_headlines_name_goals_shares_and_what_was_not_measured():
    empty = gpu_summary.headlines({"head": None, "floors": None, "step": None})
    assert len(empty) == len(gpu_summary.GOALS) + 3
    assert all(line.endswith("not measured") for line in empty)

    def entry(provider: str, ms: float) -> dict:
        return {
            "case": gpu_summary.GOALS[0].case, "provider": provider, "p50_ms": ms,
            "share_of_floor": 100.0 / ms, "peak_extra_mib": 2_048.0,
        }  # fmt: skip

    entries = [entry("floor", 100), entry("polaris (cuda)", 105), entry("polaris (torch)", 300),
               entry("liger (triton)", 250), entry("trl", 120),
               entry("cut_cross_entropy", 101)]  # fmt: skip
    row = {"form": "cuda, one read", "shape": [2, 8], "dtypes": "bf16->bf16", "p50_ms": 1.0,
           "share_of_copy": 0.8}  # fmt: skip
    step = {"parameters": 2e9, "tokens": 16, "forms": [{"form": "polaris", "failed": "no memory"}]}
    head, *_, rows, _, failed = gpu_summary.headlines(
        {"head": {"entries": entries}, "floors": {"rows": [row]}, "step": step}
    )
    assert "polaris (cuda) 105.00 ms, 95.2% of the floor (goal 0.92: met), 2.00 GiB" in head
    assert head.endswith("1.14x faster than trl (goal 1.25: MISSED)")
    assert rows.endswith("80.0% of the copy rate (goal 0.85: MISSED)")
    assert failed == "step, polaris: not measured: no memory"


def test_the_roofline_has_a_point_for_each_measurement(tmp_path: Path):
    floors = {
        "copy": {"per_s": 4e12}, "matrix": {"per_s": 7e14},
        "rows": [{"form": "cuda, one read", "shape": [10, 100], "dtypes": "bf16->bf16",
                  "p50_ms": 2.0, "bytes_per_s": 10 * 100 * 4 / 2e-3}],
    }  # fmt: skip
    head = [
        {"case": "a", "task": "frozen", "provider": name, "p50_ms": ms, "dtype": "bf16",
         "shape": {"N": 8, "D": 4, "V": 16}}
        for name, ms in (("polaris (cuda)", 3.0), ("polaris (torch)", 5.0), ("trl", 1.0))
    ]  # fmt: skip
    result = {"head": {"entries": head}, "floors": floors, "machine": {"device": "chip"}}
    in_head, in_rows = gpu_roofline.points(result)
    assert (in_head.flops, in_head.seconds) == (2 * 2 * 8 * 4 * 16, 3e-3)
    assert in_head.num_bytes == 2 * 2 * (8 * 4 + 16 * 4 + 8 * 16)
    assert in_rows.num_bytes == pytest.approx(10 * 100 * 4)
    assert in_rows.intensity == pytest.approx(15 / 4)
    picture = gpu_roofline.draw(result, tmp_path / "roofline.svg").read_text()
    assert "chip: 4,000 GB/s copy, 700.0 TFLOP/s bf16" in picture
    with pytest.raises(ValueError, match="no floors"):
        gpu_roofline.draw({"head": None}, tmp_path / "none.svg")
