"""Everything about a planned run in one value."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..config import Config
from ..data import load_records, split_records
from ..types import StoryRecord
from .advice import Advice, advise, longest_row, smallest_remedy
from .assumptions import Assumptions
from .cost import RunCost, run_cost
from .hardware import Machine
from .lengths import TOKENS_PER_WORD, draw_steps, recorded_steps
from .memory import MemoryPlan, memory_plan
from .shapes import ModelShape, shape_of_run
from .timing import StepTime, step_time

_SIMULATED_STEPS = 50


@dataclass(frozen=True)
class Plan:
    """A run on a machine, before it starts."""

    config: Config  # lengths resolved
    shape: ModelShape
    machine: Machine
    memory: MemoryPlan
    step: StepTime
    cost: RunCost
    assumed: Assumptions
    lengths_source: str
    longest_row: int
    advice: tuple[Advice, ...]
    remedy: tuple[str, ...] | None  # settings that make it fit; None: it fits, or nothing does


def make_plan(
    config: Config,
    machine: Machine,
    *,
    assumed: Assumptions | None = None,
    lengths_file: str | None = None,
) -> Plan:
    """Plan a run. Takes seconds, loads no weights and downloads nothing.

    Raises:
        UserError: the model's config, the data or the lengths cannot be read.
    """
    assumed = assumed or Assumptions()
    records = _local_records(config)
    config = resolve_lengths(config)
    shape = shape_of_run(config)
    if lengths_file is None:
        targets = [record.target_word_count for record in records] or None
        steps = draw_steps(config, _SIMULATED_STEPS, targets=targets)
        source = "targets of the data" if targets else "the recipe's mix (assumed)"
    else:
        steps = recorded_steps(lengths_file, config, _SIMULATED_STEPS)
        source = f"recorded: {lengths_file}"
    step = step_time(config, shape, machine, steps, assumed)
    memory = memory_plan(config, shape, machine)
    remedy = None if memory.fits else smallest_remedy(config, shape, machine)
    return Plan(
        config=config,
        shape=shape,
        machine=machine,
        memory=memory,
        step=step,
        cost=run_cost(config, machine, step, assumed, num_records=len(records)),
        assumed=assumed,
        lengths_source=source,
        longest_row=longest_row(config, shape, machine),
        advice=tuple(advise(config, shape, machine, memory)),
        remedy=None if remedy is None else remedy[0],
    )


def resolve_lengths(config: Config) -> Config:
    """`max_completion_length: null` from the longest story's words: no tokenizer is loaded."""
    if config.max_completion_length is not None:
        return config
    words = (len((record.story or "").split()) for record in load_records(config.data))
    return config.with_room_for(int(max(words, default=0) * TOKENS_PER_WORD))


def _local_records(config: Config) -> list[StoryRecord]:
    """Training records that can be read here and now; none for data that is elsewhere."""
    path = config.data.path
    if path is None and config.model_name_or_path is not None:
        return []  # a shipped configuration whose data is still to be named
    if path is not None and not Path(path).exists():
        return []
    train, _ = split_records(config.data, load_records(config.data))
    return train
