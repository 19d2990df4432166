"""What a run will need and take, in one line before it starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..config import Config
from ..types import StoryRecord, UserError
from .assumptions import Assumptions
from .build import reckon
from .cost import RunCost
from .hardware import Machine, this_cpu, this_machine
from .memory import MemoryPlan
from .servers import own_gpus
from .table import gib, usd


def estimate_before_run(
    config: Config,
    device_type: str,
    num_ranks: int,
    records: Sequence[StoryRecord],
    held_out: Sequence[StoryRecord] = (),
) -> str | None:
    """The line that a run prints; None where it takes neither a GPU nor money.

    Never raises for a model that cannot be traced: the run itself may well load it.

    Args:
        device_type: "cuda" or "cpu", of every rank.
        num_ranks: that train; launched servers' own GPUs come on top.
        records: training prompts.
        held_out: prompts of the evaluations.
    """
    is_gpu = device_type == "cuda"
    if not is_gpu and (config.reward.function or config.judge.base_url is None):
        return None
    try:
        machine = this_machine() if is_gpu else this_cpu()
        share = machine.memory_bytes if is_gpu else machine.memory_bytes // num_ranks
        count = num_ranks + (own_gpus(config) if is_gpu else 0)
        machine = replace(machine, count=count, memory_bytes=share)
        found = reckon(config, machine, records, held_out, Assumptions())
        return estimate_summary(found.memory, found.cost, machine)
    except UserError as error:
        return f"no estimate: {error}"


def estimate_summary(memory: MemoryPlan, cost: RunCost, machine: Machine) -> str:
    """One line of what a run will need and take; its rates are assumptions (docs/plan.md)."""
    parts = [f"{cost.num_steps:,} steps", f"{cost.judgements:,} judgements"]
    if cost.judge_usd != 0:
        parts[-1] += (
            f" ({cost.judge_prompt_tokens / 1e6:,.1f} M tokens read, "
            f"{cost.judge_completion_tokens / 1e6:,.1f} M written, "
            f"{usd(cost.judge_usd, 'set judge.price_input and price_output')})"
        )
    if machine.device == "cuda":  # a CPU's rates are too rough to be told
        parts.append(f"about {cost.hours:,.1f} h, {cost.gpu_hours:,.1f} GPU hours")
    verdict = "" if memory.fits else ": IT WILL NOT FIT"
    parts.append(f"{gib(memory.total)} of {gib(memory.available)} a rank{verdict}")
    if cost.not_counted:
        keys = [key for found in cost.not_counted for key in found.keys]
        parts.append(f"not counted: {', '.join(keys)} (docs/plan.md)")
    return f"estimate: {'; '.join(parts)}"
