"""The run's own `Trainer`, taken one step at a time and timed by its own phases.

The trainer runs whole: rows, judge (a reward function), packing, update, metrics, logs. Its view
hands the turn back at the end of each step. Two things are hung on it: the scripted next tokens in
the decode loop, and a clock around the policy's forward, which the trainer does not tell apart from
backward.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from benchmarks.step_phases import Sample
from benchmarks.step_rows import GROUP, Script, raise_next
from polaris_fast.config import Config
from polaris_fast.config_file import load_config
from polaris_fast.progress import QuietView
from polaris_fast.ranks.conductor import Conductor
from polaris_fast.ranks.world import World
from polaris_fast.rollout.hf import HFEngine, Wave
from polaris_fast.stopping import StopFlag
from polaris_fast.trainer import Trainer

REWARD = "benchmarks.step_rows:reward"


class _Done(Exception):
    """Enough steps were taken."""


def our_config(folder: Path, script: Script, **more: str) -> Config:
    """Settings that match the other side's; everything else is the product's default."""
    given = {
        "model_name_or_path": folder,
        "output_dir": folder / "polaris",
        "data.path": folder / "records.jsonl",
        "data.length_sentence": '"{words} words."',
        "dtype": "float32",
        "device": "cpu",
        "prompts_per_step": len(script.prompts),
        "num_generations": GROUP,
        "max_completion_length": max(len(row) for group in script.completions for row in group),
        "temperature": 1.0,
        "top_p": 1.0,
        "top_k": 0,
        "repetition_penalty": 1.0,
        "learning_rate": 1e-6,
        "max_grad_norm": 1.0,
        "loss_type": "dapo",
        "epsilon": 0.2,
        "epsilon_high": 0.28,
        "beta": 0.0,
        "scale_rewards": "group",
        "hri.mode": "off",
        "reward.function": REWARD,
        "max_steps": 1_000,
        "save_steps": 0,
        "data.eval_fraction": 0.0,  # every prompt is trained on, every step has them all
        "eval_on_start": "false",
        "eval_on_end": "false",
        "report_to": "[]",
    }
    return load_config("default_cpu", {**{key: str(value) for key, value in given.items()}, **more})


class OurSteps:
    """Runs the trainer on the calling thread; `between` is called after every step."""

    def __init__(self, config: Config, script: Script, between: Callable[[Sample], bool]) -> None:
        """
        Args:
            between: gets each step's sample; False ends the run.
        """
        self.between = between
        self.gradients: dict[str, Tensor] = {}  # of the first step; its norm is not clipped
        self._forward_s, self._begun = 0.0, 0.0
        self._trainer = _Watched(config, script, self)

    def run(self) -> None:
        """Steps until `between` says no."""
        try:
            self._trainer.run()
        except _Done:
            return

    def begin(self) -> None:
        """The turn is ours."""
        self._forward_s, self._begun = 0.0, time.perf_counter()

    def end(self, metrics: Mapping[str, Any]) -> None:
        """A step is over, its metrics are written."""
        step_ms = 1e3 * (time.perf_counter() - self._begun)
        if not self.between(_sample(metrics, 1e3 * self._forward_s, step_ms)):
            raise _Done
        self.begin()

    def watch(self, engine: Any) -> None:
        """Hang clock and gradients on the engine that trains."""
        policy, update = engine.policy.forward, engine.update

        def forward(*args: Any) -> Any:
            begun = time.perf_counter()
            out = policy(*args)
            self._forward_s += time.perf_counter() - begun
            return out

        def first_update(grad_scale: float) -> Any:
            named = engine.model.named_parameters()
            self.gradients = {name: p.grad.clone() * grad_scale for name, p in named}
            engine.update = update
            return update(grad_scale)

        engine.policy.forward, engine.update = forward, first_update


class _Watched(Trainer):
    """The trainer, with what the benchmark hangs on it once it is set up."""

    def __init__(self, config: Config, script: Script, side: OurSteps) -> None:
        super().__init__(config, _Turns(side), StopFlag(), Conductor(World()))
        self._script, self._side = script, side

    def _setup(self, stack: ExitStack) -> None:
        super()._setup(stack)
        assert isinstance(self.rollouts, HFEngine)
        self.rollouts.wave_type = type("ScriptedWave", (_Scripted,), {"script": self._script})
        self._side.watch(self.slots.engine)  # type: ignore[attr-defined]

    def _loop(self) -> None:
        self._side.begin()
        super()._loop()


class _Turns(QuietView):
    """Says when a step is over."""

    def __init__(self, side: OurSteps) -> None:
        super().__init__(io.StringIO())
        self._side = side

    def step(self, step: int, metrics: Mapping[str, Any]) -> None:
        super().step(step, metrics)
        self._side.end(metrics)


class _Scripted(Wave):
    """A wave whose rows take the script's tokens."""

    script: ClassVar[Script]

    def __init__(self, model: Any, requests: Sequence[Any], *more: Any) -> None:
        super().__init__(model, requests, *more)
        self._table = self.script.table([request.prompt_ids for request in requests])
        self._place = 0
        raise_next(self.logits, self._table[self.rows, 0])

    def _decode(self, tokens: Tensor) -> None:
        super()._decode(tokens)
        self._place += 1
        raise_next(self.logits, self._table[self.rows, self._place])


def _sample(metrics: Mapping[str, Any], forward_ms: float, step_ms: float) -> Sample:
    ms = lambda phase: 1e3 * metrics.get(f"perf/{phase}_s", 0.0)
    return Sample(
        generation=ms("rollout"),
        reward=ms("judge_exposed"),
        forward=forward_ms,
        backward=ms("train") - forward_ms,
        optimizer=ms("optimizer"),
        step=step_ms,
        facts={
            "reward": metrics["reward"],
            "loss": metrics["loss"],
            "gradient norm": metrics["grad_norm"],
            "entropy": metrics["entropy"],
            "tokens a row": metrics["completions/mean_length"],
        },
    )
