"""Rows of any length -> packed micro-batches without padding, balanced by cost.

Shapes: T packed tokens, R rows, N target tokens (tokens the loss looks at).

`plan_slots` says which rows go together, `pack_rows` makes the buffer of one such slot. Row r of a
buffer is the r-th row given; its completion tokens are its targets, and the hidden state that
predicts a token is the one of the token before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from polaris_fast.model.layout import PackedLayout, upload

_FULL = 0.85  # of a round's token budget, for a round that need not wait for more rows


class TokenRow(Protocol):
    """What packing needs of a row."""

    @property
    def prompt_ids(self) -> Sequence[int]: ...

    @property
    def completion_ids(self) -> Sequence[int]: ...


@dataclass(frozen=True)
class RowCost:
    """Cost of a row of n tokens: `linear * n + attention * n^2`, in any unit."""

    linear: float = 1.0
    attention: float = 0.0

    def __call__(self, length: int) -> float:
        return self.linear * length + self.attention * length * length

    @staticmethod
    def of_model(model: Any) -> RowCost:
        """Forward FLOPs of a transformers causal LM: 2 per weight and token, and full attention.

        A causal score matrix has n^2 / 2 entries; scores and weighted values cost 2 FLOPs each per
        entry, head and head dim, so 2 n^2 H d a layer. Delta-net layers are linear in n.
        """
        config = model.config.get_text_config()
        tables = {id(p): _whole_numel(p) for p in model.get_input_embeddings().parameters()}
        weights = sum(_whole_numel(p) for p in model.parameters() if id(p) not in tables)
        if config.tie_word_embeddings:  # the table is then also the head
            weights += sum(tables.values())
        kinds = (
            getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers
        )
        heads = config.num_attention_heads
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
        return RowCost(2.0 * weights, 2.0 * kinds.count("full_attention") * heads * head_dim)


@dataclass(frozen=True, eq=False)
class PackedBatch:
    """Packed rows on a device, with the positions and ids of what the loss scores."""

    input_ids: Tensor  # (T,) int64: prompt and completion of each row, one after the other
    layout: PackedLayout
    logit_positions: Tensor  # (N,) int64: hidden states whose next token is a completion token
    targets: Tensor  # (N,) int64: those completion tokens
    target_row: Tensor  # (N,) int64: row of each target
    target_offsets: tuple[int, ...]  # (R + 1,): targets of row r are [offsets[r], offsets[r + 1])

    @property
    def num_rows(self) -> int:
        return len(self.layout.lengths)

    @property
    def num_tokens(self) -> int:
        return self.layout.num_tokens

    @property
    def num_targets(self) -> int:
        return self.target_offsets[-1]

    @property
    def position_ids(self) -> Tensor:
        """(T,) int64, from 0 in every row."""
        return self.layout.position_ids

    @property
    def cu_seqlens(self) -> Tensor:
        """(R + 1,) int32"""
        return self.layout.cu_seqlens

    @property
    def max_seqlen(self) -> int:
        return self.layout.max_seqlen

    @property
    def row_of_token(self) -> Tensor:
        """(T,) int64"""
        return self.layout.row_of_token

    def gather_targets(
        self, per_row: Sequence[Sequence[float] | Tensor | None], *, missing: float = 0.0
    ) -> Tensor:
        """One value per completion token of each row -> (N,) float32 on the batch's device.

        Args:
            per_row: R sequences as long as the rows' completions; None for a row without values.
            missing: what a row without values gets.
        Errors: ValueError when a sequence does not have one value per completion token.
        """
        if len(per_row) != self.num_rows:
            raise ValueError(
                f"gather_targets: expected {self.num_rows} rows, got {len(per_row)}; "
                "pass one entry per packed row, None where a row has no values"
            )
        parts = []
        for row, values in enumerate(per_row):
            count = self.target_offsets[row + 1] - self.target_offsets[row]
            if values is None:
                values = torch.full((count,), missing)
            elif len(values) != count:
                raise ValueError(
                    f"gather_targets: row {row} has {count} completion tokens, got {len(values)} "
                    "values; give exactly one per completion token"
                )
            parts.append(torch.as_tensor(values, dtype=torch.float32, device=self.targets.device))
        return torch.cat(parts)


def _whole_numel(parameter: Tensor) -> int:
    # ZeRO-3 leaves nothing in a parameter between uses but the count it had
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def pack_rows(rows: Sequence[TokenRow], device: torch.device | str = "cpu") -> PackedBatch:
    """Concatenate the rows, in the order given, into one buffer on the device.

    Errors: ValueError without rows, or for a row without prompt tokens (nothing would predict its
    first completion token). A row without completion tokens is packed and has no targets.
    """
    if not rows:
        raise ValueError("pack_rows: got no rows; pack only slots that have some")
    device = torch.device(device)
    prompts = np.array([len(row.prompt_ids) for row in rows])
    completions = np.array([len(row.completion_ids) for row in rows])
    if prompts.min() < 1:
        raise ValueError(
            f"pack_rows: row {int(prompts.argmin())} has no prompt tokens; every row needs at "
            "least one token in front of its completion (a begin-of-text token will do)"
        )
    input_ids = np.concatenate(
        [np.asarray([*row.prompt_ids, *row.completion_ids], dtype=np.int64) for row in rows]
    )
    lengths = prompts + completions
    offsets = np.concatenate(([0], np.cumsum(completions)))
    target_row = np.repeat(np.arange(len(rows)), completions)
    # Target n of row r is token (n - offsets[r]) after the row's first target in the buffer.
    first_target = np.cumsum(lengths) - completions
    token = np.arange(offsets[-1]) - offsets[target_row] + first_target[target_row]
    return PackedBatch(
        input_ids=upload(input_ids, device),
        layout=PackedLayout.from_lengths(lengths.tolist(), device),
        logit_positions=upload(token - 1, device),
        targets=upload(input_ids[token], device),
        target_row=upload(target_row, device),
        target_offsets=tuple(offsets.tolist()),
    )


def plan_slots(
    lengths: Sequence[int],
    token_budget: int,
    *,
    cost: RowCost | None = None,
    min_slots: int = 1,
) -> list[list[int]]:
    """Split the rows into few slots of at most `token_budget` tokens, of nearly equal cost.

    Costliest row first, each goes to the cheapest slot with room (LPT). The number of slots starts
    at the least that could do and grows until all rows fit; first-fit-decreasing bounds it. Where
    the budget turned no row away, the costs of two slots differ by at most one row's cost.

    Args:
        lengths: tokens of each row.
        token_budget: tokens a slot may hold (`packing.max_tokens_per_microbatch`).
        cost: what to balance; tokens if None.
        min_slots: at least so many slots, as far as there are rows.
    Returns:
        row indices of each slot, rising inside a slot, slots by their first row. Same input, same
        plan.
    Errors: ValueError for a row longer than the budget, or an empty one.
    """
    cost = cost or RowCost()
    if not lengths:
        return []
    if min(lengths) < 1:
        raise ValueError(f"plan_slots: row {lengths.index(min(lengths))} is empty; drop it")
    if max(lengths) > token_budget:
        raise ValueError(
            f"packing.max_tokens_per_microbatch: {token_budget} is less than the {max(lengths)} "
            f"tokens of the longest row; raise it to at least {max(lengths)}, or lower "
            "max_prompt_length or max_completion_length"
        )
    costs = [cost(length) for length in lengths]
    costliest_first = sorted(range(len(lengths)), key=lambda row: (-costs[row], row))
    fewest = max(-(-sum(lengths) // token_budget), min(min_slots, len(lengths)))
    for num_slots in range(fewest, len(lengths) + 1):
        slots = _balance(costliest_first, lengths, costs, token_budget, num_slots)
        if slots is None:
            slots = _first_fit(costliest_first, lengths, token_budget, num_slots)
            if slots is None:
                continue
            _even_out(slots, lengths, costs, token_budget)
        return sorted(sorted(slot) for slot in slots)
    raise AssertionError("one row a slot always fits")


def plan_rounds(
    lengths: Sequence[int],
    token_budget: int,
    *,
    cost: RowCost | None = None,
    num_ranks: int = 1,
) -> list[list[list[int]]]:
    """`plan_slots` for ranks that work side by side: rounds of at most one slot a rank.

    Every rank gets a slot in every round while there are rows enough; slots of one round are of
    nearly equal cost, because a rank that is done early waits for the others.

    Args:
        lengths, token_budget, cost: as in `plan_slots`.
        num_ranks: slots of a round; only the last round may have fewer.
    Returns:
        rounds of slots of row indices; costliest round first, so that memory peaks early.
    """
    cost = cost or RowCost()
    fewest = len(plan_slots(lengths, token_budget, cost=cost))
    wanted = -(-fewest // num_ranks) * num_ranks
    slots = plan_slots(lengths, token_budget, cost=cost, min_slots=wanted)
    if num_ranks > 1:
        slots.sort(key=lambda slot: -sum(cost(lengths[row]) for row in slot))
    return [slots[i : i + num_ranks] for i in range(0, len(slots), num_ranks)]


def split_full_rounds(
    rounds: Sequence[list[list[int]]],
    lengths: Sequence[int],
    token_budget: int,
    num_ranks: int,
) -> tuple[list[list[list[int]]], list[int]]:
    """The rounds worth running before more rows are there, and the rows of the others.

    A round is, when every rank has a slot in it and its slots are nearly full: rows of a round that
    is not get better company, and shorter waits of the ranks for each other, from later rows.

    Args:
        rounds: as `plan_rounds` made them of `lengths`.
    Returns:
        full rounds in their order, and the indices of all other rows, rising.
    """
    if sum(lengths) < num_ranks * token_budget:
        return [], list(range(len(lengths)))
    tokens = _FULL * num_ranks * token_budget
    full = [
        slots
        for slots in rounds
        if len(slots) == num_ranks and sum(lengths[i] for slot in slots for i in slot) >= tokens
    ]
    taken = {i for slots in full for slot in slots for i in slot}
    return full, [i for i in range(len(lengths)) if i not in taken]


def _balance(
    order: Sequence[int],
    lengths: Sequence[int],
    costs: Sequence[float],
    budget: int,
    num_slots: int,
) -> list[list[int]] | None:
    """LPT: each row to the cheapest slot with room; None when a row finds no room."""
    slots: list[list[int]] = [[] for _ in range(num_slots)]
    total, room = [0.0] * num_slots, [budget] * num_slots
    for row in order:
        fitting = [slot for slot in range(num_slots) if room[slot] >= lengths[row]]
        if not fitting:
            return None
        slot = min(fitting, key=total.__getitem__)
        slots[slot].append(row)
        total[slot] += costs[row]
        room[slot] -= lengths[row]
    return slots


def _first_fit(
    order: Sequence[int], lengths: Sequence[int], budget: int, num_slots: int
) -> list[list[int]] | None:
    """First-fit-decreasing, which packs tighter than LPT; None when num_slots are not enough."""
    slots: list[list[int]] = [[] for _ in range(num_slots)]
    room = [budget] * num_slots
    for row in order:
        slot = next((s for s, free in enumerate(room) if free >= lengths[row]), None)
        if slot is None:
            return None
        slots[slot].append(row)
        room[slot] -= lengths[row]
    return slots


def _even_out(
    slots: list[list[int]], lengths: Sequence[int], costs: Sequence[float], budget: int
) -> None:
    """Move or swap rows between two slots, in place, while that lowers the costlier of them.

    Every change shrinks the sum of squared slot costs, so this ends; an empty slot next to one of
    two rows or more always gets one, so none stays empty.
    """

    def try_pair(dear: list[int], cheap: list[int]) -> bool:
        gap = sum(costs[r] for r in dear) - sum(costs[r] for r in cheap)
        room_dear, room_cheap = (budget - sum(lengths[r] for r in s) for s in (dear, cheap))
        for row in dear:
            for back in (None, *cheap):
                moved = costs[row] - (0.0 if back is None else costs[back])
                tokens = lengths[row] - (0 if back is None else lengths[back])
                # the relative margin keeps rounding from swapping equal slots for ever
                if gap * 1e-9 < moved < gap * (1 - 1e-9) and -room_dear <= tokens <= room_cheap:
                    dear.remove(row)
                    cheap.append(row)
                    if back is not None:
                        cheap.remove(back)
                        dear.append(back)
                    return True
        return False

    changed = True
    while changed:
        changed = False
        for a, b in combinations(range(len(slots)), 2):
            dear, cheap = sorted(
                (slots[a], slots[b]), key=lambda slot: -sum(costs[row] for row in slot)
            )
            changed |= try_pair(dear, cheap)
