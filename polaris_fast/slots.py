"""Micro-batches of one process: packed rows through forward, loss and backward, then the update.

The step decides which rows go together; this file runs them, and keeps them for further updates on
the same rollouts. With several ranks each one has a `SlotTrainer`, and `ranks` drives them alike.

Shapes: N target tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch

from polaris_kernels import LossRows, merge_metrics

from .config import Config
from .engine import Engine, UpdateResult
from .groups import row_seed
from .packing import PackedBatch, RowCost, pack_rows
from .types import Row, RowKind, UserError

Sums = dict[str, torch.Tensor]

_MAX_LOG_RATIO = 20.0  # one absurd token must not hide the others of a mean


@dataclass
class Slot:
    """One packed micro-batch, kept for further updates on the same rollouts."""

    batch: PackedBatch
    rows: list[Row]
    ref_logps: torch.Tensor | None  # (N,)
    old_logps: torch.Tensor | None = None  # (N,) the first forward's own log-probs
    is_idle: bool = False  # runs at weight 0 and is counted nowhere

    def __post_init__(self) -> None:
        # (N,) the rollout engine's; nan on human rows and where it gave none
        self.rollout_logps = self.batch.gather_targets(
            [row.rollout_logps for row in self.rows], missing=float("nan")
        )


@dataclass
class PassSums:
    """What one pass over a step's slots adds up to."""

    loss: Sums = field(default_factory=dict)
    sampling: Sums = field(default_factory=dict)  # see `sampling_gap`
    train_tokens: int = 0

    def add(self, other: PassSums) -> None:
        """Fold in another rank's or another pass's sums."""
        self.loss = merge_metrics([self.loss, other.loss])
        self.sampling = merge_metrics([self.sampling, other.sampling])
        self.train_tokens += other.train_tokens


class Slots(Protocol):
    """Trains slots on one rank or on many; `GRPOStep` sees no difference."""

    num_ranks: int
    row_cost: RowCost

    def first_pass(self, slots: Sequence[Sequence[Row]], denominator: float) -> None:
        """Forward and backward of up to `num_ranks` slots, one a rank."""
        ...

    def again(self, denominator: float) -> None:
        """Forward and backward of all slots of the first pass once more, for another update."""
        ...

    def take_sums(self) -> PassSums:
        """Sums over all ranks since the last call."""
        ...

    def update(self, grad_scale: float) -> UpdateResult:
        """The optimizer update of all ranks, see `Engine.update`."""
        ...

    def skip_updates(self, count: int) -> None:
        """See `Engine.skip_updates`."""
        ...

    def end_step(self) -> None:
        """Forget the step's slots, and gradients that no update has used."""
        ...

    def save(self, folder: Path) -> None:
        """See `Engine.save`; all ranks write into the same folder."""
        ...


class SlotTrainer:
    """`Slots` of one process."""

    num_ranks = 1

    def __init__(self, engine: Engine, config: Config, rank: int = 0) -> None:
        self.engine, self.config, self.rank = engine, config, rank
        self._is_seeded = False  # for the present step
        self.row_cost = RowCost.of_model(engine.model)
        self._slots: list[Slot] = []
        self._sums = PassSums()

    def first_pass(self, slots: Sequence[Sequence[Row]], denominator: float) -> None:
        self._seed_step()
        for rows in slots:
            self.check(rows)
            batch = pack_rows(rows, self.engine.device)
            ref_logps = self.engine.ref_logps(batch) if self.config.beta > 0 else None
            slot = Slot(batch, list(rows), ref_logps)
            slot.old_logps = self._backward(slot, denominator)
            self._sums.add(PassSums(sampling=sampling_gap(slot, slot.old_logps, self.config)))
            self._keep(slot)

    def check(self, rows: Sequence[Row]) -> None:
        """Raise UserError for rows that cannot be trained as configured."""
        if self.config.needs_rollout_logps:
            _check_rollout_logps(rows)

    def idle_pass(self, row: Row) -> None:
        """A forward and backward that counts for nothing, in step with busy ranks.

        Engines that shard the weights gather them for every forward, on all ranks together: those
        of `again` among them, so the slot is kept as any other.
        """
        self._seed_step()
        slot = Slot(pack_rows([row], self.engine.device), [row], None, is_idle=True)
        if self.config.beta > 0:
            slot.ref_logps = self.engine.ref_logps(slot.batch)
        self._backward(slot, 1.0)
        self._keep(slot)

    def again(self, denominator: float) -> None:
        for slot in self._slots:
            self._backward(slot, denominator)

    def take_sums(self) -> PassSums:
        sums, self._sums = self._sums, PassSums()
        return sums

    def update(self, grad_scale: float) -> UpdateResult:
        return self.engine.update(grad_scale)

    def skip_updates(self, count: int) -> None:
        self.engine.skip_updates(count)

    def end_step(self) -> None:
        self._slots.clear()
        self._sums = PassSums()
        self._is_seeded = False
        self.engine.discard_gradients()

    def save(self, folder: Path) -> None:
        self.engine.save(folder)

    def _seed_step(self) -> None:
        """Dropout of a step draws from (seed, updates before it, rank), so a resumed run repeats.

        torch's generators of all devices, once before the step's first pass.
        """
        if not self._is_seeded:
            stream = f"dropout/{self.engine.num_updates}/{self.rank}"
            torch.manual_seed(row_seed(self.config.seed, stream))
            self._is_seeded = True

    def _keep(self, slot: Slot) -> None:
        if self.config.num_iterations > 1:
            self._slots.append(slot)

    def _backward(self, slot: Slot, denominator: float) -> torch.Tensor:
        out = self.engine.backward(slot.batch, loss_rows(slot, denominator))
        if not slot.is_idle:
            self._sums.add(PassSums(loss=out.metrics, train_tokens=len(slot.batch.input_ids)))
        return out.logps


def _check_rollout_logps(rows: Sequence[Row]) -> None:
    for row in rows:
        if row.kind is RowKind.POLICY and row.rollout_logps is None:
            raise UserError(
                "is_correction and off_policy_mask_threshold need the rollout engine's log-probs, "
                f"but row {row.row_id} came without any; set them to none and null, or use an "
                "engine and sampling settings that give them"
            )


def sampling_gap(slot: Slot, logps: torch.Tensor, config: Config) -> Sums:
    """How far the trainer's log-probs are from the rollout engine's, over policy tokens.

    With l the difference trainer - engine: `sum_sampling_gap` adds |l|, `sum_mismatch_kl` adds
    exp(l) - 1 - l (k3, of KL(engine || trainer)), `num_is_high` and `num_is_low` count the tokens
    whose importance weight is clamped or masked at `is_cap` and `is_floor`. `sum_filter_gain` is
    what penalty, top-k and top-p add to the log-prob of the tokens they keep; the engine tells it
    of `num_filtered_tokens`.
    """
    engine = slot.rollout_logps
    filtered = slot.batch.gather_targets(
        [row.sampler_logps for row in slot.rows], missing=float("nan")
    )
    sampled = ~engine.isnan()
    both_known = sampled & ~filtered.isnan()
    ahead = torch.where(sampled, logps - engine, 0.0)
    gap = ahead.abs()
    log_weight = ahead
    if config.is_correction.startswith("geometric"):
        log_weight = _row_means(ahead, slot.batch.target_row, len(slot.rows))
    low, high = config.is_floor or 0.0, math.inf if config.is_cap is None else config.is_cap
    limited = sampled if config.is_correction != "none" else torch.zeros_like(sampled)
    return {
        "sum_mismatch_kl": (ahead.clamp(max=_MAX_LOG_RATIO).exp() - 1 - ahead).sum(),
        "num_is_high": (limited & (log_weight.exp() > high)).sum(),
        "num_is_low": (limited & (log_weight.exp() < low)).sum(),
        "sum_sampling_gap": gap.sum(),
        "sum_filter_gain": torch.where(both_known, filtered - engine, 0.0).sum(),
        "num_filtered_tokens": both_known.sum(),
        "num_sampled_tokens": sampled.sum(),
        "max_sampling_gap": gap.max() if gap.numel() else gap.sum(),
    }


def _row_means(values: torch.Tensor, row: torch.Tensor, num_rows: int) -> torch.Tensor:
    """(N,) the mean over each token's row; values and row ids are (N,)."""
    sums = values.new_zeros(num_rows).index_add(0, row, values)
    counts = values.new_zeros(num_rows).index_add(0, row, torch.ones_like(values))
    return (sums / counts.clamp(min=1))[row]


def loss_rows(slot: Slot, denominator: float) -> LossRows:
    """The loss's view of a slot: per-row values by row id, per-token values in packed order."""
    device = slot.batch.input_ids.device
    num_rows = len(slot.rows)
    return LossRows(
        row_of_token=slot.batch.target_row,
        num_rows=num_rows,
        advantages=torch.tensor([row.advantage for row in slot.rows], device=device),
        is_human=torch.tensor([row.kind is RowKind.HUMAN for row in slot.rows], device=device),
        old_logps=slot.old_logps,
        ref_logps=slot.ref_logps,
        rollout_logps=slot.rollout_logps,
        denominator=denominator,
        row_weight=torch.zeros(num_rows, device=device) if slot.is_idle else None,
    )
