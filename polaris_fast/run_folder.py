"""The folder of a run: a new one, or the one a resumed run goes on in; never a mixture of two."""

from __future__ import annotations

import json
import os
import shutil
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import Any

import yaml

from .best import forget_best_after
from .checkpoint import list_checkpoints
from .config import Config
from .config_file import dump_config
from .metrics import METRICS_FILE
from .story_log import drop_stories_after
from .types import UserError

CONFIG_FILE = "config.yaml"
# What a resumed run must share with the run it goes on with, keys and whole sections: its rows
# depend on them, or what its checkpoints hold.
_FIXED = (
    "model_name_or_path",
    "seed",
    "dtype",
    "prompts_per_step",
    "num_generations",
    "data",
    "embedded",
    "optim",
    "lora.r",
    "lora.alpha",
    "lora.target_modules",
    "engine.kind",
    "engine.zero_stage",
)


def choose_run_dir(config: Config, checkpoint: Path | None) -> Path:
    """`output_dir`, else the resumed run's own folder, else runs/<date and time>."""
    if config.output_dir is not None:
        return Path(config.output_dir).resolve()
    if checkpoint is not None:
        return checkpoint.resolve().parent
    return (Path("runs") / datetime.now().strftime("%Y-%m-%d_%H-%M-%S")).resolve()


def newest_model(path: str) -> str:
    """A run folder stands for its newest checkpoint; anything else is taken as it is.

    Raises:
        UserError: a run folder without a checkpoint.
    """
    folder = Path(path)
    if folder.is_dir() and not (folder / "config.json").is_file():
        found = list_checkpoints(folder)
        if found:
            return str(found[-1])
        if (folder / CONFIG_FILE).is_file():
            raise UserError(f"--model: the run {path!r} has no checkpoint yet; let it save one")
    return path


def check_unused(run_dir: Path) -> None:
    """Refuse to start a new run where another has left its work.

    Raises:
        UserError: the folder holds checkpoints; a run aborted before its first one left no work.
    """
    if run_dir.is_dir() and list_checkpoints(run_dir):
        raise UserError(
            f"output_dir: {run_dir} holds another run's steps; go on with it by "
            f"--resume_from_checkpoint {run_dir}, or give another output_dir"
        )


def check_same_run(config: Config, checkpoint: Path) -> None:
    """Refuse to resume under settings that would make it another run.

    Raises:
        UserError: names the first setting that differs, both values and the remedy.
    """
    path = checkpoint.parent / CONFIG_FILE
    if not path.is_file():
        return
    stored, now = (
        _flat(yaml.safe_load(path.read_text(encoding="utf-8"))),
        _flat(config.model_dump(mode="json")),
    )
    for key, after in now.items():
        before = stored.get(key)
        if before != after and _is_fixed(key, config):
            raise UserError(
                f"{key}: the run in {checkpoint.parent} has {before!r}, this one {after!r}; resume "
                f"with the run's own {path}, or start a new run from the checkpoint by "
                f"--model_name_or_path {checkpoint}"
            )


def _is_fixed(key: str, config: Config) -> bool:
    """False too for what has no effect, such as the ZeRO stage where nothing is sharded."""
    if key in ("lora.alpha", "lora.target_modules") and config.lora.r == 0:
        return False
    if key == "engine.zero_stage" and config.engine.kind != "deepspeed":
        return False
    return key in _FIXED or key.split(".")[0] in _FIXED


def _flat(tree: dict[str, Any]) -> dict[str, Any]:
    """Sections' fields by `section.field`."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        inner = {f"{key}.{name}": v for name, v in value.items()} if isinstance(value, dict) else {}
        flat |= inner or {key: value}
    return flat


def open_run(run_dir: Path) -> None:
    """Make the folder, and point `latest` at it."""
    run_dir.mkdir(parents=True, exist_ok=True)
    _point_latest(run_dir)


def put_aside_aborted(run_dir: Path) -> Path | None:
    """Move what a run without a checkpoint left into `aborted-N/`; None where there was nothing."""
    names = (CONFIG_FILE, METRICS_FILE, "stories", "best.json", "best", "summary.json")
    left = [run_dir / name for name in names if os.path.lexists(run_dir / name)]
    left += run_dir.glob("eval-*.json")
    if not left:
        return None
    aside = next(p for n in count(1) if not (p := run_dir / f"aborted-{n}").exists())
    aside.mkdir()
    for path in left:
        path.rename(aside / path.name)
    return aside


def write_config(run_dir: Path, config: Config) -> None:
    """`config.yaml`: the resolved configuration, whole or as it was."""
    # Where it lies and what it goes on from are facts of a command: the folder can be moved.
    written = config.model_copy(update={"resume_from_checkpoint": None, "output_dir": None})
    draft = run_dir / f".{CONFIG_FILE}.partial"
    draft.write_text(dump_config(written), encoding="utf-8")
    draft.replace(run_dir / CONFIG_FILE)


def forget_after(run_dir: Path, step: int) -> list[str]:
    """Put aside what a resumed run will do again; returns the names of the checkpoints moved.

    Later checkpoints go to `superseded/`, so that "the newest" is the resumed run's own.
    """
    drop_stories_after(run_dir, step)
    (run_dir / "eval-end.json").unlink(missing_ok=True)
    for evaluation in run_dir.glob("eval-step-*.json"):
        number = evaluation.stem.removeprefix("eval-step-")  # no number: a person's copy
        if number.isdecimal() and int(number) > step:
            evaluation.unlink()
    forget_best_after(run_dir, step)
    later = [p for p in list_checkpoints(run_dir) if int(p.name.rpartition("-")[2]) > step]
    for checkpoint in later:
        aside = run_dir / "superseded" / checkpoint.name
        shutil.rmtree(aside, ignore_errors=True)
        aside.parent.mkdir(exist_ok=True)
        checkpoint.rename(aside)
    return [p.name for p in later]


def write_summary(run_dir: Path, **facts: Any) -> None:
    """`summary.json`: how the run ended."""
    (run_dir / "summary.json").write_text(json.dumps(facts))


def read_summary(run_dir: Path) -> dict[str, Any]:
    """How the run ended when it last did; empty while it has not."""
    try:
        found = json.loads((run_dir / "summary.json").read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _point_latest(run_dir: Path) -> None:
    """latest -> this run, beside it, where links can be made."""
    link = run_dir.parent / "latest"
    if run_dir.name == link.name or (link.exists() and not link.is_symlink()):
        return
    draft = run_dir.parent / f".latest-{os.getpid()}"
    try:
        draft.symlink_to(run_dir.name)
        draft.replace(link)
    except OSError:
        draft.unlink(missing_ok=True)
