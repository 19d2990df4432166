"""Everything about a planned run in one value."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..config import Config
from ..types import StoryRecord
from .advice import Advice, advise, longest_row, smallest_remedy
from .assumptions import Assumptions
from .balance import Groups
from .cost import RunCost, run_cost
from .hardware import Machine
from .lengths import draw_steps, recorded_steps
from .memory import MemoryPlan, memory_plan
from .records import local_records, settled
from .sample import trained_parameters
from .servers import training_part
from .shapes import ModelShape, shape_of_run
from .timing import StepTime, step_time

_SIMULATED_STEPS = 50


@dataclass(frozen=True)
class Plan:
    """A run on a machine, before it starts."""

    config: Config  # lengths and thinking settled
    shape: ModelShape
    machine: Machine  # all of it
    num_ranks: int  # that train
    memory: MemoryPlan
    step: StepTime
    cost: RunCost
    assumed: Assumptions
    lengths_source: str
    notes: tuple[str, ...]  # what was assumed of data that is not here
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
    local = local_records(config)
    config, notes = settled(config, local, assumed)
    records, held_out = local.training, local.held_out
    found = reckon(config, machine, records, held_out, assumed, lengths_file)
    shape, ranks, memory = found.shape, found.ranks, found.memory
    remedy = None if memory.fits else smallest_remedy(config, shape, ranks)
    return Plan(
        config=config,
        shape=shape,
        machine=machine,
        num_ranks=ranks.count,
        memory=memory,
        step=found.step,
        cost=found.cost,
        assumed=assumed,
        lengths_source=found.lengths_source,
        notes=notes,
        longest_row=longest_row(config, shape, ranks),
        advice=tuple(advise(config, shape, ranks, memory)),
        remedy=None if remedy is None else remedy[0],
    )


@dataclass(frozen=True)
class Reckoned:
    """Memory, time and money of a run as it is configured."""

    shape: ModelShape
    ranks: Machine  # that train
    memory: MemoryPlan
    step: StepTime
    cost: RunCost
    lengths_source: str


def reckon(
    config: Config,
    machine: Machine,
    records: Sequence[StoryRecord],
    held_out: Sequence[StoryRecord] | None,
    assumed: Assumptions,
    lengths_file: str | None = None,
) -> Reckoned:
    """What a run needs and takes, without a search for anything better.

    Args:
        config: as `records.settled` leaves it.
        machine: all of it, servers' GPUs included.
        records: training prompts; empty: not known.
        held_out: prompts of the evaluations; None: not known.

    Raises:
        UserError: the model's config or the lengths cannot be read.
    """
    shape = shape_of_run(config)
    ranks = training_part(config, machine)
    steps, source = steps_of(config, records, lengths_file)
    memory = memory_plan(config, shape, ranks)
    step = step_time_of(config, shape, ranks, steps, assumed, memory)
    num_held_out = None if held_out is None else len(held_out)
    cost = run_cost(
        config, machine, step, assumed, num_records=len(records), num_held_out=num_held_out
    )
    return Reckoned(shape, ranks, memory, step, cost, source)


def steps_of(
    config: Config, records: Sequence[StoryRecord], lengths_file: str | None
) -> tuple[list[list[list[int]]], str]:
    """Completion lengths to simulate, and where they come from."""
    if lengths_file is not None:
        return recorded_steps(lengths_file, config, _SIMULATED_STEPS), f"recorded: {lengths_file}"
    targets = [record.target_word_count for record in records] or None
    source = "targets of the data" if targets else "the recipe's mix (assumed)"
    return draw_steps(config, _SIMULATED_STEPS, targets=targets), source


def step_time_of(
    config: Config,
    shape: ModelShape,
    ranks: Machine,
    steps: Sequence[Groups],
    assumed: Assumptions,
    memory: MemoryPlan,
) -> StepTime:
    trained = trained_parameters(config, shape)
    return step_time(config, shape, ranks, steps, assumed, trained=trained, servers=memory.servers)
