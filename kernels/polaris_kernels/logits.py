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

from .autograd import LOGP_OUTPUTS, read_again
from .backends import get_backend
from .backends.base import Statistics
from .backends.logits_pass import LogitsProblem, logits_gradient, logits_statistics
from .head import GRPOLossOutput, TokenLogps
from .loss_call import build_objective, check_inputs_of_spec, scale_gradients
from .metrics import Metrics
from .objective import Objective, TokenGradients
from .problem import accumulation_dtype, check_above_zero, check_targets, check_temperature
from .rows import LossFn, LossRows, TokenView, scatter_tokens, select_tokens, view_rows
from .spec import LossSpec


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
            operation that needs these logits in its own backward (a softcap) then raises. Under
            `torch.compile` the compiler owns the memory and this is not used.
        backend: name of a backend; None: the environment's or the device's.
    """
    asked = {"logp": True, "entropy": return_entropy, "lse": return_lse}
    outputs = tuple(name for name in LOGP_OUTPUTS if asked[name])
    run = _logps
    if torch.compiler.is_compiling():
        from . import compiled

        run = compiled.selective_logps
    results = run(logits, targets, temperature, outputs, inplace, backend)
    found = dict(zip(outputs, (x.view(targets.shape) for x in results), strict=True))
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
    run = _grpo_loss
    if torch.compiler.is_compiling():
        from . import compiled

        run = compiled.logits_grpo_loss
    spec = spec or LossSpec()
    loss, metrics, logps, entropy = run(
        logits, targets, rows, spec, loss_fn, temperature, inplace, backend
    )
    shape = targets.shape
    return GRPOLossOutput(loss, metrics, logps.view(shape), entropy.view(shape))


@dataclass(frozen=True)
class LogitsLoss:
    """The loss of one call on logits, ready to run."""

    problem: LogitsProblem
    flat: Tensor
    """(M, V) the logits, still in the caller's graph"""
    objective: Objective
    view: TokenView
    index: Tensor | None
    num_tokens: int

    def run(self) -> tuple[Any, Statistics, TokenGradients]:
        """What the gradient pass wants to see again, statistics (K,), coefficients (K,)."""
        rows, statistics = logits_statistics(self.problem, self.flat.detach())
        everything = slice(0, statistics.logp.shape[0])
        return (
            rows,
            statistics,
            self.objective.gradients(everything, statistics.logp, statistics.entropy),
        )

    def scatter(self, values: Tensor) -> Tensor:
        """(K,) -> (N,): 0 where a token carries no loss."""
        return scatter_tokens(values, self.index, self.view.kept, self.num_tokens)


def prepare_logps(
    logits: Tensor,
    targets: Tensor,
    temperature: float | Tensor,
    inplace: bool,
    backend: str | None,
) -> tuple[LogitsProblem, Tensor]:
    """The validated problem of `selective_logps`, and its logits (M, V)."""
    caller = "selective_logps"
    flat, positions = flatten_logits(logits, targets, caller)
    acc = accumulation_dtype(logits.dtype)
    check_above_zero(temperature, caller)
    problem = LogitsProblem(
        positions=positions,
        targets=check_targets(targets.reshape(-1), logits.shape[-1], caller),
        temperature=check_temperature(temperature, targets.numel(), logits.device, acc, caller),
        kept=None,
        inplace=inplace,
        kernels=_kernels(logits.device, backend),
    )
    return problem, flat


def prepare_logits_loss(
    logits: Tensor,
    targets: Tensor,
    rows: LossRows,
    spec: LossSpec,
    loss_fn: LossFn | None,
    temperature: float | Tensor,
    inplace: bool,
    backend: str | None,
) -> LogitsLoss:
    """The validated loss of `grpo_loss` over the tokens that carry any."""
    caller, num_tokens = "grpo_loss", targets.numel()
    rows.validate(num_tokens, logits.device, caller)
    if loss_fn is None:
        check_inputs_of_spec(rows, spec, caller)
    flat, positions = flatten_logits(logits, targets, caller)
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
        if isinstance(per_token, Tensor):
            per_token = torch.where(kept, per_token, 1.0)
    check_above_zero(per_token, caller)
    problem = LogitsProblem(
        positions=positions,
        targets=check_targets(targets, logits.shape[-1], caller),
        temperature=per_token,
        kept=view.kept,
        inplace=inplace,
        kernels=_kernels(logits.device, backend),
    )
    objective = build_objective(spec, loss_fn, True, view)
    return LogitsLoss(problem, flat, objective, view, index, num_tokens)


def _logps(
    logits: Tensor,
    targets: Tensor,
    temperature: float | Tensor,
    outputs: tuple[str, ...],
    inplace: bool,
    backend: str | None,
) -> tuple[Tensor, ...]:
    problem, flat = prepare_logps(logits, targets, temperature, inplace, backend)
    return cast(tuple[Tensor, ...], _LogpsFunction.apply(problem, outputs, flat))


def _grpo_loss(
    logits: Tensor,
    targets: Tensor,
    rows: LossRows,
    spec: LossSpec,
    loss_fn: LossFn | None,
    temperature: float | Tensor,
    inplace: bool,
    backend: str | None,
) -> tuple[Tensor, Metrics, Tensor, Tensor]:
    call = prepare_logits_loss(logits, targets, rows, spec, loss_fn, temperature, inplace, backend)
    found: dict[str, Any] = {}
    loss = cast(Tensor, _LossFunction.apply(call, found, call.flat))
    statistics: Statistics = found["statistics"]
    logps, entropy = call.scatter(statistics.logp), call.scatter(statistics.entropy)
    return loss, found["metrics"], logps, entropy


class _LogpsFunction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, problem: LogitsProblem, outputs: tuple[str, ...], flat: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.problem, ctx.outputs = problem, outputs
        ctx.rows, statistics = logits_statistics(problem, flat.detach())
        ctx.save_for_backward(flat, *read_again(problem.targets, problem.temperature))
        return tuple(getattr(statistics, name) for name in outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        if all(g is None for g in grads):
            return None, None, None
        known = TokenGradients(**({"logp": None} | dict(zip(ctx.outputs, grads, strict=True))))
        flat, *_ = ctx.saved_tensors
        return None, None, logits_gradient(ctx.problem, flat.detach(), ctx.rows, known)


class _LossFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, call: LogitsLoss, found: dict[str, Any], flat: Tensor) -> Tensor:
        ctx.problem = call.problem
        ctx.rows, statistics, ctx.known = call.run()
        loss, found["metrics"] = call.objective.finish(statistics.logp, statistics.entropy)
        found["statistics"] = statistics
        problem = call.problem
        ctx.save_for_backward(flat, *read_again(problem.targets, problem.temperature))
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        flat, *_ = ctx.saved_tensors
        scaled = scale_gradients(ctx.known, grad_loss)
        return None, None, logits_gradient(ctx.problem, flat.detach(), ctx.rows, scaled)


def _kernels(device: torch.device, backend: str | None) -> Any:
    return getattr(get_backend(device, backend), "logits_pass", None)


def flatten_logits(logits: Tensor, targets: Tensor, caller: str) -> tuple[Tensor, Tensor | None]:
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
