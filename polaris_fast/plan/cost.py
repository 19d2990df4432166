"""The whole run: steps, GPU hours, judge tokens and money."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..config import Config
from ..judge.pricing import cost_usd, prices_of
from .assumptions import Assumptions
from .hardware import Machine
from .timing import StepTime


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
) -> RunCost:
    """Reckon the run from one step.

    Args:
        num_records: training prompts; 0: not known, as assumed.
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
    judgements = 0 if config.reward.function else rows + human
    per_row = step.rollout_tokens / (config.prompts_per_step * config.num_generations)
    prompt_tokens = int(judgements * (assumed.judge_rubric_tokens + per_row))
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
