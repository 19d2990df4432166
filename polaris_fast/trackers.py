"""Places besides `metrics.jsonl` that metrics are copied to: tensorboard, wandb, trackio."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from .types import UserError

PROJECT = "polaris-fast"  # the project name that hosted trackers file runs under


class Tracker(Protocol):
    """A place besides the file that metrics are sent to."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Send one step; numbers only."""

    def truncate_after(self, step: int) -> None:
        """Forget later steps, as far as the tracker can."""

    def close(self) -> None:
        """Flush and finish."""


def make_tracker(kind: str, folder: Path, name: str, config: Mapping[str, Any]) -> Tracker:
    """The tracker named `kind`; an unknown name or a missing package is a UserError."""
    makers: dict[str, Callable[[], Tracker]] = {
        "tensorboard": lambda: _TensorBoard(folder),
        "wandb": lambda: _WandB(folder, name, config),
        "trackio": lambda: _Trackio(name, config),
    }
    if kind not in makers:
        raise UserError(f"report_to: unknown tracker {kind!r}; choose from {', '.join(makers)}")
    try:
        return makers[kind]()
    except ImportError as error:
        raise UserError(
            f"report_to: {kind!r} needs a package that is not installed ({error}); "
            f"`pip install {kind}` or take it out of report_to"
        ) from error


class _TensorBoard:
    """Event files in `run_dir/tensorboard`."""

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._folder = str(folder / "tensorboard")
        self._make = SummaryWriter
        self._writer: Any = None  # made on first use: its file name is its start time
        self._purge: int | None = None

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        if self._writer is None:
            self._writer = self._make(self._folder, purge_step=self._purge)
        for name, value in metrics.items():
            if name != "step":
                self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def truncate_after(self, step: int) -> None:
        self.close()
        self._purge = step + 1  # the reader hides what an earlier file holds from here on

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None


class _WandB:
    """A Weights & Biases run; its id is kept in the run folder, so that a resume goes on in it."""

    def __init__(self, folder: Path, name: str, config: Mapping[str, Any]) -> None:
        import wandb

        self._run: Any = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=name,
            id=_kept_id(folder / "wandb_run_id"),
            resume="allow",
            dir=str(folder),
            config=dict(config),
        )
        # An own axis, because wandb refuses its built-in step to go back after a resume.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._run.log({**metrics, "step": step})

    def truncate_after(self, step: int) -> None:
        """Nothing: sent points cannot be taken back; a repeated step is drawn over them."""

    def close(self) -> None:
        self._run.finish()


class _Trackio:
    """A trackio run of the same name; a resume goes on in it."""

    def __init__(self, name: str, config: Mapping[str, Any]) -> None:
        import trackio

        self._run: Any = trackio.init(
            project=os.environ.get("TRACKIO_PROJECT", PROJECT),
            name=name,
            config=dict(config),
            resume="allow",
        )

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._run.log({name: value for name, value in metrics.items() if name != "step"}, step=step)

    def truncate_after(self, step: int) -> None:
        """Nothing: sent points cannot be taken back."""

    def close(self) -> None:
        self._run.finish()


def _kept_id(path: Path) -> str:
    """The id stored in `path`, made up on first use."""
    if not path.exists():
        path.write_text(uuid.uuid4().hex[:12], encoding="utf-8")
    return path.read_text(encoding="utf-8").strip()
