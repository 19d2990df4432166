"""The whole way, small: rollouts, judge over HTTP, human rows, packed loss, checkpoints, report."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import yaml

from polaris_fast.checkpoint import list_checkpoints
from polaris_fast.cli import main
from polaris_fast.config import Config, DataConfig, JudgeConfig
from polaris_fast.data import load_samples
from polaris_fast.embedded import build_tokenizer
from polaris_fast.idle_settings import check_paid_data
from polaris_fast.model.tiny import tiny_model
from polaris_fast.types import UserError
from tests.runs import SMALL, exact, metrics_of, train


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four steps on the embedded model, with every checkpoint kept."""
    run = tmp_path_factory.mktemp("finished") / "run"
    assert train(run, max_steps=4, data__eval_fraction=0.2, eval_on_end="true") == 0
    return run


def _base(folder: Path, family: Any) -> Path:
    tokenizer = build_tokenizer([r.story or "" for r in load_samples("micro")], 600)
    tiny_model(family, vocab_size=len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_run_leaves_metrics_stories_checkpoints_and_a_report(finished: Path) -> None:
    lines = metrics_of(finished)
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert next(iter(lines[0])) == "step"
    for name in (
        "reward", "reward_std", "frac_reward_zero_std", "completions/mean_length", "entropy",
        "clip_ratio/high_mean", "length/abs_log_ratio", "grad_norm", "loss", "learning_rate",
        "hri/gap", "hri/human_wins", "hri/loss", "policy/loss", "perf/rollout_s", "perf/train_s",
        "perf/judge_exposed_s", "perf/tokens_per_s", "judge/scored",
    ):  # fmt: skip
        assert name in lines[1], name
    stories = [
        json.loads(x) for x in (finished / "stories/step-000002.jsonl").read_text().splitlines()
    ]
    assert len(stories) == 8
    assert sorted(s["kind"] for s in stories) == ["human"] * 2 + ["policy"] * 6
    assert len(list_checkpoints(finished)) == 4
    assert "<svg" in (finished / "report.html").read_text()
    assert json.loads((finished / "summary.json").read_text())["status"] == "finished"
    held_out = json.loads((finished / "eval-end.json").read_text())
    assert held_out["num_stories"] == 4 * held_out["num_prompts"] == len(held_out["stories"]) > 0
    assert yaml.safe_load((finished / "config.yaml").read_text())["max_steps"] == 4


def test_every_scored_row_is_counted_and_on_policy_ratios_are_one(finished: Path) -> None:
    for line in metrics_of(finished):
        assert line["rows/failed"] == 0
        assert line["ratio/mean"] == pytest.approx(1.0) and line["clip_ratio/region_mean"] == 0


def test_trainer_and_rollout_engine_agree_on_every_sampled_token(finished: Path) -> None:
    """Left-padded cached decoding and the packed forward are the same distribution."""
    for line in metrics_of(finished):
        assert 0 < line["sampling/sampling_logp_difference/mean"] < 1e-5
        assert line["sampling/sampling_logp_difference/max"] < 1e-3


def test_the_checkpoint_loads_in_a_process_without_our_code_and_generates(finished: Path) -> None:
    code = (
        "import sys, torch\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        "model = AutoModelForCausalLM.from_pretrained(sys.argv[1])\n"
        "tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])\n"
        "ids = tokenizer.apply_chat_template([{'role': 'user', 'content': 'Hello.'}],\n"
        "    add_generation_prompt=True, return_tensors='pt', return_dict=True)\n"
        "out = model.generate(**ids, max_new_tokens=5)\n"
        "assert out.shape[1] > ids['input_ids'].shape[1]\n"
        "assert not any(name.startswith('polaris') for name in sys.modules)\n"
    )
    checkpoint = list_checkpoints(finished)[-1]
    done = subprocess.run(
        [sys.executable, "-c", code, str(checkpoint)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_polaris_generate_writes_a_story_with_it(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["generate", "--model", str(finished), "--prompt", "Write about the sea."]
    assert main([*arguments, "--words", "10", "--seed", "3"]) == 0
    first = capsys.readouterr().out
    assert main([*arguments, "--words", "10", "--seed", "3"]) == 0
    assert first == capsys.readouterr().out and first.strip()


def test_polaris_generate_tells_of_a_story_that_was_cut_off(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["generate", "--model", str(finished), "--prompt", "Write about the sea."]
    assert main([*arguments, "--words", "10", "--max-tokens", "2", "--num", "2"]) == 0
    told = capsys.readouterr().err
    assert (
        "story 1 was cut off at 2 tokens" in told and "story 2" in told and "--max-tokens" in told
    )


def test_a_resumed_run_repeats_the_same_numbers_bit_for_bit(finished: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    _copy_until(finished, run, step=2)
    assert train(run, max_steps=4, data__eval_fraction=0.2, resume_from_checkpoint=run) == 0
    assert exact(run) == exact(finished)
    a, b = (torch.load(r / "checkpoint-4/engine.pt", weights_only=True) for r in (run, finished))
    for name, state in a["optimizer"]["state"].items():
        other = b["optimizer"]["state"][name]
        assert all(torch.equal(state[k], other[k]) for k in ("exp_avg", "exp_avg_sq"))


def test_a_run_that_repeats_another_finds_all_its_scores_in_the_journal(finished: Path) -> None:
    run = finished.parent / "again"
    assert train(run, max_steps=2, data__eval_fraction=0.2) == 0
    assert exact(run) == exact(finished)[:2]
    for line in metrics_of(run):
        assert line["judge/journal_hits"] >= line["judge/scored"] == 8
        assert "judge/calls" not in line


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT], ids=["kill -9", "Ctrl-C"])
def test_a_stopped_run_goes_on_where_it_was(
    finished: Path, tmp_path: Path, number: signal.Signals
) -> None:
    run = tmp_path / "run"
    settings = SMALL | {"output_dir": str(run), "max_steps": "4", "data.eval_fraction": "0.2"}
    command = [sys.executable, "-m", "polaris_fast.train"]
    process = subprocess.Popen(
        [*command, *(f"--{k}={v}" for k, v in settings.items())],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    _wait_for(run / "checkpoint-2", process)
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    if number is signal.SIGINT:
        assert process.returncode in (0, 130) and "Traceback" not in output
        assert (run / "report.html").is_file()
    assert train(run, max_steps=4, data__eval_fraction=0.2, resume_from_checkpoint=run) == 0
    assert exact(run) == exact(finished)
    assert not list(run.glob(".checkpoint*"))


@pytest.mark.parametrize("family", ["qwen3_5", "qwen3", "llama"])
def test_every_family_trains_from_a_local_folder(tmp_path: Path, family: str) -> None:
    base = _base(tmp_path / "base", family)
    run = tmp_path / "run"
    assert train(run, model_name_or_path=base, max_steps=1, max_completion_length=160) == 0
    assert metrics_of(run)[0]["grad_norm"] > 0
    assert not (run / "base").exists()


def test_a_folder_of_text_files_is_enough_data(tmp_path: Path) -> None:
    folder = tmp_path / "stories"
    folder.mkdir()
    for i, record in enumerate(load_samples("micro")[:5]):
        (folder / f"tale-{i}.txt").write_text(record.story or "")
    settings = {"data__path": folder, "data__max_target_words": 80, "max_completion_length": 200}
    assert train(tmp_path / "run", max_steps=2, **settings) == 0
    assert len(metrics_of(tmp_path / "run")) == 2


@pytest.mark.parametrize(
    "settings",
    [
        {"num_iterations": 2},
        {"beta": 0.05},
        {"scale_rewards": "batch"},
        {"scale_rewards": "none", "loss_type": "dr_grpo"},
        {"hri__mode": "luffy"},
        {"hri__mode": "off"},
        {"hri__fixed_reward": 1.0},
        {"loss_type": "gspo", "num_iterations": 2},
        {"deterministic": "false"},
        {"dtype": "bfloat16", "gradient_checkpointing": "selective"},
        {"gradient_checkpointing": "true"},
        {"zero_spread_resample_rounds": 1, "reward__function": "tests.user_rewards:constant"},
    ],
    ids=lambda s: " ".join(f"{k}={v}" for k, v in s.items()),
)
def test_every_switch_trains_a_step(finished: Path, tmp_path: Path, settings: Any) -> None:
    run = tmp_path / "run"
    assert train(run, model_name_or_path=finished / "base", **settings) == 0
    line = metrics_of(run)[-1]
    if "num_iterations" in settings:
        assert line["ratio/max"] > 1.0
    if "beta" in settings:
        assert line["kl"] > 0
    if settings.get("hri__mode") == "off":
        assert "hri/gap" not in line
    if "zero_spread_resample_rounds" in settings:
        assert line["groups/dropped_zero_spread"] == 4 and line["groups/trained"] == 0
    else:
        assert line["grad_norm"] > 0


def test_prompts_alone_train_the_embedded_model_only_without_its_warm_start(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "prompts.jsonl"
    lines = [{"prompt": f"Tell of the sea, {n}.", "target_word_count": 20} for n in range(3)]
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    keys = {"data__path": data, "max_steps": 1}
    assert train(tmp_path / "run", **keys) == 2
    error = capsys.readouterr().err
    assert "embedded.warm_start_steps (2): " in error and error.count("\n") == 1
    assert train(tmp_path / "run", **keys, embedded__warm_start_steps=0) == 0
    assert len(metrics_of(tmp_path / "run")) == 1


@pytest.mark.parametrize("function", ["length_of", "length_of_async"])
def test_a_users_own_reward_replaces_the_judge(
    finished: Path, tmp_path: Path, function: str
) -> None:
    run = tmp_path / "run"
    reward = {"reward__function": f"tests.user_rewards:{function}"}
    assert train(run, model_name_or_path=finished / "base", max_steps=1, **reward) == 0
    rows = [json.loads(x) for x in (run / "stories/step-000001.jsonl").read_text().splitlines()]
    assert all(r["reward"]["total"] == len(r["story"].split()) / 10 for r in rows)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"learning_rat": "1"}, "unknown key 'learning_rat'; did you mean 'learning_rate'?"),
        ({"model_name_or_path": "./no-such-model"}, "there is no folder './no-such-model'"),
        ({"data.path": "./no-such-data"}, "no such file or folder './no-such-data'"),
        ({"num_generations": "3"}, "num_generations must be at least 4"),
        ({"max_prompt_length": "3"}, "max_prompt_length: the prompt of record"),
        ({"judge.base_url": "http://127.0.0.1:9/v1"}, "judge.base_url"),
        ({"reward.function": "nowhere:f"}, "reward.function"),
        ({"resume_from_checkpoint": "./nothing"}, "resume_from_checkpoint: no such folder"),
        ({"resume_from_checkpoint": __file__}, "resume_from_checkpoint: no such folder"),
        ({"data.length_sentence": "'{words} {x}'"}, "length_sentence must contain '{words}'"),
        ({"max_steps": "0"}, "max_steps must be -1 or at least 1"),
        ({"data.thinking": "true"}, "hri.missing_reasoning: record"),
    ],
    ids=lambda x: next(iter(x)) if isinstance(x, dict) else "",
)
def test_bad_input_is_one_line_and_exit_status_2(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    settings: dict[str, str],
    message: str,
) -> None:
    arguments = SMALL | {"output_dir": str(tmp_path / "run")} | settings
    start = time.perf_counter()
    assert main(["train", *(f"--{k}={v}" for k, v in arguments.items())]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and "Traceback" not in error
    assert time.perf_counter() - start < 20


def test_a_second_run_never_mixes_with_the_first(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = exact(finished)
    assert train(finished, max_steps=1) == 2
    assert "holds another run's steps" in capsys.readouterr().err
    assert exact(finished) == before and len(list_checkpoints(finished)) == 4


def test_a_resumed_run_does_not_go_into_the_folder_of_a_third(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    shutil.copytree(finished, other)
    resumed = train(other, max_steps=5, resume_from_checkpoint=finished / "checkpoint-1")
    assert resumed == 2 and "holds another run's steps" in capsys.readouterr().err
    assert len(list_checkpoints(other)) == 4


def test_a_run_killed_before_its_first_checkpoint_starts_anew_in_its_folder(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("seed: 77\n")
    (tmp_path / "metrics.jsonl").write_text('{"step": 9}\n')
    assert train(tmp_path, max_steps=1) == 0
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["seed"] != 77
    assert [line["step"] for line in metrics_of(tmp_path)] == [1]
    assert (tmp_path / "aborted-1" / "config.yaml").read_text() == "seed: 77\n"


def test_resuming_from_an_earlier_checkpoint_keeps_the_new_work(
    finished: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    resumed = main(
        [
            "train",
            f"--resume_from_checkpoint={run / 'checkpoint-1'}",
            "--max_steps=2",
            "--save_total_limit=1",
        ]
    )
    assert resumed == 0
    assert [p.name for p in list_checkpoints(run)] == ["checkpoint-2"]
    assert sorted(p.name for p in (run / "superseded").iterdir()) == [
        f"checkpoint-{n}" for n in (2, 3, 4)
    ]
    assert exact(run) == exact(finished)[:2]
    assert main(["generate", "--model", str(run), "--prompt", "The sea.", "--words", "5"]) == 0


def test_a_resumed_run_keeps_its_own_settings_and_refuses_others(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    _copy_until(finished, run, step=2)
    resume = ["train", f"--resume_from_checkpoint={run}"]
    assert main([*resume, "--seed=9"]) == 2
    assert "seed: the run in" in capsys.readouterr().err
    assert main([*resume, "--max_steps=3", "--learning_rate=5e-5"]) == 0
    lines = metrics_of(run)
    assert [line["learning_rate"] for line in lines] == [1e-3, 1e-3, 5e-5]
    assert exact(finished)[2]["reward"] == lines[2]["reward"]


def test_a_checkpoint_away_from_its_run_is_resumed_only_under_a_named_configuration(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lone = tmp_path / "superseded" / "checkpoint-2"
    shutil.copytree(finished / "checkpoint-2", lone)
    assert main(["train", f"--resume_from_checkpoint={lone}", "--max_steps=3"]) == 2
    error = capsys.readouterr().err
    assert "resume_from_checkpoint" in error and "--config" in error
    assert not (lone.parent / "metrics.jsonl").exists()


def test_the_latest_link_can_be_resumed_and_stays_a_link(finished: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    (tmp_path / "latest").symlink_to("run")
    latest = tmp_path / "latest"
    assert main(["train", f"--resume_from_checkpoint={latest}", "--max_steps=5"]) == 0
    assert latest.resolve() == run and len(metrics_of(latest)) == 5


def test_a_resume_that_fails_leaves_the_run_its_settings(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    _copy_until(finished, run, step=2)
    before = (run / "config.yaml").read_text()
    resume = ["train", f"--resume_from_checkpoint={run}", "--max_steps=3"]
    with monkeypatch.context() as failing:
        failing.setattr("polaris_fast.trainer.build_parts", mock.Mock(side_effect=MemoryError))
        with pytest.raises(MemoryError):
            main([*resume, "--learning_rate=5e-5"])
    assert (run / "config.yaml").read_text() == before
    seconds = json.loads((run / "summary.json").read_text())["wall_s"]
    assert main(resume) == 0
    assert [line["learning_rate"] for line in metrics_of(run)] == [1e-3] * 3
    assert json.loads((run / "summary.json").read_text())["wall_s"] > seconds


def test_a_new_run_starts_from_what_was_the_latest_when_it_began(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(finished, tmp_path / "runs" / "first")
    (tmp_path / "runs" / "latest").symlink_to("first")
    monkeypatch.chdir(tmp_path)
    base = "runs/latest/checkpoint-4"
    assert train(Path("runs/second"), model_name_or_path=base, max_steps=1) == 0
    assert Path("runs/latest").resolve().name == "second"
    stored = yaml.safe_load(Path("runs/second/config.yaml").read_text())
    assert stored["model_name_or_path"] == "runs/first/checkpoint-4"


def test_settings_that_do_nothing_with_this_data_are_named(
    finished: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    keys = {"reward__blank_min_words": 40, "reward__length_reward": "band", "eval_on_end": "true"}
    assert train(tmp_path / "run", model_name_or_path=finished / "checkpoint-4", **keys) == 0
    told = " ".join("".join(capfd.readouterr()).split())
    assert "data.path (null): " in told and "bundled demo stories" in told
    assert "eval_on_end: there are no held-out prompts to evaluate on" in told
    assert "reward.blank_min_words (40): " in told and "counts as blank" in told
    assert "reward.min_target_words (150): " in told


@pytest.mark.parametrize(
    ("judge", "pays"),
    [
        ({"base_url": "https://judge.example/v1", "price_input": 1, "price_output": 2}, True),
        ({"base_url": "https://judge.example/v1", "api_key_env": "POLARIS_TEST_KEY"}, True),
        ({"base_url": "https://judge.example/v1", "api_key_env": "POLARIS_TEST_NO_KEY"}, False),
        ({"base_url": "http://localhost:8000/v1", "api_key_env": "POLARIS_TEST_KEY"}, False),
        ({}, False),
    ],
)
def test_no_paid_judge_scores_the_bundled_stories_because_a_path_was_forgotten(
    judge: dict[str, Any], pays: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POLARIS_TEST_KEY", "secret")
    config = Config(model_name_or_path="some/model", judge=JudgeConfig(**judge))
    check_paid_data(config.model_copy(update={"data": DataConfig(path="stories/")}))
    check_paid_data(config.model_copy(update={"model_name_or_path": None}))
    with pytest.raises(UserError, match=r"^data\.path \(null\)") if pays else nullcontext():
        check_paid_data(config)


def test_dry_run_prints_the_resolved_config(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--dry-run", "--hri.weight", "0.3"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["hri"]["weight"] == 0.3


def test_dry_run_finds_records_that_the_configuration_cannot_use(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "story.md").write_text("# The Lamp\n\nShe lit it.\n")
    own = ["train", "--config=polaris_9b", f"--data.path={tmp_path}", "--dry-run"]
    assert main(own) == 2
    assert "hri.missing_reasoning: record 'story'" in capsys.readouterr().err
    assert main([*own, "--data.thinking=false"]) == 0


def test_the_rank_that_a_launcher_appends_is_no_setting(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert main(["train", "--local_rank=0", "--dry-run"]) == 0
    monkeypatch.delenv("LOCAL_RANK")
    assert main(["train", "--local_rank=0", "--dry-run"]) == 2


def test_a_training_that_wanders_off_is_refused_not_applied(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from polaris_fast.engine import SingleEngine

    healthy = SingleEngine.backward

    def poisoned(self: Any, batch: Any, rows: Any) -> Any:
        out = healthy(self, batch, rows)
        if self.scheduler.last_epoch == 1:
            self.weights.masters[0].grad.fill_(float("nan"))
        return out

    monkeypatch.setattr(SingleEngine, "backward", poisoned)
    run = tmp_path / "run"
    assert train(run, model_name_or_path=finished / "base", max_steps=3) == 0
    assert [line["guard/skipped"] for line in metrics_of(run)] == [0, 1, 0]
    model = torch.load(run / "checkpoint-3/engine.pt", weights_only=True)
    assert all(torch.isfinite(s["exp_avg"]).all() for s in model["optimizer"]["state"].values())


def _copy_until(source: Path, run: Path, step: int) -> None:
    """The folder as a kill after `step` and before the next checkpoint would leave it."""
    shutil.copytree(source, run, ignore=shutil.ignore_patterns("checkpoint-3", "checkpoint-4"))
    (run / ".checkpoint-3.partial").mkdir()
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "rew')  # torn by the kill


def _wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 60
    while not path.is_dir():
        if process.poll() is not None or time.monotonic() > deadline:
            raise AssertionError(process.communicate()[0])
        time.sleep(0.01)
