"""The run: set everything up in the order of its cost, conduct the steps, leave a report.

Owns no tensor maths. What a user gets wrong is found before anything expensive starts.
"""

from __future__ import annotations

import json
import math
import os
import shlex
import shutil
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from .checkpoint import (
    TrainerState,
    find_checkpoint,
    is_disk_fault,
    load_state,
    save_checkpoint,
)
from .config import Config
from .data import PromptOrder, load_records, split_records, with_thinking
from .embedded import build_embedded, embedded_tokenizer
from .evaluate import evaluate, write_evaluation
from .groups import hri_weight
from .judge import JudgePool, Scorer, open_scorer
from .judge.canary import CanaryWatch
from .metrics import METRICS_FILE, MetricsLog, PhaseClock, read_metrics
from .model.load import quiet_transformers, read_config
from .model.parity import PackingLeak
from .progress import Progress, make_view
from .prompts import PromptBuilder, load_tokenizer, stop_ids_of
from .ranks import join_world
from .ranks.conductor import Conductor
from .ranks.follower import follow
from .ranks.parts import Orders, build_parts, check_engine, choose_device
from .report import write_report
from .rollout_parity import check_logprobs
from .run_folder import (
    check_same_run,
    check_unused,
    choose_run_dir,
    forget_after,
    open_run,
    write_summary,
)
from .scoring import StepScorer
from .step import GRPOStep, StepResult
from .step_metrics import step_metrics
from .stopping import StopFlag, StopRequested
from .story_log import write_stories
from .types import StoryRecord, UserError


def run_training(config: Config) -> int:
    """Run a configuration to its end; returns the exit status (0 done, 2 user error, 130 stop)."""
    with join_world() as world:
        if not world.is_conductor:
            return follow(world, build_parts)
        with Conductor(world) as conductor:
            return _conduct(config, conductor)


def _conduct(config: Config, conductor: Conductor) -> int:
    quiet_transformers()
    view = make_view(config.progress)
    flag = StopFlag()
    try:
        with flag.installed(), view:
            trainer = Trainer(config, view, flag, conductor)
            status = trainer.run()
    except (UserError, PackingLeak) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Exception as error:
        if not is_disk_fault(error):
            raise
        print(
            f"error: output_dir: the disk is full or not writable ({error}); free some space or "
            "give another output_dir, then go on with resume_from_checkpoint",
            file=sys.stderr,
        )
        return 2
    print(trainer.closing_words())
    return 0 if status == "finished" else 130


class Trainer:
    """One training run."""

    def __init__(
        self, config: Config, view: Progress, flag: StopFlag, conductor: Conductor
    ) -> None:
        """Reads and checks everything cheap; nothing is written yet.

        Raises:
            UserError: bad data, checkpoint, model path or output folder.
        """
        self.view, self.flag, self.conductor = view, flag, conductor
        self.device = choose_device(config, conductor.world)
        check_engine(config)
        self.deterministic = (
            config.deterministic if config.deterministic is not None else self.device.type == "cpu"
        )
        records = load_records(config.data)
        self.train_records, self.eval_records = split_records(config.data, records)
        thinking = with_thinking(config.data, self.train_records)
        self.config = config.model_copy(update={"data": thinking})
        self.checkpoint = (
            find_checkpoint(Path(config.resume_from_checkpoint))
            if config.resume_from_checkpoint
            else None
        )
        self.run_dir = choose_run_dir(config, self.checkpoint)
        if self.checkpoint is None:
            check_unused(self.run_dir)
            self.state = TrainerState(step=0, prompt_cursor=0, num_tokens=0)
        else:
            check_same_run(self.config, self.checkpoint)
            self.state = load_state(self.checkpoint)
        self.tokenizer = self._tokenizer()
        self.config = self._resolve_lengths()
        self.builder = PromptBuilder(self.tokenizer, self.config)
        self.num_human = self._check_records()
        self.saved_step = self.state.step
        self.total_steps = self._total_steps()
        self.status, self.reason = "running", ""

    # ----------------------------------------------------------------------------------------

    def run(self) -> str:
        """Train; returns "finished" or "interrupted". The report is written either way."""
        started = time.time()
        with ExitStack() as stack:
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
            open_run(self.run_dir, self.config)
            self.log = stack.enter_context(
                MetricsLog(
                    self.run_dir,
                    self.config.report_to,
                    self.config.run_name,
                    self.config.model_dump(mode="json"),
                )
            )
            self.view.start(
                self.config.run_name or self.run_dir.name,
                self._facts(),
                self.total_steps,
                history=read_metrics(self.run_dir / METRICS_FILE),
            )
            try:
                self._setup(stack)
                self._loop()
                self.status = "finished"
            except StopRequested as stop:
                self.status, self.reason = "interrupted", f"stopped by {stop}"
                self.view.warn(self.reason)
                self._save_unsaved()
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

    def closing_words(self) -> str:
        """What a person should know and do next."""
        run, python = shlex.quote(_short(self.run_dir)), shlex.quote(_short(sys.executable))
        lines = [f"report      {_short(self.report)}"]
        last = self.run_dir / f"checkpoint-{self.state.step}"
        if last.is_dir():
            lines.append(f"checkpoint  {_short(last)}")
        if self.status != "interrupted":
            lines.append(
                f'write       {python} -m polaris_fast generate --model {run} --prompt "..." '
                "--words 60"
            )
        elif last.is_dir():
            lines.append(
                f"continue    {python} -m polaris_fast.train --resume_from_checkpoint {run}"
            )
        else:
            lines.append("no step was finished: start the run anew")
        return "\n".join(lines)

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
            if self.builder.has_human_row(record):
                self.builder.human_completion_ids(record)
                num_human += 1
        return num_human

    def _setup(self, stack: ExitStack) -> None:
        config = self.config
        torch.manual_seed(config.seed)
        if config.hri.mode != "off" and self.num_human < len(self.train_records):
            self.view.warn(
                f"{len(self.train_records) - self.num_human} of {len(self.train_records)} records "
                "have no human story to inject; their groups are rollouts only"
            )
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
        parts = build_parts(orders, self.conductor.world)
        if parts.rollouts is not None:
            stack.callback(parts.rollouts.close)
        self.slots, self.rollouts = self.conductor.share(parts)
        self._sync()
        if config.rollout.engine == "vllm":
            prompt_ids = self.builder.prompt_ids(self.train_records[0])
            self.view.note(check_logprobs(self.rollouts, parts.model, prompt_ids, config))
        self.builder = PromptBuilder(self.tokenizer, config, stop_ids_of(parts.model))
        if self.checkpoint is not None:
            self.log.truncate_after(self.state.step)
            aside = forget_after(self.run_dir, self.state.step)
            self.view.note(f"resumed from {self.checkpoint}")
            if aside:
                self.view.note(f"put aside into superseded/: {', '.join(aside)}")
        self.order = PromptOrder(len(self.train_records), config.seed)
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
        if self.config.eval_on_start and self.state.step == 0:
            self._evaluate("start")
        while self.state.step < self.total_steps:
            step = self.state.step
            weight = hri_weight(self.config.hri, step)
            self.canaries.begin(step)
            self._sync()
            self._finish_step(self.step.run(step, weight, self._record))
            if self.config.save_steps and self.state.step % self.config.save_steps == 0:
                self._save()
        self._save_unsaved()
        if self.config.eval_on_end:
            self._evaluate("end")

    def _sync(self) -> None:
        """The rollout engine writes with the present weights from here on."""
        if self.config.rollout.engine == "vllm":
            self.view.phase("sending the weights")
        started = time.perf_counter()
        self.rollouts.sync(self.state.step, self._look_up)
        self.sync_s = time.perf_counter() - started

    def _record(self, offset: int) -> StoryRecord:
        return self.train_records[self.order[self.state.prompt_cursor + offset]]

    def _finish_step(self, result: StepResult) -> None:
        before = self.state
        self.state = TrainerState(
            step=before.step + 1,
            prompt_cursor=before.prompt_cursor + result.prompts_used,
            num_tokens=before.num_tokens + result.num_tokens,
        )
        metrics = {
            "epoch": self.state.prompt_cursor / len(self.train_records),
            "num_tokens": self.state.num_tokens,
            **step_metrics(result),
            "perf/sync_s": self.sync_s,
            **self.source.take_metrics(),
            **self.canaries.take(),
        }
        write_stories(self.run_dir, self.state.step, result.rows)
        self.log.log(self.state.step, metrics)
        self.view.step(self.state.step, metrics)
        for update in result.updates:
            if update.skipped is not None:
                self.view.warn(
                    f"step {self.state.step}: update skipped ({update.skipped}, gradient norm "
                    f"{update.grad_norm:.3g})"
                )

    def _evaluate(self, name: str) -> None:
        if not self.eval_records:
            return
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
        self.source.take_metrics()  # not the next step's
        write_evaluation(self.run_dir, name, result)

    def _save(self) -> None:
        def write(folder: Path) -> None:
            self.slots.save(folder)
            self.tokenizer.save_pretrained(folder)

        self.view.phase("saving")
        save_checkpoint(self.run_dir, self.state, write, keep=self.config.save_total_limit)
        self.saved_step = self.state.step

    def _save_unsaved(self) -> None:
        """Keep what the last finished step made; an unfinished one leaves no trace in weights."""
        if self.saved_step < self.state.step:
            self._save()

    # small things -----------------------------------------------------------------------------

    def _total_steps(self) -> int:
        if self.config.max_steps > 0:
            return self.config.max_steps
        prompts = self.config.num_train_epochs * len(self.train_records)
        return max(1, math.ceil(prompts / self.config.prompts_per_step))

    def _devices(self) -> str:
        size = self.conductor.world.size
        return str(self.device) if size == 1 else f"{size} ranks on {self.device.type}"

    def _facts(self) -> dict[str, str]:
        config = self.config
        return {
            "model": config.model_name_or_path or "embedded tiny Qwen3.5",
            "device": self._devices(),
            "data": f"{len(self.train_records)} prompts, {len(self.eval_records)} held out",
            "judge": config.reward.function
            or config.judge.base_url
            or "local heuristic (no judge of quality)",
            "run": _short(self.run_dir),
        }


def _short(path: str | Path) -> str:
    """Relative to the working folder where the path lies in it."""
    absolute = Path(os.path.abspath(path))
    here = Path.cwd()
    return str(absolute.relative_to(here) if absolute.is_relative_to(here) else absolute)
