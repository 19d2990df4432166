"""The supervised warm start: the gradient of -log p, a run that learns, resumes and feeds train."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from polaris_fast.checkpoint import list_checkpoints
from polaris_fast.cli import main
from polaris_fast.config import Config
from polaris_fast.data import load_records
from polaris_fast.embedded import embedded_tokenizer
from polaris_fast.engine import SingleEngine
from polaris_fast.model.load import load_causal_lm
from polaris_fast.model.packed import packed_hidden_states
from polaris_fast.model.tiny import tiny_model
from polaris_fast.packing import pack_rows
from polaris_fast.prompts import PromptBuilder, load_tokenizer
from polaris_fast.sft.rows import story_records, story_row
from polaris_fast.sft.run import SupervisedRun
from polaris_fast.sft.settings import supervised
from polaris_fast.slots import SlotTrainer
from polaris_fast.stopping import StopRequested
from polaris_fast.types import UserError
from tests.runs import exact, metrics_of, train

SMALL = {
    "dtype": "float32",
    "sft.rows_per_step": "8",
    "sft.learning_rate": "3e-3",
    "max_completion_length": "96",
    "max_prompt_length": "128",
    "data.max_target_words": "40",
    "data.eval_fraction": "0.2",
    "save_steps": "2",
    "report_to": "[]",
    "progress": "false",
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny untrained model and its tokenizer, saved as any other."""
    folder = tmp_path_factory.mktemp("base")
    config = Config()
    tokenizer = embedded_tokenizer(config, load_records(config.data))
    model: Any = tiny_model(
        "qwen3_5", vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def sft(base: Path, run: Path, **overrides: Any) -> int:
    keys = {k.replace("__", "."): str(v) for k, v in overrides.items()}
    settings = SMALL | {"model_name_or_path": str(base), "output_dir": str(run)} | keys
    if "resume_from_checkpoint" not in keys:
        settings = {"config": "default_cpu"} | settings
    return main(["sft", *(f"--{key}={value}" for key, value in settings.items())])


@pytest.fixture(scope="module")
def finished(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("sft") / "run"
    assert sft(base, run, max_steps=8) == 0
    return run


def test_the_gradient_is_that_of_minus_log_p(base: Path) -> None:
    config = supervised(
        Config.model_validate(
            {
                "dtype": "float32",
                "temperature": 0.7,
                "hri": {"mode": "luffy"},
                "beta": 0.1,
                "entropy_coef": 0.01,
                "max_completion_length": 96,
            }
        )
    )
    model: Any = load_causal_lm(base, dtype=torch.float32)
    builder = PromptBuilder(load_tokenizer(str(base)), config)
    records = [r for r in load_records(config.data) if r.target_word_count <= 30][:5]
    rows = [story_row(r, builder, 0, n) for n, r in enumerate(story_records(records, builder))]
    targets = float(sum(len(row.completion_ids) for row in rows))

    slots = SlotTrainer(SingleEngine(model, config, config.loss_spec(), total_updates=1), config)
    slots.first_pass([rows[:2], rows[2:]], targets)
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    told = -float(slots.take_sums().loss["sum_logp"]) / targets
    slots.end_step()

    batch = pack_rows(rows)
    hidden = packed_hidden_states(model, batch)[batch.logit_positions]
    logits = (hidden @ model.lm_head.weight.T).double()
    loss = torch.nn.functional.cross_entropy(logits, batch.targets)
    model.zero_grad()
    loss.backward()
    assert told == pytest.approx(loss.item(), rel=1e-5)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-4, atol=1e-6, msg=name)


def test_the_loss_falls_on_training_and_held_out_stories(finished: Path) -> None:
    rows = metrics_of(finished)
    assert [row["step"] for row in rows] == list(range(1, 9))
    assert rows[-1]["sft/loss"] < rows[0]["sft/loss"] - 0.3
    held_out = [row["sft/eval_loss"] for row in rows if "sft/eval_loss" in row]
    assert held_out[-1] < held_out[0]
    assert "sft/eval_loss" in rows[-1]
    assert json.loads((finished / "summary.json").read_text())["status"] == "finished"
    assert "Supervised loss" in (finished / "report.html").read_text()


def test_a_resumed_run_repeats_the_uninterrupted_one(
    base: Path, finished: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    assert sft(base, run, max_steps=4) == 0
    resumed = ["sft", f"--resume_from_checkpoint={run}", "--max_steps=8"]
    assert main(resumed) == 0
    assert exact(run) == exact(finished)
    mine, theirs = (
        AutoModelForCausalLM.from_pretrained(list_checkpoints(folder)[-1]).state_dict()
        for folder in (run, finished)
    )
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_a_stop_in_the_held_out_pass_keeps_the_steps_row(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(run: SupervisedRun) -> float:
        if run.state.step:
            raise StopRequested("SIGINT")
        return 0.0

    monkeypatch.setattr(SupervisedRun, "_held_out_loss", stopped)
    assert sft(base, tmp_path / "run", max_steps=1) == 130
    (row,) = metrics_of(tmp_path / "run")
    assert row["step"] == 1 and "sft/eval_loss" not in row


def test_train_starts_from_its_checkpoint(finished: Path, tmp_path: Path) -> None:
    checkpoint = list_checkpoints(finished)[-1]
    assert train(tmp_path / "run", model_name_or_path=checkpoint, max_steps=1) == 0
    assert len(metrics_of(tmp_path / "run")) == 1


def test_train_does_not_go_on_with_a_supervised_run(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its moments, its learning rate and its place in the data are of another loss."""
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    assert main(["train", f"--resume_from_checkpoint={run}", "--max_steps=9"]) == 2
    said = capsys.readouterr().err
    assert "is of a run of polaris sft" in said and "--model_name_or_path" in said
    assert metrics_of(run) == metrics_of(finished)


def test_settings_of_rollouts_are_no_matter(base: Path, tmp_path: Path) -> None:
    keys = {"hri__mode": "off", "num_generations": 2, "max_steps": 1}
    assert sft(base, tmp_path / "run", **keys) == 0


def test_the_report_excuses_no_quality_where_nothing_was_judged(finished: Path) -> None:
    assert "text-statistics heuristic" not in (finished / "report.html").read_text()


def test_adapters_are_trained_and_merged(base: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    run = tmp_path / "run"
    assert sft(base, run, max_steps=2, lora__r=4, dtype="float32") == 0
    assert (list_checkpoints(run)[-1] / "adapter").is_dir()
    assert metrics_of(run)[1]["sft/loss"] < metrics_of(run)[0]["sft/loss"] + 0.2


def test_what_cannot_be_trained_on_is_named_first(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sft(base, tmp_path / "a", model_name_or_path="null") == 2
    assert "sft needs a model" in capsys.readouterr().err
    data = tmp_path / "prompts.jsonl"
    data.write_text('{"prompt": "A lamp.", "target_word_count": 30}\n')
    assert sft(base, tmp_path / "b", data__path=data, data__eval_fraction=0) == 2
    assert "has a story to train on" in capsys.readouterr().err
    assert not (tmp_path / "b").exists()


def test_a_record_too_long_is_refused(base: Path) -> None:
    config = supervised(Config(max_completion_length=16))
    builder = PromptBuilder(load_tokenizer(str(base)), config)
    with pytest.raises(UserError, match="max_completion_length"):
        story_records(load_records(config.data), builder)


def test_a_held_out_story_too_long_is_refused_before_anything_is_made(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    held_out = tmp_path / "held_out.jsonl"
    record = {"prompt": "A lamp.", "target_word_count": 400, "story": "She lit it. " * 130}
    held_out.write_text(json.dumps(record))
    keys = {"data__eval_path": held_out, "data__eval_fraction": 0}
    assert sft(base, tmp_path / "run", max_completion_length=96, **keys) == 2
    assert "max_completion_length: the human story of record" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("command", [sft, lambda base, run: train(run, model_name_or_path=base)])
def test_rows_longer_than_the_models_positions_end_a_run_before_its_folder_is_made(
    base: Path, tmp_path: Path, command: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    short = tmp_path / "short"
    shutil.copytree(base, short, ignore=shutil.ignore_patterns("*.safetensors"))
    config = json.loads((short / "config.json").read_text())
    (short / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 32}))
    assert command(short, tmp_path / "run") == 2
    assert "was made for 32 (max_position_embeddings)" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
