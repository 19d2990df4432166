"""A step of TRL's own `GRPOTrainer`, taken one at a time and timed by phase.

The trainer lives in a process of its own: neither side pays for the other's threads or garbage.
`trainer.train()` runs whole and waits in front of each step until `TheirStep.step` is called:
nothing of TRL's is replaced. Clocks stand around the methods that make up a phase, and `generate`
gets one more logits processor, which raises the script's next token.

Settings are TRL's own but for these: fp32 and no gradient checkpointing (as on our side; its
defaults are autocast to bf16 and checkpointing), and all rows of a step in one generation batch.
"""

from __future__ import annotations

import multiprocessing
import time
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.step_phases import Sample
from benchmarks.step_rows import GROUP, Script, raise_next, reward
from polaris_fast.metrics import PhaseClock

_MAX_STEPS = 1_000


class TheirStep:
    """A context manager; `step` takes the next training step."""

    def __init__(self, folder: Path, prompts: list[str], script: Script, *, batch_size: int):
        """
        Args:
            folder: of model and tokenizer.
            prompts: texts of the prompts, ready for the tokenizer.
            batch_size: rows of a forward and backward; divides the rows of a step.
        """
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        arguments = (theirs, folder, prompts, script, batch_size)
        self._process = context.Process(target=_serve, args=arguments, daemon=True)

    def __enter__(self) -> TheirStep:
        self._process.start()
        self._receive()
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.join()

    def step(self) -> Sample:
        """One step from its start to the next one's."""
        self._pipe.send("step")
        sample: Sample = self._receive()
        return sample

    def gradients(self) -> dict[str, Tensor]:
        """Of the first step, as the optimizer got them."""
        self._pipe.send("gradients")
        return {name: torch.from_numpy(array) for name, array in self._receive().items()}

    def _receive(self) -> Any:
        found = self._pipe.recv()
        if isinstance(found, BaseException):
            raise found
        return found


def _serve(
    pipe: Connection, folder: Path, prompts: list[str], script: Script, batch_size: int
) -> None:
    """The other process: a training run that waits for orders before each step."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _Watched(pipe, _make_trainer(folder, prompts, script, batch_size), script).run()
    except Exception as fault:  # raised again by the one who asked
        pipe.send(fault)


class _Watched:
    """The trainer, with what the benchmark hangs on it."""

    def __init__(self, pipe: Connection, trainer: Any, script: Script) -> None:
        self.pipe, self.trainer, self.script = pipe, trainer, script
        self.clock, self.begun = PhaseClock(), 0.0
        self.gradients: dict[str, Any] = {}
        self._watch()

    def run(self) -> None:
        """Until the process is ended."""
        self.trainer.train()

    def _await_order(self) -> None:
        """In front of a step: report the one before, obey until the next is wanted."""
        step_ms = 1e3 * (time.perf_counter() - self.begun)
        self.pipe.send(self._sample(step_ms) if self.begun else "ready")
        while self.pipe.recv() == "gradients":
            self.pipe.send(self.gradients)
        self.clock.reset()
        self.begun = time.perf_counter()

    def _sample(self, step_ms: float) -> Sample:
        ms = lambda phase: 1e3 * self.clock.seconds(phase)
        log = self.trainer.state.log_history[-1]
        return Sample(
            generation=ms("generation"),
            reward=ms("reward"),
            forward=ms("forward"),
            backward=ms("backward"),
            optimizer=ms("optimizer"),
            step=step_ms,
            facts={
                "reward": log["reward"],
                "loss": log["loss"],
                "gradient norm": log["grad_norm"],
                "entropy": log["entropy"],
                "tokens a row": log["completions/mean_length"],
            },
        )

    def _watch(self) -> None:
        from transformers import PrinterCallback

        trainer = self.trainer
        for owner, method, phase in (
            (trainer, "_generate", "generation"),
            (trainer, "_calculate_rewards", "reward"),
            (trainer, "compute_loss", "forward"),
            (trainer.accelerator, "backward", "backward"),
            (trainer, "_clip_grad_norm", "optimizer"),
            (trainer.model, "zero_grad", "optimizer"),
        ):
            setattr(owner, method, self._timed(getattr(owner, method), phase))
        generate = trainer.model.generate
        trainer.model.generate = lambda **inputs: generate(
            **inputs, logits_processor=[_Scripted(self.script, inputs)]
        )
        trainer.add_callback(self._callback())
        trainer.remove_callback(PrinterCallback)

    def _timed(self, method: Callable[..., Any], phase: str) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.clock.phase(phase):
                return method(*args, **kwargs)

        return timed

    def _callback(self) -> Any:
        from transformers import TrainerCallback

        side = self

        class Turns(TrainerCallback):
            def on_train_begin(self, args, state, control, optimizer=None, **_):  # type: ignore[no-untyped-def]
                optimizer.step = side._timed(optimizer.step, "optimizer")

            def on_step_begin(self, args, state, control, **_):  # type: ignore[no-untyped-def]
                side._await_order()

            def on_pre_optimizer_step(self, args, state, control, model=None, **_):  # type: ignore[no-untyped-def]
                if not side.gradients:
                    named = model.named_parameters()
                    side.gradients = {n: p.grad.numpy().copy() for n, p in named}

        return Turns()


class _Scripted:
    """A logits processor of one `generate` call."""

    def __init__(self, script: Script, inputs: dict[str, Any]) -> None:
        ids, mask = inputs["input_ids"], inputs["attention_mask"].bool()
        self._table = script.table([tuple(i[m].tolist()) for i, m in zip(ids, mask, strict=True)])
        self._start = ids.shape[1]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        raise_next(scores, self._table[:, input_ids.shape[1] - self._start])
        return scores


def _make_trainer(folder: Path, prompts: list[str], script: Script, batch_size: int) -> Any:
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    args = GRPOConfig(
        output_dir=str(folder / "trl"),
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=script.num_rows // batch_size,
        num_generations=GROUP,
        max_completion_length=max(len(row) for group in script.completions for row in group),
        temperature=1.0,
        top_k=0,
        beta=0.0,
        epsilon=0.2,
        epsilon_high=0.28,
        loss_type="dapo",
        scale_rewards="group",
        learning_rate=1e-6,
        lr_scheduler_type="constant",
        max_grad_norm=1.0,
        max_steps=_MAX_STEPS,
        logging_steps=1,
        shuffle_dataset=False,
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
    )
    return GRPOTrainer(
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32),
        reward,
        args=args,
        train_dataset=Dataset.from_dict({"prompt": prompts * _MAX_STEPS}),
        processing_class=AutoTokenizer.from_pretrained(folder),
    )
