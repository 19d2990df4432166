"""The whole run: steps, GPU hours, judge tokens and money."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from ..config import Config
from ..judge.canary import BASELINE_SAMPLES, canaries
from ..judge.pricing import cost_usd, prices_of
from .assumptions import Assumptions
from .hardware import Machine
from .lengths import TOKENS_PER_WORD
from .timing import StepTime


@dataclass(frozen=True)
class NotCounted:
    """What a run may do beyond the plan, and nobody can know before it."""

    keys: tuple[str, ...]  # of the configuration that decide on it
    words: str


@dataclass(frozen=True)
class RunCost:
    """None where a price is unknown."""

    num_prompts: int
    prompts_source: str
    num_steps: int
    hours: float
    gpu_hours: float
    gpu_usd: float | None
    judgements: int
    judge_prompt_tokens: int
    judge_completion_tokens: int
    judge_usd: float | None
    not_counted: tuple[NotCounted, ...] = ()

    @property
    def total_usd(self) -> float | None:
        """Machines and judge; None while either is unknown."""
        if self.gpu_usd is None or self.judge_usd is None:
            return None
        return self.gpu_usd + self.judge_usd


def run_cost(
    config: Config,
    machine: Machine,
    step: StepTime,
    assumed: Assumptions,
    *,
    num_records: int = 0,
    num_held_out: int | None = 0,
) -> RunCost:
    """Reckon the run from one step.

    Args:
        num_records: training prompts; 0: not known, as assumed.
        num_held_out: held-out prompts; None: not known.
    """
    prompts = num_records or int(assumed.num_prompts)
    source = "counted in the data" if num_records else "assumed: num_prompts"
    steps = config.max_steps
    if steps < 0:
        steps = max(1, math.ceil(config.num_train_epochs * prompts / config.prompts_per_step))
    hours = steps * step.total / 3600
    is_gpu = machine.device == "cuda"
    gpu_hours = hours * machine.count if is_gpu else 0.0
    price = assumed.gpu_hour_usd
    rows = steps * config.prompts_per_step * config.num_generations
    human = 0
    if config.hri.mode != "off":
        rows -= max(0, steps - 1) * config.prompts_per_step  # the first step's weight is 0
        seen = min(prompts, steps * config.prompts_per_step)
        human = seen * config.hri.num_judge_samples if config.hri.fixed_reward is None else 0
    evaluated = num_evaluations(config, steps) * config.num_eval_generations * (num_held_out or 0)
    stories = 0 if config.reward.function else rows + human + evaluated
    canaries_judged = _canary_judgements(config, steps)
    judgements = stories + canaries_judged
    per_row = step.story_tokens / (config.prompts_per_step * config.num_generations)
    read = stories * per_row + canaries_judged * _canary_tokens()
    prompt_tokens = int(judgements * assumed.judge_rubric_tokens + read)
    completion_tokens = int(judgements * assumed.judge_answer_tokens)
    cached = int(judgements * assumed.judge_rubric_tokens * assumed.judge_cached_share)
    return RunCost(
        num_prompts=prompts,
        prompts_source=source,
        num_steps=steps,
        hours=hours,
        gpu_hours=gpu_hours,
        gpu_usd=gpu_hours * price if price > 0 or not is_gpu else None,
        judgements=judgements,
        judge_prompt_tokens=prompt_tokens,
        judge_completion_tokens=completion_tokens,
        judge_usd=_judge_usd(config, prompt_tokens, cached, completion_tokens),
        not_counted=tuple(_not_counted(config, steps, rows, evaluated, num_held_out)),
    )


def num_evaluations(config: Config, steps: int) -> int:
    """How often a run of so many steps looks at its held-out prompts: `RunEvaluations`."""
    every = config.eval_steps
    between = steps // every if every else 0
    if every and steps % every == 0 and config.eval_on_end:
        between -= 1  # the last step's is the one at the end
    return config.eval_on_start + between + config.eval_on_end


def _canary_judgements(config: Config, steps: int) -> int:
    every = config.judge.canary_steps
    if not every:
        return 0
    # the one that speaks to the judge is judged without its plea, too
    each = len(canaries()) + config.judge.scans()
    return each * (BASELINE_SAMPLES + (steps - 1) // every)


def _canary_tokens() -> float:
    words = [len(story.split()) for story in canaries().values()]
    return sum(words) / len(words) * TOKENS_PER_WORD


def _not_counted(
    config: Config, steps: int, rows: int, evaluated: int, num_held_out: int | None
) -> Iterator[NotCounted]:
    judge = config.judge
    if config.zero_spread_resample_rounds:
        most = steps * config.prompts_per_step * config.zero_spread_resample_rounds
        yield NotCounted(
            ("zero_spread_resample_rounds",),
            f"groups written anew where a group has no spread: at most {most:,} more groups",
        )
    if num_evaluations(config, steps) and num_held_out != 0:
        keys = ("eval_on_start", "eval_steps", "eval_on_end")
        what = "hours of evaluations"
        if num_held_out is None:
            what = "evaluations: held-out prompts are not on this machine"
        yield NotCounted(tuple(key for key in keys if getattr(config, key)), what)
    if config.reward.function is not None or judge.base_url is None:
        return
    if judge.resample_below_sigmas and judge.noise_std:
        yield NotCounted(
            ("judge.resample_below_sigmas",),
            f"second judgements of groups within the judge's noise: at most {rows:,}",
        )
    if judge.scans():
        yield NotCounted(
            ("judge.injection_scan",),
            f"second judgements of stories that speak to the judge: at most {rows + evaluated:,}",
        )
    share = judge.retry_budget + judge.hedge_budget
    if share:
        yield NotCounted(
            ("judge.retry_budget", "judge.hedge_budget"),
            f"requests sent again: at most {share:.0%} more",
        )


def _judge_usd(config: Config, prompt: int, cached: int, completion: int) -> float | None:
    if prompt == 0 or config.judge.base_url is None:  # none, or the local heuristic judge
        return 0.0
    return cost_usd(
        prices_of(config.judge),
        prompt_tokens=prompt,
        cached_tokens=cached,
        completion_tokens=completion,
    )
