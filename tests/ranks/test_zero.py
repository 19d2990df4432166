"""DeepSpeed's shards on two ranks: the gradients, the guard, the checkpoints of one process."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from polaris_fast.config import EngineConfig
from polaris_fast.model.load import load_causal_lm
from tests.ranks.launch import run
from tests.ranks.test_runs import run_arguments
from tests.runs import metrics_of, train

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        find_spec("deepspeed") is None, reason="needs deepspeed: `make test` installs it"
    ),
]
STAGES = {"engine__kind": "deepspeed", "engine__zero_stage": 3}


@pytest.fixture(scope="module")
def cases() -> dict[str, Any]:
    status, output = run("tests.ranks.zero_steps")
    assert status == 0, output
    lines = [json.loads(line) for line in output.splitlines() if line.startswith('{"case"')]
    return {line["case"]: line for line in lines}


def _named(cases: dict[str, Any], word: str) -> dict[str, Any]:
    found = {name: case for name, case in cases.items() if word in name}
    assert found and len(found) % 3 == 0, "each stage, for each model"
    return found


@pytest.mark.parametrize("word", ["first update", "late drop"])
def test_every_stage_uses_the_clipped_gradients_of_one_process(
    cases: dict[str, Any], word: str
) -> None:
    for name, case in _named(cases, word).items():
        assert case["moments"] < 1e-6, name
        assert case["norm"][0] == pytest.approx(case["norm"][1], rel=1e-6), name


def test_a_refused_update_leaves_the_weights_alone(cases: dict[str, Any]) -> None:
    for name, case in _named(cases, "refused").items():
        assert case["skipped"] == ["exploding", "exploding"], name
        assert case["moved"] == 0.0, name
        assert case["norm"][0] == pytest.approx(case["norm"][1], rel=1e-4), name


def test_an_abandoned_step_leaves_no_gradient(cases: dict[str, Any]) -> None:
    for name, case in _named(cases, "abandoned").items():
        assert case["skipped"] == [None, None] and case["moved"] > 0, name
        assert case["norm"][0] == pytest.approx(case["norm"][1], rel=1e-4), name


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("zero") / "run"
    status, output = run("polaris_fast.train", *run_arguments(folder, **STAGES))
    assert status == 0, output
    return folder


def test_a_sharded_run_writes_checkpoints_that_load_anywhere(
    whole_run: Path, tmp_path: Path
) -> None:
    assert train(tmp_path / "one") == 0
    texts = []
    for folder in (whole_run, tmp_path / "one"):
        model = load_causal_lm(folder / "checkpoint-2", dtype=torch.float32)
        ids = model.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=24, do_sample=False)
        texts.append(ids.tolist())
    assert texts[0] == texts[1]


def test_a_sharded_run_resumes_exactly(whole_run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    status, output = run("polaris_fast.train", *run_arguments(folder, max_steps=1, **STAGES))
    assert status == 0, output
    resumed = [f"--resume_from_checkpoint={folder}", *run_arguments(folder, **STAGES)]
    status, output = run("polaris_fast.train", *resumed)
    assert status == 0, output
    whole, again = metrics_of(whole_run)[1], metrics_of(folder)[1]
    for name in ("reward", "grad_norm", "policy/loss", "entropy"):
        assert again[name] == whole[name], name


def test_weights_in_cpu_memory_need_stage_3() -> None:
    with pytest.raises(ValueError, match=r"offload_param needs zero_stage 3, got 2"):
        EngineConfig(kind="deepspeed", zero_stage=2, offload_param=True)


def test_without_a_launcher_the_remedy_is_named_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tmp_path / "run", **STAGES) == 2
    assert "engine.kind: 'deepspeed' runs under a launcher" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
