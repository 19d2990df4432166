"""What every conducted run does alike: find its place, open its folder, train, leave a report.

A kind of run (GRPO in `trainer`, supervised in `sft`) says how it is set up, what its loop does and
what a checkpoint of it holds besides weights and tokenizer.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from .best import read_best
from .checkpoint import TrainerState, find_checkpoint, is_disk_fault, load_state, save_checkpoint
from .collector import setup_spared
from .config import Config
from .device import choose_device
from .metrics import METRICS_FILE, MetricsLog, read_metrics
from .progress import Progress
from .ranks.conductor import Conductor
from .ranks.parts import check_engine
from .report import write_report
from .run_folder import (
    CONFIG_FILE,
    check_same_run,
    check_unused,
    choose_run_dir,
    forget_after,
    open_run,
    put_aside_aborted,
    read_summary,
    write_config,
    write_summary,
)
from .slots import Slots
from .stopping import StopFlag, StopRequested
from .types import UserError

_COMMANDS = {"grpo": "train", "sft": "sft"}


class ConductedRun(ABC):
    """One run, conducted by rank 0; see `session.Run`."""

    kind: str
    """as in `TrainerState`"""
    slots: Slots
    tokenizer: Any
    total_steps: int

    def __init__(
        self, config: Config, view: Progress, flag: StopFlag, conductor: Conductor
    ) -> None:
        self.config, self.view, self.flag, self.conductor = config, view, flag, conductor
        self.device = choose_device(config, conductor.world.local_rank)
        check_engine(config, self.device, conductor.world)
        self.status, self.reason = "running", ""

    def run(self) -> str:
        """Train; returns "finished" or "interrupted". The report is written either way."""
        started = time.time()
        if self.goes_on:
            started -= read_summary(self.run_dir).get("wall_s", 0.0)
        with ExitStack() as stack:
            self._open_sources(stack)
            open_run(self.run_dir)
            aside = None if self.goes_on else put_aside_aborted(self.run_dir)
            # a resumed run's stays until it goes on
            if not (self.run_dir / CONFIG_FILE).is_file():
                write_config(self.run_dir, self.config)
            settings = self.config.model_dump(mode="json")
            self.log = stack.enter_context(
                MetricsLog(self.run_dir, self.config.report_to, self.config.run_name, settings)
            )
            self.view.start(
                self.config.run_name or self.run_dir.name,
                self._facts(),
                self.total_steps,
                history=[  # later ones are cut off when it goes on
                    row
                    for row in read_metrics(self.run_dir / METRICS_FILE)
                    if row["step"] <= self.state.step
                ],
            )
            if aside is not None:
                self.view.note(f"put aside what an aborted run left: {aside}")
            try:
                self._setup(stack)
                stack.enter_context(setup_spared())
                self._loop()
                self.status = "finished"
            except StopRequested as stop:
                self.status, self.reason = "interrupted", f"stopped by {stop}"
                self._save_unsaved()
                self.view.warn(self.reason)
            except BaseException as error:
                self.status, self.reason = "failed", str(error)
                # The guard, or a judge that is down: what was trained so far is sound.
                if isinstance(error, UserError) and not is_disk_fault(error):
                    self._save_unsaved()
                raise
            finally:
                write_summary(
                    self.run_dir,
                    status=self.status,
                    reason=self.reason,
                    steps=self.state.step,
                    wall_s=round(time.time() - started, 1),
                    device=self._devices(),
                )
                self.view.phase("writing the report")
                self.report = write_report(self.run_dir)
        return self.status

    @abstractmethod
    def closing_words(self) -> str:
        """What a person should know and do next."""

    def _open_sources(self, stack: ExitStack) -> None:  # noqa: B027 - most kinds have none
        """Whatever must answer before a folder is made; closed with the run."""

    @abstractmethod
    def _setup(self, stack: ExitStack) -> None:
        """Load the model and give every rank its orders."""

    @abstractmethod
    def _loop(self) -> None:
        """All steps from `state` on."""

    @abstractmethod
    def _facts(self) -> dict[str, str]:
        """What stands above the progress of the run."""

    def _write_aside(self, folder: Path) -> None:  # noqa: B027 - most kinds have nothing
        """What a checkpoint holds besides weights, tokenizer and state."""

    # its place --------------------------------------------------------------------------------

    def _find_place(self) -> None:
        """The folder, and the checkpoint and state to go on from.

        Raises:
            UserError: no such checkpoint, another run's, or a folder that is in use.
        """
        resumed = self.config.resume_from_checkpoint
        self.checkpoint = find_checkpoint(Path(resumed)) if resumed else None
        self.run_dir = choose_run_dir(self.config, self.checkpoint)
        self.goes_on = (
            self.checkpoint is not None and self.checkpoint.resolve().parent == self.run_dir
        )
        if not self.goes_on:
            check_unused(self.run_dir)
        if self.checkpoint is None:
            self.state = TrainerState(step=0, prompt_cursor=0, num_tokens=0, kind=self.kind)
        else:
            check_same_run(self.config, self.checkpoint)
            self.state = load_state(self.checkpoint)
            if self.state.kind != self.kind:
                raise UserError(
                    f"resume_from_checkpoint: {self.checkpoint} is of a run of polaris "
                    f"{_COMMANDS[self.state.kind]}, its optimizer and data order are no use to "
                    f"polaris {_COMMANDS[self.kind]}; start from its weights by "
                    f"--model_name_or_path {self.checkpoint}, or go on with polaris "
                    f"{_COMMANDS[self.state.kind]}"
                )
        self.saved_step = self.state.step

    def _go_on(self) -> None:
        """Put aside what the resumed run will do again."""
        if self.checkpoint is None:
            return
        write_config(self.run_dir, self.config)
        self.log.truncate_after(self.state.step)
        aside = forget_after(self.run_dir, self.state.step)
        self.view.note(f"resumed from {self.checkpoint}")
        if aside:
            self.view.note(f"put aside into superseded/: {', '.join(aside)}")

    def _save(self) -> None:
        def write(folder: Path) -> None:
            self.slots.save(folder)
            self.tokenizer.save_pretrained(folder)
            self._write_aside(folder)

        self.view.phase("saving")
        best = read_best(self.run_dir)
        save_checkpoint(
            self.run_dir,
            self.state,
            write,
            keep=self.config.save_total_limit,
            spared=best.step if best else -1,
        )
        self.saved_step = self.state.step

    def _save_unsaved(self) -> None:
        """Keep what the last finished step made; an unfinished one leaves no trace in weights."""
        if self.saved_step < self.state.step:
            self._save()

    def _devices(self) -> str:
        size = self.conductor.world.size
        return str(self.device) if size == 1 else f"{size} ranks on {self.device.type}"
