"""The same losses from logits that already exist: for trainers whose head cannot be replaced.

Only row-sized buffers are added: forward keeps statistics, backward turns logits into their
gradient block by block, in their own memory on request.

Shapes: `N tokens . V vocab . M rows of logits (M >= N) . K tokens with loss`.
"""

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .autograd import LOGP_OUTPUTS
from .backends import get_backend
from .backends.base import Statistics
from .backends.chunks import finish
from .backends.row_pass import (
    RowStatistics,
    block_rows,
    gradient_block_,
    reduce_block,
    row_blocks,
    row_coefficients,
)
from .backends.workspace import borrowed
from .head import GRPOLossOutput, TokenLogps, build_objective, check_inputs_of_spec
from .objective import TokenGradients
from .problem import accumulation_dtype, check_targets, check_temperature
from .rows import LossFn, LossRows, scatter_tokens, select_tokens, view_rows
from .spec import LossSpec


@dataclass(frozen=True)
class _Problem:
    """Rows of a flat (M, V) logits tensor, as they enter the softmax."""

    positions: Tensor | None
    """(K,) int64 row of each token; None: the first K rows"""
    targets: Tensor
    """(K,) int64"""
    temperature: float | Tensor
    """number or (K,)"""
    kept: Tensor | None
    """(K,) 0 where a row's content must not matter"""
    inplace: bool
    kernels: Any
    """the backend's pass over rows of logits; None: torch ops"""

    def load(self, flat: Tensor, block: slice, z: Tensor) -> None:
        """z (rows, V) = the block's logits / temperature, in z's dtype."""
        if self.positions is None:
            z.copy_(flat[block])
        else:
            z.copy_(flat.index_select(0, self.positions[block]))
        if self.kept is not None:
            z.masked_fill_(self.kept[block, None] == 0, 0.0)
        if isinstance(self.temperature, Tensor):
            z.div_(self.temperature[block, None])
        elif self.temperature != 1.0:
            z.mul_(1.0 / self.temperature)

    def factor(self) -> float | Tensor:
        """1 / temperature, number or (K, 1)."""
        if isinstance(self.temperature, Tensor):
            return 1.0 / self.temperature.unsqueeze(1)
        return 1.0 / self.temperature


def selective_logps(
    logits: Tensor,
    targets: Tensor,
    *,
    temperature: float | Tensor = 1.0,
    return_entropy: bool = False,
    return_lse: bool = False,
    inplace: bool = False,
    backend: str | None = None,
) -> TokenLogps:
    """log softmax(logits / temperature)[target] of each token, differentiable.

    Args:
        logits: (N, V), (B, L, V) or (B, L + 1, V) float; of L + 1 positions the last is not used.
        targets: (N,) or (B, L) integers in [0, V).
        temperature: above 0, a number or a tensor shaped like `targets`. No gradient.
        return_entropy: also the entropy in nats, differentiable.
        return_lse: also logsumexp(logits / temperature), differentiable.
        inplace: let backward write the gradient over the logits: no second (N, V) tensor. An
            operation that needs these logits in its own backward (a softcap) then raises.
        backend: name of a backend; None: the environment's or the device's.
    """
    shape = targets.shape
    flat, positions = _flatten(logits, targets, "selective_logps")
    acc = accumulation_dtype(logits.dtype)
    problem = _Problem(
        positions=positions,
        targets=check_targets(targets.reshape(-1), logits.shape[-1], "selective_logps"),
        temperature=check_temperature(
            temperature, targets.numel(), logits.device, acc, "selective_logps"
        ),
        kept=None,
        inplace=inplace,
        kernels=_kernels(logits.device, backend),
    )
    asked = {"logp": True, "entropy": return_entropy, "lse": return_lse}
    outputs = tuple(name for name in LOGP_OUTPUTS if asked[name])
    results = _LogpsFunction.apply(problem, outputs, flat)
    found = dict(zip(outputs, (x.view(shape) for x in results), strict=True))
    return TokenLogps(found["logp"], found.get("entropy"), found.get("lse"))


def grpo_loss(
    logits: Tensor,
    targets: Tensor,
    *,
    rows: LossRows,
    spec: LossSpec | None = None,
    loss_fn: LossFn | None = None,
    temperature: float | Tensor = 1.0,
    inplace: bool = False,
    backend: str | None = None,
) -> GRPOLossOutput:
    """The loss of `linear_grpo_loss`, from logits.

    Args:
        logits: as in `selective_logps`.
        targets: (N,) or (B, L) integers; anything where the mask is off.
        rows: the loss's inputs; `LossRows.from_padded` makes them from (B, L) tensors.
        spec, loss_fn: as in `linear_grpo_loss`; `loss_fn` gets all tokens at once.
        temperature: as in `selective_logps`.
        inplace, backend: as in `selective_logps`.
    """
    caller = "grpo_loss"
    if spec is not None and loss_fn is not None:
        raise ValueError(f"{caller}: give spec or loss_fn, not both; loss_fn is the whole loss")
    spec = spec or LossSpec()
    shape, num_tokens = targets.shape, targets.numel()
    rows.validate(num_tokens, logits.device, caller)
    if loss_fn is None:
        check_inputs_of_spec(rows, spec, caller)
    flat, positions = _flatten(logits, targets, caller)
    index, kept = select_tokens(rows, num_tokens)
    acc = accumulation_dtype(logits.dtype)
    view = view_rows(rows, index, kept, spec, acc)
    per_token = check_temperature(temperature, num_tokens, logits.device, acc, caller)
    targets = targets.reshape(-1)
    if index is not None:
        targets = targets.index_select(0, index)
        positions = index if positions is None else positions.index_select(0, index)
        if isinstance(per_token, Tensor):
            per_token = per_token.index_select(0, index)
    elif kept is not None:
        targets = targets.masked_fill(~kept, 0)
    problem = _Problem(
        positions=positions,
        targets=check_targets(targets, logits.shape[-1], caller),
        temperature=per_token,
        kept=view.kept,
        inplace=inplace,
        kernels=_kernels(logits.device, backend),
    )
    objective = build_objective(spec, loss_fn, True, view)
    found: dict[str, Any] = {}
    loss = cast(Tensor, _LossFunction.apply(problem, objective, found, flat))
    statistics: Statistics = found["statistics"]
    return GRPOLossOutput(
        loss=loss,
        metrics=found["metrics"],
        logps=scatter_tokens(statistics.logp, index, view.kept, num_tokens).view(shape),
        entropy=scatter_tokens(statistics.entropy, index, view.kept, num_tokens).view(shape),
    )


class _LogpsFunction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, problem: _Problem, outputs: tuple[str, ...], flat: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.problem, ctx.outputs = problem, outputs
        ctx.rows, statistics = _statistics(problem, flat.detach())
        ctx.save_for_backward(flat)
        return tuple(getattr(statistics, name) for name in outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        if all(g is None for g in grads):
            return None, None, None
        known = TokenGradients(**({"logp": None} | dict(zip(ctx.outputs, grads, strict=True))))
        (flat,) = ctx.saved_tensors
        return None, None, _gradient(ctx.problem, flat.detach(), ctx.rows, known)


class _LossFunction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, problem: _Problem, objective: Any, found: dict[str, Any], flat: Tensor
    ) -> Tensor:
        ctx.problem = problem
        ctx.rows, statistics = _statistics(problem, flat.detach())
        everything = slice(0, statistics.logp.shape[0])
        ctx.known = objective.gradients(everything, statistics.logp, statistics.entropy)
        loss, found["metrics"] = objective.finish(statistics.logp, statistics.entropy)
        found["statistics"] = statistics
        ctx.save_for_backward(flat)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        (flat,) = ctx.saved_tensors
        parts = (ctx.known.logp, ctx.known.entropy)
        scaled = TokenGradients(*(None if part is None else part * grad_loss for part in parts))
        return None, None, None, _gradient(ctx.problem, flat.detach(), ctx.rows, scaled)


def _kernels(device: torch.device, backend: str | None) -> Any:
    return getattr(get_backend(device, backend), "logits_pass", None)


def _statistics(problem: _Problem, flat: Tensor) -> tuple[Any, Statistics]:
    """What `_gradient` wants to see again, and the statistics of the K tokens."""
    if problem.kernels is not None:
        state = problem.kernels.statistics(
            flat, problem.targets, problem.temperature, problem.positions, problem.kept
        )
        return state, state.statistics
    K, V = problem.targets.shape[0], flat.shape[1]
    like = flat.new_empty(0, dtype=accumulation_dtype(flat.dtype))
    rows = RowStatistics.empty(K, like)
    height = block_rows(K, V, flat.device)
    with borrowed(((height, V), (height, V)), like) as (buffer, scratch):
        for block in row_blocks(K, V, flat.device):
            z, spare = buffer[: block.stop - block.start], scratch[: block.stop - block.start]
            problem.load(flat, block, z)
            reduce_block(z, spare, problem.targets[block], rows[block], keep="exp")
    return rows, finish(rows)


def _gradient(problem: _Problem, flat: Tensor, rows: Any, known: TokenGradients) -> Tensor:
    """(M, V) d loss / d logits, in the logits' own memory when the problem says so."""
    if problem.kernels is not None:
        return problem.kernels.gradient(flat, rows, known, inplace=problem.inplace)
    K, V = problem.targets.shape[0], flat.shape[1]
    acc = accumulation_dtype(flat.dtype)
    out = flat if problem.inplace else torch.zeros_like(flat)
    coefficients = row_coefficients(known, rows, finish(rows).entropy, problem.factor())
    kept = "exp" if known.entropy is None else "shifted"
    targets, maximum = problem.targets.unsqueeze(1), rows.maximum.unsqueeze(1)
    if problem.inplace and problem.positions is not None:
        unused = torch.ones(flat.shape[0], dtype=torch.bool, device=flat.device)
        unused[problem.positions] = False
        out.masked_fill_(unused.unsqueeze(1), 0.0)
    height = block_rows(K, V, flat.device)
    with borrowed(((height, V), (height, V)), flat.new_empty(0, dtype=acc)) as (buffer, scratch):
        for block in row_blocks(K, V, flat.device):
            z, spare = buffer[: block.stop - block.start], scratch[: block.stop - block.start]
            problem.load(flat, block, z)
            z.sub_(maximum[block])
            if kept == "exp":
                z.exp_()
            gradient_block_(
                z, spare, targets[block], coefficients[block], kept=kept, cap_slope=None
            )
            if problem.positions is None:
                out[block].copy_(z)
            else:
                out.index_copy_(0, problem.positions[block], z.to(out.dtype))
    return out


def _flatten(logits: Tensor, targets: Tensor, caller: str) -> tuple[Tensor, Tensor | None]:
    """(M, V) logits and the row of each token in it (None: row t is token t)."""
    lead = tuple(logits.shape[:-1])
    flat = logits.reshape(-1, logits.shape[-1])
    if lead == tuple(targets.shape) and targets.dim() in (1, 2):
        return flat, None
    if targets.dim() == 2 and lead == (targets.shape[0], targets.shape[1] + 1):
        B, L = targets.shape
        first = torch.arange(B, device=logits.device).unsqueeze(1) * (L + 1)
        return flat, (first + torch.arange(L, device=logits.device)).reshape(-1)
    raise ValueError(
        f"{caller}: logits must be (N, V) with targets (N,), or (B, L, V) or (B, L + 1, V) with "
        f"targets (B, L); got {tuple(logits.shape)} and {tuple(targets.shape)}"
    )
