"""The supervised run: epochs over the human stories, the loss on held-out ones, checkpoints."""

from __future__ import annotations

import math
import shlex
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

import torch

from ..closing_words import short_path
from ..conducted_run import ConductedRun
from ..config import Config
from ..data import PromptOrder, load_records, split_records, with_thinking
from ..model.load import read_config
from ..model.positions import check_positions
from ..packing import plan_rounds
from ..progress import Progress
from ..prompts import PromptBuilder, has_human_row, load_tokenizer, stop_ids_of
from ..ranks.conductor import Conductor
from ..ranks.parts import Orders, build_parts
from ..slots import PassSums
from ..stopping import StopFlag
from ..types import Row, StoryRecord, UserError
from .rows import story_records, story_row
from .settings import supervised


@dataclass(frozen=True)
class _Pass:
    """What one pass over some rows found."""

    sums: PassSums
    num_targets: int

    @property
    def loss(self) -> float:
        """Mean of -log p over the completion tokens, in nats."""
        return -float(self.sums.loss["sum_logp"]) / self.num_targets


class SupervisedRun(ConductedRun):
    """One supervised run."""

    kind = "sft"

    def __init__(
        self, config: Config, view: Progress, flag: StopFlag, conductor: Conductor
    ) -> None:
        """Reads and checks everything cheap; nothing is written yet.

        Raises:
            UserError: no model, bad data, checkpoint or output folder.
        """
        super().__init__(config, view, flag, conductor)
        if config.model_name_or_path is None:
            raise UserError(
                "model_name_or_path: sft needs a model to start from, a folder or a hub id (the "
                "embedded tiny model is warm-started by `polaris train` itself)"
            )
        records = load_records(config.data)
        train, held_out = split_records(config.data, records)
        settled = config.model_copy(update={"data": with_thinking(config.data, train)})
        self.config = supervised(settled)
        self._find_place()
        read_config(config.model_name_or_path)
        self.tokenizer = load_tokenizer(str(self.checkpoint or config.model_name_or_path))
        self._find_stories(train, held_out)
        self._check_positions(config.model_name_or_path)

    def closing_words(self) -> str:
        """What a person should know and do next."""
        lines = [f"report      {short_path(self.report)}"]
        last = self.run_dir / f"checkpoint-{self.state.step}"
        python = shlex.quote(short_path(sys.executable))
        if last.is_dir():
            lines.append(f"checkpoint  {short_path(last)}")
            lines.append(
                f"train       {python} -m polaris_fast.train --model_name_or_path "
                f"{shlex.quote(short_path(last))} ..."
            )
            if self.status != "finished":
                lines.append(
                    f"continue    {python} -m polaris_fast.sft --resume_from_checkpoint "
                    f"{shlex.quote(short_path(self.run_dir))}"
                )
        else:
            lines.append("no step was finished: start the run anew")
        return "\n".join(lines)

    # set-up -----------------------------------------------------------------------------------

    def _find_stories(self, train: list[StoryRecord], held_out: list[StoryRecord]) -> None:
        stories = [r.story for r in [*train, *held_out] if r.story is not None]
        builder = PromptBuilder(self.tokenizer, self.config)
        if self.config.max_completion_length is None and stories:
            known = [r for r in [*train, *held_out] if has_human_row(r, builder.config)]
            longest = max((len(builder.human_completion_ids(r)) for r in known), default=0)
            self.config = self.config.with_room_for(longest)
            builder = PromptBuilder(self.tokenizer, self.config)
        self.builder = builder
        self.records = story_records(train, builder)
        self.held_out = [r for r in held_out if has_human_row(r, builder.config)]
        for record in self.held_out:
            story_row(record, builder, 0, 0)  # each must fit
        self.order = PromptOrder(len(self.records), self.config.seed)
        settings = self.config.sft
        steps = math.ceil(settings.num_epochs * len(self.records) / settings.rows_per_step)
        self.total_steps = self.config.max_steps if self.config.max_steps > 0 else max(1, steps)

    def _check_positions(self, path: str) -> None:
        """The model must know positions for the longest story."""

        def longest() -> int:
            rows = (story_row(r, self.builder, 0, 0) for r in [*self.records, *self.held_out])
            return max(row.num_tokens for row in rows)

        limit = self.config.max_prompt_length + (self.config.max_completion_length or 0)
        if words := check_positions(path, limit, longest):
            self.view.warn(words)

    def _setup(self, stack: ExitStack) -> None:
        config = self.config
        torch.manual_seed(config.seed)
        self.view.phase("loading the model")
        base = str(config.model_name_or_path)
        orders = Orders(
            config,
            model_path=base if config.lora.r > 0 else str(self.checkpoint or base),
            reference_path=None,
            checkpoint=str(self.checkpoint) if self.checkpoint else None,
            total_updates=self.total_steps,
            run_dir=str(self.run_dir),
        )
        self.conductor.send_orders(orders)
        parts = build_parts(orders, self.conductor.world, self.flag.check)
        if parts.rollouts is not None:
            stack.callback(parts.rollouts.close)
        self.slots, _ = self.conductor.share(parts)
        self.builder = PromptBuilder(self.tokenizer, config, stop_ids_of(parts.model))
        self._go_on()

    # the loop ---------------------------------------------------------------------------------

    def _loop(self) -> None:
        if self.held_out and self.state.step == 0:
            self.view.note(f"held-out loss before the first step: {self._held_out_loss():.3f}")
        while self.state.step < self.total_steps:
            self._step()
            if self.config.save_steps and self.state.step % self.config.save_steps == 0:
                self._save()
        self._save_unsaved()

    def _step(self) -> None:
        started, step = time.perf_counter(), self.state.step
        count = self.config.sft.rows_per_step
        first = self.state.prompt_cursor
        rows = [
            story_row(self.records[self.order[first + n]], self.builder, step, n)
            for n in range(count)
        ]
        try:
            found = self._pass(rows, "training")
            update = self.slots.update(1.0)
        finally:
            self.slots.end_step()
        self.state = replace(
            self.state,
            step=step + 1,
            prompt_cursor=first + count,
            num_tokens=self.state.num_tokens + found.num_targets,
        )
        seconds = time.perf_counter() - started
        metrics = {
            "epoch": self.state.prompt_cursor / len(self.records),
            "num_tokens": self.state.num_tokens,
            "sft/loss": found.loss,
            "grad_norm": update.grad_norm,
            "learning_rate": update.learning_rate,
            "guard/skipped": float(update.skipped is not None),
            "perf/step_s": seconds,
            "perf/tokens_per_s": found.sums.train_tokens / seconds,
        }
        try:
            if self.held_out and self._ends_epoch(first, first + count):
                metrics["sft/eval_loss"] = self._held_out_loss()
        finally:  # the step is done, whatever stops its held-out pass
            self.log.log(self.state.step, metrics)
        self.view.step(self.state.step, metrics)
        if update.skipped is not None:
            self.view.warn(
                f"step {self.state.step}: update skipped ({update.skipped}, gradient norm "
                f"{update.grad_norm:.3g})"
            )

    def _ends_epoch(self, before: int, after: int) -> bool:
        """Whether a pass over all records ended between two positions, or the run does."""
        size = len(self.records)
        return before // size < after // size or self.state.step == self.total_steps

    def _held_out_loss(self) -> float:
        """Mean of -log p over held-out completion tokens; the gradients are thrown away."""
        rows = [story_row(r, self.builder, self.state.step, n) for n, r in enumerate(self.held_out)]
        try:
            return self._pass(rows, "held-out loss").loss
        finally:
            self.slots.end_step()

    def _pass(self, rows: Sequence[Row], phase: str) -> _Pass:
        """Forward and backward of all rows, packed over all ranks."""
        targets = sum(len(row.completion_ids) for row in rows)
        rounds = plan_rounds(
            [row.num_tokens for row in rows],
            self.config.packing.max_tokens_per_microbatch,
            cost=self.slots.row_cost,
            num_ranks=self.slots.num_ranks,
        )
        self.view.phase(phase, len(rows))
        for slots in rounds:
            self.flag.check()
            self.slots.first_pass([[rows[i] for i in slot] for slot in slots], float(targets))
            self.view.advance(sum(len(slot) for slot in slots), phase=phase)
        return _Pass(self.slots.take_sums(), targets)

    def _facts(self) -> dict[str, str]:
        return {
            "model": str(self.config.model_name_or_path),
            "stories": f"{len(self.records)} to train on, {len(self.held_out)} held out",
            "device": f"{self._devices()}, {self.config.dtype}",
        }
