"""A resumed run shares with the run it goes on with whatever its checkpoints depend on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from polaris_fast.config import Config
from polaris_fast.run_folder import (
    check_same_run,
    check_unused,
    open_run,
    put_aside_aborted,
    write_config,
)
from polaris_fast.story_log import write_stories
from polaris_fast.types import UserError

LORA = {"lora": {"r": 8, "alpha": 32.0, "target_modules": ["q_proj"]}}
ZERO = {"engine": {"kind": "deepspeed", "zero_stage": 2}}


def resume(folder: Path, before: dict[str, Any], after: dict[str, Any]) -> None:
    open_run(folder / "run")
    write_config(folder / "run", Config.model_validate(before))
    check_same_run(Config.model_validate(after), folder / "run" / "checkpoint-1")


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        (LORA, {"lora": LORA["lora"] | {"r": 4}}, r"lora\.r: the run in .* has 8, this one 4"),
        (LORA, {}, r"lora\.r: the run in .* has 8, this one 0"),
        (LORA, {"lora": LORA["lora"] | {"alpha": 2000.0}}, r"lora\.alpha: .* 32\.0, .* 2000\.0"),
        (LORA, {"lora": LORA["lora"] | {"target_modules": ["v_proj"]}}, r"lora\.target_modules: "),
        (ZERO, {}, r"engine\.kind: the run in .* has 'deepspeed', this one 'replicated'"),
        (ZERO, {"engine": ZERO["engine"] | {"zero_stage": 3}}, r"engine\.zero_stage: .* 2, .* 3"),
        ({}, {"optim": "adamw_8bit"}, r"optim: the run in .* has 'adamw_torch'"),
        ({}, {"seed": 9}, r"seed: the run in .* has 0, this one 9"),
        ({}, {"data": {"thinking": True}}, r"data\.thinking: the run in .* this one True"),
    ],
)
def test_a_resume_that_would_be_another_run_names_the_setting(
    before: dict[str, Any], after: dict[str, Any], words: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=rf"^{words}"):
        resume(tmp_path, before, after)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (LORA, LORA),
        (ZERO, ZERO),
        ({}, {"learning_rate": 1e-5, "max_steps": 9}),
        (LORA, {"lora": LORA["lora"] | {"dropout": 0.1}}),
        ({}, {"lora": {"alpha": 16.0}, "engine": {"zero_stage": 3}}),  # neither has an effect
    ],
)
def test_a_resume_may_change_what_no_checkpoint_depends_on(
    before: dict[str, Any], after: dict[str, Any], tmp_path: Path
) -> None:
    resume(tmp_path, before, after)


def test_what_a_run_without_a_checkpoint_left_is_put_aside(tmp_path: Path) -> None:
    left = {"config.yaml", "metrics.jsonl", "eval-start.json", "best.json"}
    for n in (1, 2):
        for name in left:
            (tmp_path / name).write_text('{"step": 1}')
        (tmp_path / "best").symlink_to("checkpoint-1")
        check_unused(tmp_path)
        assert put_aside_aborted(tmp_path) == tmp_path / f"aborted-{n}"
        assert {p.name for p in (tmp_path / f"aborted-{n}").iterdir()} == left | {"best"}
    assert {p.name for p in tmp_path.iterdir()} == {"aborted-1", "aborted-2"}
    assert put_aside_aborted(tmp_path) is None


def test_a_story_with_half_a_surrogate_pair_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("polaris_fast.story_log.row_to_dict", lambda row: {"reason": "a\ud800"})
    write_stories(tmp_path, 1, [None])  # type: ignore[list-item]
    assert (tmp_path / "stories/step-000001.jsonl").read_text() == '{"reason": "a?"}\n'
