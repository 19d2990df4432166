"""The loss's inputs for a packed batch: `LossRows` as the trainer builds it, `TokenView` as the
losses read it.

Shapes: `T packed tokens . R rows . K tokens that carry loss (K <= T)`.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from .spec import LossSpec


@dataclass(frozen=True, kw_only=True)
class LossRows:
    """Everything the policy loss needs beside the log-probs, for T tokens of R rows.

    A row's loss tokens must all be in one `LossRows`: a row is never split over calls. The token at
    position t is the *target* whose log-prob is `logps[t]`; shifting is the caller's work.
    """

    row_of_token: Tensor
    """(T,) int32 or int64: the row each token belongs to, in [0, num_rows)."""
    num_rows: int
    """R; rows without tokens are allowed."""
    advantages: Tensor
    """(R,) or (T,) float. A length equal to num_rows is read as one a row."""
    completion_mask: Tensor | None = None
    """(T,) bool or 0/1: which tokens carry loss. None: all of them."""
    old_logps: Tensor | None = None
    """(T,) float: log-probs before the batch's first update. None: this forward's, ratio 1."""
    ref_logps: Tensor | None = None
    """(T,) float: log-probs under the reference model; needed when beta > 0."""
    rollout_logps: Tensor | None = None
    """(T,) float: the rollout engine's log-probs. nan where unknown: no correction there."""
    row_weight: Tensor | None = None
    """(R,) float: factor of the row's loss. 0 drops the row: no GEMM, no metric, no count."""
    is_human: Tensor | None = None
    """(R,) bool: rows that were not sampled; never corrected for the rollout engine."""
    entropy_threshold: float | Tensor | None = None
    """With `LossSpec.top_entropy_quantile`: the least entropy (nats) whose tokens keep their policy
    loss, a number or a () tensor, taken by the caller over the *global* batch. None: the quantile
    of this `LossRows` alone."""
    denominator: float | Tensor | None = None
    """What the sum is divided by, over the *global* batch (all micro-batches, all ranks): its loss
    tokens for `token_mean`, its rows for `sequence_mean` and `sequence_sum`. None: counted in this
    `LossRows` alone (tokens or rows with weight not 0), right only for a batch of one piece."""
    token_index: Tensor | None = None
    """(K,) int64: positions that carry loss (mask on, weight not 0), made on the host. With it a
    GPU drops the other tokens before the GEMMs without a sync; a CPU finds them itself."""

    @classmethod
    def from_padded(cls, *, mask: Tensor, advantages: Tensor, **rest: Any) -> "LossRows":
        """`LossRows` of a padded [B, L] batch: every (B, L) tensor is flattened to (B * L,).

        Args:
            mask: (B, L) bool or 0/1, which positions carry loss.
            advantages: (B,) or (B, L).
            rest: the other fields, with (B, L) for the per-token ones.
        """
        if mask.dim() != 2:
            raise ValueError(
                f"LossRows.from_padded: mask must be (B, L), got {tuple(mask.shape)}; "
                "packed rows use LossRows(...) itself"
            )
        B, L = mask.shape
        row = torch.arange(B, device=mask.device).repeat_interleave(L)
        flat = {k: v.reshape(-1) if _is_padded(v, (B, L)) else v for k, v in rest.items()}
        flat_advantages = advantages.reshape(-1) if advantages.dim() == 2 else advantages
        return cls(
            row_of_token=row,
            num_rows=B,
            advantages=flat_advantages,
            completion_mask=mask.reshape(-1),
            **flat,
        )

    def to(self, device: torch.device | str) -> "LossRows":
        """The same rows with every tensor on `device`."""
        moved: dict[str, Any] = {
            f.name: value.to(device)
            for f in fields(self)
            if isinstance(value := getattr(self, f.name), Tensor)
        }
        return replace(self, **moved)

    def validate(self, num_tokens: int, device: torch.device, caller: str) -> None:
        """Check shapes and devices (and, on the CPU, row ids) against T = `num_tokens`."""
        T, R = num_tokens, self.num_rows
        expected: dict[str, tuple[tuple[int, ...], ...]] = {
            "row_of_token": ((T,),),
            "advantages": ((R,), (T,)),
            "completion_mask": ((T,),),
            "old_logps": ((T,),),
            "ref_logps": ((T,),),
            "rollout_logps": ((T,),),
            "row_weight": ((R,),),
            "is_human": ((R,),),
        }
        for name, shapes in expected.items():
            value = getattr(self, name)
            if value is None:
                continue
            if tuple(value.shape) not in shapes:
                raise ValueError(
                    f"{caller}: rows.{name} must have shape {' or '.join(map(str, shapes))} "
                    f"(tokens {T}, rows {R}), got {tuple(value.shape)}"
                )
            if value.device != device:
                raise ValueError(
                    f"{caller}: rows.{name} must be on {device}, got {value.device}; "
                    "move all of them with rows.to(device)"
                )
        self._check_index(device, caller)
        if self.row_of_token.dtype not in (torch.int32, torch.int64):
            raise ValueError(
                f"{caller}: rows.row_of_token must be int32 or int64, got {self.row_of_token.dtype}"
            )
        if self.denominator is not None and not isinstance(self.denominator, Tensor):
            if not self.denominator > 0:
                raise ValueError(
                    f"{caller}: rows.denominator must be above 0, got {self.denominator}; "
                    "give the global count of loss tokens (or rows)"
                )
        if isinstance(self.entropy_threshold, Tensor) and self.entropy_threshold.dim():
            raise ValueError(
                f"{caller}: rows.entropy_threshold must be a number or a () tensor, got "
                f"{tuple(self.entropy_threshold.shape)}; take one quantile over the batch"
            )
        if device.type == "cpu" and T:
            low, high = (int(x) for x in torch.aminmax(self.row_of_token))
            if low < 0 or high >= R:
                raise ValueError(
                    f"{caller}: rows.row_of_token must be in [0, {R}), got {low} to {high}; "
                    "num_rows is the number of rows in this batch"
                )

    def _check_index(self, device: torch.device, caller: str) -> None:
        index = self.token_index
        if index is None:
            return
        if index.dtype != torch.int64 or index.dim() != 1 or index.device != device:
            raise ValueError(
                f"{caller}: rows.token_index must be (K,) int64 on {device}, got "
                f"{tuple(index.shape)} {index.dtype} on {index.device}; make it with "
                "mask.nonzero().squeeze(1) on the host and move it"
            )


@dataclass(frozen=True)
class TokenView:
    """The K tokens that reach the loss, every per-row value looked up per token.

    On CUDA without `token_index` the tokens without loss are still in it, with `kept` 0, `weight` 0
    and harmless values, as are their log-probs and entropies (0); everywhere else `kept` is None
    and all K tokens carry loss.
    """

    row: Tensor
    """(K,) int64"""
    num_rows: int
    row_tokens: Tensor
    """(R,) loss tokens of each row"""
    advantages: Tensor
    """(K,)"""
    weight: Tensor
    """(K,) the factor of each token's loss: row weight, aggregation and denominator"""
    advantages_per_row: bool
    old_logps: Tensor | None = None
    """(K,)"""
    ref_logps: Tensor | None = None
    """(K,)"""
    rollout_logps: Tensor | None = None
    """(K,)"""
    is_human: Tensor | None = None
    """(K,) bool"""
    kept: Tensor | None = None
    """(K,) 1 where the token carries loss"""
    entropy_threshold: float | Tensor | None = None
    """as in `LossRows`"""

    def __getitem__(self, tokens: slice) -> "TokenView":
        """The same view of some tokens; `row_tokens` stays that of whole rows."""
        cut: dict[str, Any] = {name: _cut(getattr(self, name), tokens) for name in _PER_TOKEN}
        return replace(self, **cut)

    def with_loss(self, values: Tensor) -> Tensor:
        """(..., K) values, and 0 where a token carries no loss, even in place of an inf or nan."""
        return _zero_unless(self.kept, values)

    def row_sum(self, values: Tensor) -> Tensor:
        """(K,) -> (R,): the sum over each row's tokens, bitwise repeatable on every device."""
        values = self.with_loss(values)
        total = values.new_zeros(self.num_rows)
        if values.device.type == "cpu":
            return total.index_add_(0, self.row, values)
        # index_add_ on CUDA adds in no fixed order; index_put_ sorts first
        return total.index_put_((self.row,), values, accumulate=True)

    def row_mean(self, values: Tensor) -> Tensor:
        """(K,) -> (R,): the mean over each row's loss tokens, 0 for a row without any."""
        return self.row_sum(values) / self.row_tokens.clamp(min=1)


_PER_TOKEN = (
    "row",
    "advantages",
    "weight",
    "old_logps",
    "ref_logps",
    "rollout_logps",
    "is_human",
    "kept",
)


def _cut(value: Tensor | None, tokens: slice) -> Tensor | None:
    return None if value is None else value[tokens]


def select_tokens(rows: LossRows, num_tokens: int) -> tuple[Tensor | None, Tensor | None]:
    """(index, kept): the (K,) positions that carry loss, or, where finding them would make the host
    wait for the device, a (T,) bool mask. Both None: every token carries loss."""
    if rows.token_index is not None:
        # a column of `mask.nonzero()` is not dense, and kernels read rows by this index
        return rows.token_index.contiguous(), None
    kept = _kept(rows)
    if kept is None or not _is_host_memory(kept):
        return None, kept
    index = kept.nonzero().squeeze(1)
    return (None if index.numel() == num_tokens else index), None


def view_rows(
    rows: LossRows,
    index: Tensor | None,
    kept: Tensor | None,
    spec: LossSpec,
    dtype: torch.dtype,
) -> TokenView:
    """Look every per-row value up per token, for the tokens that `select_tokens` chose.

    Args:
        rows: validated `LossRows`.
        index, kept: from `select_tokens`.
        spec: its aggregation decides `TokenView.weight`.
        dtype: float32 or float64, of every float in the view.
    """
    row = _take(rows.row_of_token, index).long()
    if kept is not None:
        kept = kept.to(dtype)

    def per_token(value: Tensor | None) -> Tensor | None:
        if value is None:
            return None
        taken = _take(value.detach(), index).to(dtype)
        # what lies under a masked token may be inf or nan
        return taken if kept is None else torch.where(kept > 0, taken, 0.0)

    per_row = rows.advantages.shape[0] == rows.num_rows
    advantages = rows.advantages.detach().to(dtype)
    if per_row:
        advantages = advantages[row]
        if kept is not None:
            advantages = torch.where(kept > 0, advantages, 0.0)
    else:
        advantages = _required(per_token(advantages))
    counted = torch.ones_like(row, dtype=dtype) if kept is None else kept
    view = TokenView(
        row=row,
        num_rows=rows.num_rows,
        row_tokens=counted.new_zeros(0),
        advantages=advantages,
        weight=counted,
        advantages_per_row=per_row,
        old_logps=per_token(rows.old_logps),
        ref_logps=per_token(rows.ref_logps),
        rollout_logps=per_token(rows.rollout_logps),
        is_human=None if rows.is_human is None else rows.is_human.bool()[row],
        kept=kept,
        entropy_threshold=rows.entropy_threshold,
    )
    view = replace(view, row_tokens=view.row_sum(torch.ones_like(counted)))
    return replace(view, weight=_token_weight(rows, spec, view, counted))


def scatter_tokens(
    values: Tensor, index: Tensor | None, kept: Tensor | None, num_tokens: int
) -> Tensor:
    """(K,) -> (T,): values at their positions, 0 where a token carries no loss."""
    if index is not None:
        return values.new_zeros(num_tokens).index_copy_(0, index, values)
    return _zero_unless(kept, values)


def _zero_unless(kept: Tensor | None, values: Tensor) -> Tensor:
    # not a product: a banned id under the mask has a log-prob of -inf
    return values if kept is None else torch.where(kept > 0, values, 0.0)


def _token_weight(rows: LossRows, spec: LossSpec, view: TokenView, counted: Tensor) -> Tensor:
    aggregation = spec.resolved_aggregation
    row_factor = torch.ones_like(view.row_tokens)
    if rows.row_weight is not None:
        row_factor = rows.row_weight.detach().to(counted.dtype)
    if aggregation == "sequence_mean":
        row_factor = row_factor / view.row_tokens.clamp(min=1)
    elif aggregation == "sequence_sum" and spec.max_completion_length is not None:
        row_factor = row_factor / spec.max_completion_length
    denominator = rows.denominator
    if denominator is None:
        count = view.row_tokens if aggregation == "token_mean" else (view.row_tokens > 0)
        denominator = count.sum().clamp(min=1)
    return (row_factor / denominator)[view.row] * counted


def _kept(rows: LossRows) -> Tensor | None:
    """(T,) bool of mask on and row weight not 0; None when neither is given."""
    kept = None if rows.completion_mask is None else rows.completion_mask != 0
    if rows.row_weight is None:
        return kept
    alive = (rows.row_weight != 0)[rows.row_of_token.long()]
    return alive if kept is None else kept & alive


def _is_host_memory(value: Tensor) -> bool:
    return value.device.type == "cpu"


def _take(value: Tensor, index: Tensor | None) -> Tensor:
    return value if index is None else value.index_select(0, index)


def _required(value: Tensor | None) -> Tensor:
    assert value is not None
    return value


def _is_padded(value: Any, shape: tuple[int, int]) -> bool:
    return isinstance(value, Tensor) and tuple(value.shape) == shape


LossFn = Callable[[Tensor, Tensor, TokenView], Tensor]
"""A user's loss: (logps (C,), entropy (C,), view of the C tokens) -> (C,) per-token losses."""
