"""The run: set everything up in the order of its cost, conduct the steps, leave a report.

Owns no tensor maths. What a user gets wrong is found before anything expensive starts.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from .alarms import AlarmWatch
from .closing_words import closing_words, short_path
from .conducted_run import ConductedRun
from .config import Config
from .curriculum import prompt_order
from .data import load_records, split_records, with_thinking
from .embedded import build_embedded, embedded_tokenizer
from .evaluate import evaluate
from .groups import hri_weight
from .idle_settings import check_paid_data, idle_settings
from .in_flight import read_rows, write_rows
from .judge import JudgePool, Scorer, open_scorer
from .judge.canary import CanaryWatch
from .metrics import METRICS_FILE, PhaseClock, read_metrics
from .model.load import read_config
from .model.positions import check_positions
from .model_card import write_model_card
from .plan.estimate import estimate_before_run
from .profiling import profiled
from .progress import Progress
from .prompts import PromptBuilder, has_human_row, load_tokenizer, stop_ids_of
from .ranks.conductor import Conductor
from .ranks.parts import Orders, build_parts
from .rollout_parity import check_logprobs
from .run_evaluations import RunEvaluations, check_metric
from .scoring import StepScorer
from .session import conduct
from .signs import story_signs
from .step import GRPOStep, StepResult
from .step_metrics import step_metrics
from .stopping import StopFlag, StopRequested
from .story_log import write_stories
from .types import StoryRecord, UserError
from .writing_ahead import WritingAhead


def run_training(config: Config) -> int:
    """Run a configuration to its end; returns the exit status (0 done, 2 user error, 130 stop)."""
    return conduct(config, Trainer)


class Trainer(ConductedRun):
    """One GRPO run."""

    kind = "grpo"

    def __init__(
        self, config: Config, view: Progress, flag: StopFlag, conductor: Conductor
    ) -> None:
        """Reads and checks everything cheap; nothing is written yet.

        Raises:
            UserError: bad data, checkpoint, model path or output folder.
        """
        super().__init__(config, view, flag, conductor)
        self.deterministic = (
            config.deterministic if config.deterministic is not None else self.device.type == "cpu"
        )
        check_paid_data(config)
        records = load_records(config.data)
        self.train_records, self.eval_records = split_records(config.data, records)
        check_metric(config, len(self.eval_records))
        thinking = with_thinking(config.data, self.train_records)
        self.config = config.model_copy(update={"data": thinking})
        self._find_place()
        self._check_warm_start()
        self.tokenizer = self._tokenizer()
        self.config = self._resolve_lengths()
        self.builder = PromptBuilder(self.tokenizer, self.config)
        self.num_human = self._check_records()
        self._check_positions()
        self.ahead: WritingAhead | None = None
        self.settle_s = 0.0  # since the last step
        self.total_steps = self._total_steps()

    # ----------------------------------------------------------------------------------------

    def _open_sources(self, stack: ExitStack) -> None:
        self.source: Scorer = stack.enter_context(
            open_scorer(
                self.config.judge,
                self.config.reward,
                run_dir=self.run_dir,
                longest_story_tokens=self.config.max_completion_length,
            )
        )
        if isinstance(self.source, JudgePool):
            self.view.watch_judge(self.source.health)

    def closing_words(self) -> str:
        """What a person should know and do next."""
        return closing_words(self.run_dir, self.report, self.state.step, self.status)

    # set-up -----------------------------------------------------------------------------------

    def _tokenizer(self) -> Any:
        path = self.config.model_name_or_path
        if path is not None:
            read_config(path)
        if self.checkpoint is not None:
            return load_tokenizer(str(self.checkpoint))
        if path is not None:
            return load_tokenizer(path)
        return embedded_tokenizer(self.config, self.train_records)

    def _check_warm_start(self) -> None:
        steps = self.config.embedded.warm_start_steps
        if self.config.model_name_or_path is not None or self.checkpoint is not None or not steps:
            return
        if all(record.story is None for record in self.train_records):
            raise UserError(
                f"embedded.warm_start_steps ({steps}): the embedded model is warm-started on "
                "stories, and no training record has one; give `story`, set "
                "embedded.warm_start_steps to 0, or name a model (model_name_or_path)"
            )

    def _resolve_lengths(self) -> Config:
        """Settle a completion limit that is left to the data."""
        if self.config.max_completion_length is not None:
            return self.config
        builder = PromptBuilder(self.tokenizer, self.config)
        records = [*self.train_records, *self.eval_records]
        stories = [len(builder.human_completion_ids(r)) for r in records if r.story is not None]
        return self.config.with_room_for(max(stories, default=0))

    def _check_records(self) -> int:
        """Every prompt and human story must fit; returns how many records give a human row."""
        for record in [*self.train_records, *self.eval_records]:
            self.builder.prompt_ids(record)
        num_human = 0
        for record in self.train_records:
            if has_human_row(record, self.builder.config):
                self.builder.human_completion_ids(record)
                num_human += 1
        return num_human

    def _check_positions(self) -> None:
        """The model must know positions for the longest row that can be written."""
        path, completion = self.config.model_name_or_path, self.config.max_completion_length or 0
        if path is None:
            return

        def longest() -> int:
            records = [*self.train_records, *self.eval_records]
            return max(len(self.builder.prompt_ids(r)) for r in records) + completion

        limit = self.config.max_prompt_length + completion
        if words := check_positions(path, limit, longest):
            self.view.warn(words)

    def _setup(self, stack: ExitStack) -> None:
        config = self.config
        if note := self._estimate():
            self.view.note(note)
        torch.manual_seed(config.seed)
        if config.hri.mode != "off" and self.num_human < len(self.train_records):
            self.view.warn(
                f"{len(self.train_records) - self.num_human} of {len(self.train_records)} records "
                "have no human story to inject; their groups are rollouts only"
            )
        for text in idle_settings(config, self.train_records, len(self.eval_records)):
            self.view.warn(text)
        base = self._base_model()
        self.view.phase("loading the model")
        orders = Orders(
            config,
            # adapters go on from their own file, on the weights that never change
            model_path=base if config.lora.r > 0 else str(self.checkpoint or base),
            reference_path=base if config.beta > 0 and config.lora.r == 0 else None,
            checkpoint=str(self.checkpoint) if self.checkpoint else None,
            total_updates=self.total_steps * config.num_iterations,
            run_dir=str(self.run_dir),
        )
        self.conductor.send_orders(orders)
        parts = build_parts(orders, self.conductor.world, self._look_up)
        if parts.rollouts is not None:
            stack.callback(parts.rollouts.close)
        self.slots, self.rollouts = self.conductor.share(parts)
        self._sync()
        if config.rollout.engine == "vllm":
            prompt_ids = self.builder.prompt_ids(self.train_records[0])
            self.view.note(check_logprobs(self.rollouts, parts.model, prompt_ids, config))
        self.builder = PromptBuilder(self.tokenizer, config, stop_ids_of(parts.model))
        self._go_on()
        self.order = prompt_order(config, self.train_records)
        self.alarms = AlarmWatch(config.alarms, read_metrics(self.run_dir / METRICS_FILE))
        self.evaluations = RunEvaluations(
            config,
            self.run_dir,
            evaluate=self._evaluate if self.eval_records else None,
            save=self._save_unsaved,
            note=self.view.note,
        )
        self.canaries = CanaryWatch(
            self.source, config.judge, run=str(self.run_dir), warn=self.view.warn
        )
        self.step = GRPOStep(
            config,
            slots=self.slots,
            rollouts=self.rollouts,
            builder=self.builder,
            spec=config.loss_spec(),
            make_scorer=self._make_scorer,
            view=self.view,
            check_stop=self._look_up,
            fixed_order=self.deterministic,
            earlier=read_rows(self.checkpoint) if self.checkpoint and self._writes_ahead else None,
        )

    def _base_model(self) -> str:
        """Where the starting weights are; the embedded model is built by each new run."""
        if self.config.model_name_or_path is not None:
            return self.config.model_name_or_path
        if self.checkpoint is not None:
            return str(self.checkpoint.parent / "base")
        base, draft = self.run_dir / "base", self.run_dir / ".base.partial"
        shutil.rmtree(base, ignore_errors=True)  # a killed run's, of other settings perhaps
        self.view.phase("warm start", self.config.embedded.warm_start_steps)
        with (self.run_dir / "warm_start.jsonl").open("w") as file:

            def on_step(step: int, loss: float) -> None:
                self.flag.check()
                file.write(json.dumps({"step": step, "loss": loss}) + "\n")
                self.view.advance(1, phase="warm start", loss=loss)

            build_embedded(draft, self.config, self.builder, self.train_records, on_step)
        draft.rename(base)
        return str(base)

    def _look_up(self) -> None:
        """Called often while a step writes and trains: stop if asked to."""
        self.flag.check()
        self.view.tick()

    def _look_after_judge(self) -> None:
        """Called often while a step waits for its judge, when no rank is writing or training."""
        self._look_up()
        if isinstance(self.source, JudgePool) and self.source.is_paused:
            self._save_unsaved()  # the judge may stay away for longer than this process lives

    def _make_scorer(self, clock: PhaseClock) -> StepScorer:
        return StepScorer(
            self.source,
            self.config,
            clock=clock,
            check_stop=self._look_after_judge,
            on_outcome=lambda row: self.view.advance(1, phase="judging"),
        )

    # the loop ---------------------------------------------------------------------------------

    def _loop(self) -> None:
        if self.state.step == 0:
            self.evaluations.at_start()
        with ExitStack() as stack:
            if self._writes_ahead:
                self.ahead = stack.enter_context(self._begin_ahead())
            try:
                self._steps()
            except (StopRequested, UserError):
                self._settle_to_leave()
                raise
        self.ahead = None
        self._save_unsaved()
        self.evaluations.at_end(self.state.step)
        self._write_card()

    def _steps(self) -> None:
        while self.state.step < self.total_steps:
            self.canaries.begin(self.state.step)
            self._sync()
            step = partial(self._run_step, self.state.step)
            number = self.state.step + 1
            self._finish_step(profiled(self.config.profile, self.run_dir, number, step))
            if self.config.save_steps and self.state.step % self.config.save_steps == 0:
                self._settle()
                self._save()
            is_last = self.state.step == self.total_steps
            self.evaluations.after_step(self.state.step, is_last=is_last)

    def _run_step(self, step: int) -> StepResult:
        if self.ahead is not None:
            ahead = self.ahead
            return self.step.train(lambda: ahead.take(step))
        return self.step.run(step, hri_weight(self.config.hri, step), self._record)

    @property
    def _writes_ahead(self) -> bool:
        return self.config.rollout.max_staleness > 0

    def _begin_ahead(self) -> WritingAhead:
        first, cursor = self.state.step, self.state.prompt_cursor
        num_prompts = self.config.prompts_per_step

        def plan(step: int) -> tuple[list[StoryRecord], float]:
            start = cursor + (step - first) * num_prompts
            records = [self.train_records[self.order[start + n]] for n in range(num_prompts)]
            return records, hri_weight(self.config.hri, step)

        return WritingAhead(
            self.step.writer,
            self.rollouts,
            plan,
            first_step=first,
            total_steps=self.total_steps,
            max_staleness=self.config.rollout.max_staleness,
            in_step=self.deterministic,
            check_stop=self._look_up,
        )

    def _settle(self) -> None:
        """Wait for rows that must be drawn by the weights of before the last update, if any."""
        if self.ahead is not None:
            started = time.perf_counter()
            self.ahead.settle(self.state.step)
            self.settle_s += time.perf_counter() - started

    def _settle_to_leave(self) -> None:
        """The checkpoint of a run that ends here resumes exactly, if at all possible."""
        if self.ahead is None or self.ahead.is_settled(self.state.step):
            return
        self.view.warn(
            "the run ends when the stories that only the weights of before may write are written; "
            "another Ctrl-C ends it at once, and the newest checkpoint is what remains"
        )
        try:
            self.ahead.settle(self.state.step, check_stop=self.view.tick)
        except Exception as error:  # what was trained is worth more
            self.view.warn(
                f"stories of the weights of before are missing ({error}); a resumed run writes "
                "them with newer ones, so it will not repeat this one bit for bit"
            )

    def _sync(self) -> None:
        """The rollout engine writes with the present weights from here on."""
        self._settle()
        if self.config.rollout.engine == "vllm":
            self.view.phase("sending the weights")
        started = time.perf_counter()
        if self.ahead is not None:
            self.ahead.sync(self.state.step)
        else:
            self.rollouts.sync(self.state.step, self._look_up)
        self.sync_s = time.perf_counter() - started

    def _record(self, offset: int) -> StoryRecord:
        return self.train_records[self.order[self.state.prompt_cursor + offset]]

    def _finish_step(self, result: StepResult) -> None:
        before = self.state
        self.state = replace(
            before,
            step=before.step + 1,
            prompt_cursor=before.prompt_cursor + result.prompts_used,
            num_tokens=before.num_tokens + result.num_tokens,
        )
        metrics = {
            "epoch": self.state.prompt_cursor / len(self.train_records),
            "num_tokens": self.state.num_tokens,
            **step_metrics(result),
            **story_signs(result.groups),
            "perf/sync_s": self.sync_s,
            "perf/settle_s": self.settle_s,
            **self.source.take_metrics(),
            **self.canaries.take(),
        }
        self.settle_s = 0.0
        write_stories(self.run_dir, self.state.step, result.rows)
        self.log.log(self.state.step, metrics)
        self.view.step(self.state.step, metrics)
        for update in result.updates:
            if update.skipped is not None:
                self.view.warn(
                    f"step {self.state.step}: update skipped ({update.skipped}, gradient norm "
                    f"{update.grad_norm:.3g})"
                )

        self._sound_alarms(metrics)

    def _sound_alarms(self, metrics: dict[str, Any]) -> None:
        if self.config.alarms.action == "off":
            return
        alarms = self.alarms.look(metrics)
        for alarm in alarms:
            self.view.warn(f"step {self.state.step}: alarm: {alarm.text}")
        if alarms and self.config.alarms.action == "stop":
            raise StopRequested(f"the alarm for {alarms[0].name} (alarms.action is stop)")

    def _evaluate(self) -> dict[str, Any]:
        self._sync()
        result = evaluate(
            self.eval_records,
            self.config,
            step=self.state.step,
            rollouts=self.rollouts,
            builder=self.builder,
            scorer=self._make_scorer(PhaseClock()),
            view=self.view,
            check_stop=self._look_up,
        )
        taken = self.source.take_metrics()  # not the next step's
        return result | {"judge_cost_usd": taken.get("judge/cost_usd")}  # None: unknown

    def _write_card(self) -> None:
        checkpoint = self.run_dir / f"checkpoint-{self.state.step}"
        if checkpoint.is_dir():
            write_model_card(
                checkpoint,
                self.config,
                steps=self.state.step,
                num_records=len(self.train_records),
            )

    def _write_aside(self, folder: Path) -> None:
        if self.ahead is not None:
            write_rows(folder, self.ahead.written(self.state.step))

    # small things -----------------------------------------------------------------------------

    def _total_steps(self) -> int:
        if self.config.max_steps > 0:
            return self.config.max_steps
        prompts = self.config.num_train_epochs * len(self.train_records)
        return max(1, math.ceil(prompts / self.config.prompts_per_step))

    def _estimate(self) -> str | None:
        records = self.train_records, self.eval_records
        size = self.conductor.world.size
        return estimate_before_run(self.config, self.device.type, size, *records)

    def _facts(self) -> dict[str, str]:
        config = self.config
        return {
            "model": config.model_name_or_path or "embedded tiny Qwen3.5",
            "device": self._devices(),
            "data": f"{len(self.train_records)} prompts, {len(self.eval_records)} held out",
            "judge": config.reward.function
            or config.judge.base_url
            or "local heuristic (no judge of quality)",
            "run": short_path(self.run_dir),
        }
