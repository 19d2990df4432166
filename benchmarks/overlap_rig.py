"""Real GRPO steps with paced rollouts, for measuring how the judge hides behind the training.

Step, scorer, judge pool, packing, model and optimizer are the product's own; the judge is the
scripted endpoint in a process of its own. Only the rollouts are stand-ins: random tokens, whose
rows finish in random order at even distances over the time that generation is meant to take.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from benchmarks.scripted_endpoint import Latency, Script, ScriptedProcess
from polaris_fast.config import Config
from polaris_fast.config_file import load_config
from polaris_fast.embedded import build_tokenizer
from polaris_fast.engine import SingleEngine
from polaris_fast.judge import JudgePool, Scorer
from polaris_fast.metrics import PhaseClock
from polaris_fast.model.load import prepare_model
from polaris_fast.model.tiny import Family, tiny_model
from polaris_fast.progress import make_view
from polaris_fast.prompts import PromptBuilder
from polaris_fast.rollout import Completion, RolloutRequest, SamplingParams
from polaris_fast.scoring import StepScorer
from polaris_fast.slots import SlotTrainer
from polaris_fast.step import GRPOStep, StepResult
from polaris_fast.types import FinishReason, StoryRecord

GROUPS, ROWS = 8, 6  # of a step; one row of each group is a human story
VOCAB, TOKENS = 300, 384  # entries; tokens of a completion, for a second or two of training
STEPS_BEFORE = 20  # the human rows have their full weight from here on
THINGS = ("sea", "dog", "rain", "bell", "road", "lamp", "boat", "wall")


class PacedRollouts:
    """Random completions that finish one by one over `seconds`, in random order."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def generate(
        self,
        requests: Sequence[RolloutRequest],
        params: SamplingParams,
        on_finish: Callable[[int, Completion], None],
        on_token: Callable[[int], None] | None = None,
    ) -> None:
        order = list(range(len(requests)))
        random.Random(requests[0].seed).shuffle(order)
        begun = time.perf_counter()
        for place, index in enumerate(order, start=1):
            due = begun + self.seconds * place / len(order)
            time.sleep(max(0.0, due - time.perf_counter()))
            source = random.Random(requests[index].seed)
            ids = source.choices(range(5, VOCAB - 10), k=TOKENS)
            on_finish(index, Completion(ids, [0.0] * TOKENS, [0.0] * TOKENS, FinishReason.STOP))


@dataclass(frozen=True)
class Setting:
    """One case: times are multiples of the training phase."""

    median: float  # of the judge's latency, log-normal
    sigma: float  # of its logarithm
    generation: float
    fixed_order: bool = False  # deterministic mode: groups train in index order


class Rig:
    """Runs steps of one model under any setting."""

    def __init__(self, rollouts: Any = None, *, family: Family = "qwen3_5") -> None:
        """
        Args:
            rollouts: a `RolloutEngine`; None: `PacedRollouts`. May be exchanged between steps.
        """
        self.config = _config()
        self.rollouts = rollouts or PacedRollouts()
        self.model = prepare_model(tiny_model(family, vocab_size=VOCAB, seed=1))
        self._engine = SingleEngine(
            self.model, self.config, self.config.loss_spec(), total_updates=10_000
        )
        texts = [record(n, i).story or "" for n in range(4) for i in range(GROUPS)]
        self._builder = PromptBuilder(build_tokenizer(texts, VOCAB), self.config)
        self.steps_done = 0

    def training_s(self, num_steps: int = 3) -> float:
        """Seconds that the training phase of a step takes; the first steps warm it up."""
        with judge(Latency(), self.config) as (pool, _):
            results = [self.step(pool) for _ in range(1 + num_steps)]
        return sum(r.clock.seconds("train") for r in results[1:]) / num_steps

    def run(
        self, setting: Setting, training_s: float, num_steps: int
    ) -> tuple[list[StepResult], Script]:
        """`num_steps` steps under a setting, and the script of their judge."""
        self.rollouts.seconds = setting.generation * training_s
        latency = Latency(setting.median * training_s, setting.sigma)
        with judge(latency, self.config) as (pool, script):
            return [self.step(pool, setting.fixed_order) for _ in range(num_steps)], script

    def step(self, pool: Scorer, fixed_order: bool = False) -> StepResult:
        """The next step, of stories that no step has had before."""
        number = self.steps_done
        self.steps_done += 1
        step = self.make_step(pool, fixed_order)
        return step.run(STEPS_BEFORE + number, 0.4, lambda n: record(number, n))

    def make_step(self, pool: Scorer, fixed_order: bool = False) -> GRPOStep:
        """What runs a step, or trains a batch that is written elsewhere."""
        return GRPOStep(
            self.config,
            slots=SlotTrainer(self._engine, self.config),
            rollouts=self.rollouts,
            builder=self._builder,
            spec=self.config.loss_spec(),
            make_scorer=lambda clock: self._scorer(pool, clock),
            view=make_view(False),
            check_stop=lambda: None,
            fixed_order=fixed_order,
        )

    def _scorer(self, pool: Scorer, clock: PhaseClock) -> StepScorer:
        return StepScorer(pool, self.config, clock=clock)


@contextmanager
def judge(latency: Latency, config: Config) -> Iterator[tuple[JudgePool, Script]]:
    """A pool on the scripted endpoint with this latency."""
    script = Script(seed=1, latency=latency)
    with ScriptedProcess(script) as server:
        settings = config.judge.model_copy(
            update={"base_url": server.base_url, "model": "scripted-judge"}
        )
        with JudgePool(settings) as pool:
            yield pool, script


def record(step: int, index: int) -> StoryRecord:
    thing = THINGS[index % len(THINGS)]
    story = f"On day {step} the {thing} was old. It waited for {step + index} hours, then it slept."
    return StoryRecord(f"{step}/{index}", f"Write about the {thing}.", 16, story)


def _config() -> Config:
    return load_config(
        None,
        {
            "prompts_per_step": str(GROUPS),
            "num_generations": str(ROWS),
            "max_prompt_length": "100",
            "max_completion_length": str(TOKENS),
            "dtype": "float32",
            "learning_rate": "1e-6",
            "hri.num_judge_samples": "1",
            "judge.journal": "off",
            "judge.hedge_budget": "0",  # a second request would have another latency
            "judge.start_concurrency": "100",  # all rows at once, whatever the limiter has learnt
            "judge.max_concurrency": "100",
        },
    )
