"""`make gpu` without a GPU: its plan, its limits, and each part's command on tiny shapes."""

import json
import sys
from pathlib import Path

import pytest

from benchmarks import gpu, head
from benchmarks.head_cases import SIZES, HeadCase


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
    assert gpu.run(python(""), 1.0)["reason"] == f"{gpu.LIMIT_S:.0f} s are over"


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
    assert list(plan) == ["build", "peers", "tests", "head", "training"]
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
