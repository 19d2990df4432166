"""DeepSpeed's shards on two ranks: the gradients, the guard, the checkpoints of one process."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from polaris_fast.config import Config, EngineConfig
from polaris_fast.engine.deepspeed import deepspeed_config
from polaris_fast.model.load import load_causal_lm
from polaris_fast.types import UserError
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
    status, output = run("tests.ranks.zero_steps", timeout_s=280)
    assert status == 0, output
    lines = [json.loads(line) for line in output.splitlines() if line.startswith('{"case"')]
    return {line["case"]: line for line in lines}


# Of a value in bfloat16 half the last of 8 bits is lost in each of a handful of roundings.
BFLOAT16 = 1e-2


def _named(cases: dict[str, Any], word: str) -> Iterator[tuple[str, dict[str, Any], bool]]:
    """Name, line, and whether it is of bfloat16, of all kinds that have the case."""
    found = {name: case for name, case in cases.items() if name.endswith(f": {word}")}
    assert found, "no case of this name"
    for name, case in found.items():
        yield name, case, "bfloat16" in name


def _assert_norms(name: str, case: dict[str, Any], is_rounded: bool, tolerance: float) -> None:
    limit = BFLOAT16 if is_rounded else tolerance
    for mine, other in case["norms"]:
        assert mine == pytest.approx(other, rel=limit), name


def test_every_stage_is_held_to_one_process_in_both_types_and_with_offload(
    cases: dict[str, Any],
) -> None:
    kinds = {name.partition(":")[0] for name in cases}
    for stage in (2, 3):
        for words in ("float32", "bfloat16", "bfloat16 offload"):
            assert f"qwen3_5 zero-{stage} {words}" in kinds


@pytest.mark.parametrize("word", ["first update", "late drop"])
def test_every_stage_uses_the_clipped_gradients_of_one_process(
    cases: dict[str, Any], word: str
) -> None:
    for name, case, is_rounded in _named(cases, word):
        assert case["moments"] < (BFLOAT16 if is_rounded else 1e-6), name
        _assert_norms(name, case, is_rounded, 1e-6)


def test_a_refused_update_leaves_the_weights_alone(cases: dict[str, Any]) -> None:
    for name, case, is_rounded in _named(cases, "refused"):
        assert case["skipped"] == [["exploding", "exploding"]], name
        assert case["moved"] == 0.0, name
        _assert_norms(name, case, is_rounded, 1e-4)


def test_gradients_that_are_no_numbers_are_refused_and_named(cases: dict[str, Any]) -> None:
    for name, case, _ in _named(cases, "no numbers"):
        assert case["skipped"] == "non_finite" and case["norm"] == math.inf, name
        assert case["moved"] == 0.0, name


@pytest.mark.parametrize("word", ["second update", "after an abandoned step", "after no numbers"])
def test_what_was_refused_or_abandoned_is_not_in_the_next_update(
    cases: dict[str, Any], word: str
) -> None:
    for name, case, is_rounded in _named(cases, word):
        assert case["skipped"] == [[None, None]] and case["moved"] > 0, name
        assert case["whole"] < (BFLOAT16 if is_rounded else 1e-5), name
        _assert_norms(name, case, is_rounded, 1e-4)


def test_a_rank_without_rows_stays_in_step_over_all_updates_of_a_batch(
    cases: dict[str, Any],
) -> None:
    for name, case, is_rounded in _named(cases, "two updates a batch"):
        assert case["idle"] == 1 and len(case["norms"]) == 2, name
        assert case["moments"] < 1e-5, name
        _assert_norms(name, case, is_rounded, 1e-5)


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


def test_the_first_stage_in_bfloat16_is_refused_before_deepspeed_is() -> None:
    one = EngineConfig(kind="deepspeed", zero_stage=1)
    with pytest.raises(ValueError, match=r"zero_stage 1 with dtype bfloat16.*zero_stage to 2"):
        Config(engine=one, dtype="bfloat16")
    Config(engine=one, dtype="float32")


def test_tiles_of_mlps_whose_weights_all_ranks_gather_are_refused() -> None:
    # ranks whose micro-batches differ in tokens would gather them another number of times
    for stage, is_refused in ((2, False), (3, True)):
        engine = EngineConfig.model_validate({"kind": "deepspeed", "zero_stage": stage})
        settings = {"engine": engine, "mlp_tile_tokens": 64}
        if is_refused:
            with pytest.raises(ValueError, match=r"mlp_tile_tokens \(64\).*zero_stage to 2"):
                Config.model_validate(settings)
        else:
            Config.model_validate(settings)


def test_the_first_stage_on_a_gpu_does_without_what_deepspeed_refuses_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for stage, overlaps in ((1, False), (2, True), (3, True)):
        engine = EngineConfig.model_validate({"kind": "deepspeed", "zero_stage": stage})
        found = deepspeed_config(Config(engine=engine, dtype="float32"), 2)
        assert found["zero_optimization"]["overlap_comm"] is overlaps


def test_a_json_file_may_not_take_what_the_guard_rests_on(tmp_path: Path) -> None:
    file = tmp_path / "ds.json"
    engine = EngineConfig(kind="deepspeed", zero_stage=2, deepspeed_config=str(file))

    def settings(dtype: Any, **own: Any) -> dict[str, Any]:
        file.write_text(json.dumps(own))
        return deepspeed_config(Config(engine=engine, dtype=dtype), 2)

    zero = {"stage": 2, "reduce_bucket_size": 1000}
    assert settings("bfloat16", zero_optimization=zero)["zero_optimization"].items() >= zero.items()
    assert settings("float32", bf16={"enabled": False})["bf16"] == {"enabled": False}
    for dtype, own, words in (
        (
            "bfloat16",
            {"zero_optimization": {"stage": 3}},
            r"n\.stage is 3.*set engine\.zero_",
        ),
        (
            "bfloat16",
            {"zero_optimization": {"compute_grad_norm": False}},
            "grad_norm is Fal",
        ),
        ("bfloat16", {"bf16": {"check_grad_overflow": False}}, "check_grad_overflow is False"),
        ("float32", {"bf16": {"enabled": True}}, r"bf16\.enabled is True.*set dtype"),
        ("float32", {"fp16": {"enabled": "auto"}}, r"fp16\.enabled is 'auto'.*set dtype"),
        ("float32", {"managed_gradient_accumulation": True}, "must be False"),
        ("float32", {"gradient_accumulation_steps": 4}, "must be 1"),
    ):
        with pytest.raises(UserError, match=words):
            settings(dtype, **own)


def test_without_a_launcher_the_remedy_is_named_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tmp_path / "run", **STAGES) == 2
    assert "engine.kind: 'deepspeed' runs under a launcher" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
