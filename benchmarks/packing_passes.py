"""Forward and backward of the same rows and loss, packed by the product or padded for transformers.

    loss = - sum_r w_r sum_t log p(t) / N        N: completion tokens of all rows

B rows of a micro-batch · L its longest · D hidden · n its completion tokens. Gradients stay in the
model until the next run, so that results can be compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from benchmarks.packing_rows import WeightedRow
from polaris_fast.model.packed import packed_hidden_states
from polaris_fast.packing import RowCost, pack_rows, plan_slots
from polaris_kernels import FusedHead, LossRows, LossSpec

Head = Literal["fused", "plain"]
_SPEC = LossSpec(loss_type="reinforce")


@dataclass(frozen=True)
class PackedPass:
    """The product's way: slots of at most `token_budget` tokens, no padding."""

    model: Any
    """went through `prepare_model`"""
    rows: Sequence[WeightedRow]
    token_budget: int

    @property
    def name(self) -> str:
        return f"packed, slots of {self.token_budget:,} tokens"

    def run(self) -> float:
        """The loss of all rows; gradients are in the model."""
        self.model.zero_grad(set_to_none=True)
        total = _num_targets(self.rows)
        lengths = [row.num_tokens for row in self.rows]
        loss = 0.0
        for slot in plan_slots(lengths, self.token_budget, cost=RowCost.of_model(self.model)):
            rows = [self.rows[i] for i in slot]
            batch = pack_rows(rows)
            hidden = packed_hidden_states(self.model, batch)[batch.logit_positions]
            weights = torch.tensor([row.weight for row in rows])
            loss += _backward_fused(
                self.model.lm_head, hidden, batch.targets, batch.target_row, weights, total
            )
        return loss


@dataclass(frozen=True)
class PaddedPass:
    """transformers' own forward over right-padded micro-batches."""

    model: Any
    """as transformers made it, but for a `FusedHead` with head "fused" """
    rows: Sequence[WeightedRow]
    batch_size: int
    head: Head = "fused"
    to_longest: bool = False
    """pad to the longest of all rows, in their order; else sort by length, pad per micro-batch"""
    with_mask: bool = True
    """causal layers need no mask for padding on the right; leaving it out is another kernel"""

    @property
    def name(self) -> str:
        mask = "mask" if self.with_mask else "no mask"
        return f"{self.batch_size} rows, {mask}, {self.head} head"

    def run(self) -> float:
        """The loss of all rows; gradients are in the model."""
        self.model.zero_grad(set_to_none=True)
        total = _num_targets(self.rows)
        rows = list(self.rows)
        if not self.to_longest:
            rows.sort(key=lambda row: row.num_tokens, reverse=True)
        longest = max(row.num_tokens for row in rows)
        loss = 0.0
        for start in range(0, len(rows), self.batch_size):
            part = rows[start : start + self.batch_size]
            width = longest if self.to_longest else max(row.num_tokens for row in part)
            loss += self._micro_batch(part, width, total)
        return loss

    def _micro_batch(self, rows: list[WeightedRow], width: int, total: int) -> float:
        ids, mask, positions, row_of_target = _pad(rows, width)
        hidden = self.model.get_decoder()(
            input_ids=ids, attention_mask=mask if self.with_mask else None, use_cache=False
        ).last_hidden_state.flatten(0, 1)[positions]  # (n, D)
        targets = ids.flatten()[positions + 1]
        weights = torch.tensor([row.weight for row in rows])
        backward = _backward_fused if self.head == "fused" else _backward_plain
        return backward(self.model.lm_head, hidden, targets, row_of_target, weights, total)


def _pad(rows: Sequence[WeightedRow], width: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """ids and mask (B, L), the flat positions before each completion token and their rows (n,)."""
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    positions, owners = [], []
    for i, row in enumerate(rows):
        ids[i, : row.num_tokens] = torch.tensor([*row.prompt_ids, *row.completion_ids])
        mask[i, : row.num_tokens] = 1
        first = i * width + len(row.prompt_ids) - 1
        positions.append(torch.arange(first, first + len(row.completion_ids)))
        owners.append(torch.full((len(row.completion_ids),), i))
    return ids, mask, torch.cat(positions), torch.cat(owners)


def _num_targets(rows: Sequence[WeightedRow]) -> int:
    return sum(len(row.completion_ids) for row in rows)


def _backward_fused(
    head: FusedHead, hidden: Tensor, targets: Tensor, row: Tensor, weights: Tensor, total: int
) -> float:
    """hidden (n, D), targets and row (n,), weights (B,)"""
    rows = LossRows(
        row_of_token=row, num_rows=len(weights), advantages=weights, denominator=float(total)
    )
    out: Any = head(hidden, targets=targets, rows=rows, spec=_SPEC)
    out.loss.backward()
    return float(out.loss.detach())


def _backward_plain(
    head: Any, hidden: Tensor, targets: Tensor, row: Tensor, weights: Tensor, total: int
) -> float:
    """The same through full logits and autograd."""
    logits = head(hidden).float()  # (n, V)
    logps = logits.gather(-1, targets[:, None])[:, 0] - logits.logsumexp(-1)
    loss = -(weights[row] * logps).sum() / total
    loss.backward()
    return float(loss.detach())
