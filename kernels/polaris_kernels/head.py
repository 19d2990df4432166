"""The head's public functions: log-probs and policy losses straight from hidden states.

    out = linear_grpo_loss(hidden, weight, targets, rows=LossRows(...), spec=LossSpec(...))
    out.loss.backward()

Shapes: `N tokens . D hidden . V vocab . R rows . K tokens with loss`.
"""

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from .accumulation import gradient_buffer
from .autograd import LOGP_OUTPUTS, LogpsFunction, LossFunction
from .backends.base import Statistics, Wanted
from .loss_call import prepare_head, prepare_loss
from .metrics import Metrics
from .problem import HeadOptions, check_grad_scale, compute_dtype_of, without_autocast
from .rows import LossFn, LossRows
from .spec import LossSpec
from .vocab_parallel import VocabParallel


class TokenLogps(NamedTuple):
    """Per-token results of `linear_logps`, each (N,) float32 (float64 for float64 inputs)."""

    logps: Tensor
    entropy: Tensor | None = None
    lse: Tensor | None = None


class GRPOLossOutput(NamedTuple):
    """What `linear_grpo_loss` returns; a tuple, so that a sharding engine's hooks find the loss."""

    loss: Tensor
    """scalar float32, differentiable"""
    metrics: Metrics
    """device scalars, see `metrics.Metrics`; no gradient"""
    logps: Tensor
    """(N,) log-probs without gradient, 0 where a token carries no loss"""
    entropy: Tensor
    """(N,) entropies without gradient, 0 where a token carries no loss"""


def linear_logps(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    temperature: float | Tensor = 1.0,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    logits_dtype: str = "fp32",
    return_entropy: bool = False,
    entropy_gradient: bool = True,
    return_lse: bool = False,
    chunk_bytes: int | None = None,
    vocab: VocabParallel | None = None,
    backend: str | None = None,
) -> TokenLogps:
    """log softmax(z)[target], z = logit_scale (hidden @ weight.T + bias) / temperature.

    Args:
        hidden: (..., D) float; leading dimensions as in `targets`.
        weight: (V, D) float.
        targets: (...) integers in [0, V).
        bias: (V,) float.
        temperature: above 0, a number or a tensor shaped like `targets`. No gradient.
        softcap: c of c tanh(./c), applied before the temperature.
        logit_scale: factor of the raw logits, before the softcap.
        logits_dtype: "fp32", or "bf16" to round raw logits as a bf16 rollout engine does.
        return_entropy: also the entropy in nats, differentiable.
        entropy_gradient: False gives it without gradient: a frozen head then has one GEMM less to
            do and one (N, D) tensor less to keep.
        return_lse: also logsumexp(z), differentiable.
        chunk_bytes: budget of the logits that exist at a time; None: by device.
        vocab: `weight` and `bias` are this rank's shard of a vocabulary cut over a process group;
            targets are ids of the whole. See `VocabParallel`.
        backend: name of a backend; None: the environment's or the device's.

    Returns:
        `TokenLogps` shaped like `targets`. With a frozen weight (and bias), backward needs no
        logits; otherwise it makes them again.

    A bias of -inf bans its id: probability and gradient 0, and -inf for a target. Not handled:
    logits of +inf, and a bias that bans every id.
    """
    options = HeadOptions(
        temperature=temperature,
        softcap=softcap,
        logit_scale=logit_scale,
        logits_dtype=logits_dtype,
        chunk_bytes=chunk_bytes,
        backend=backend,
        vocab=vocab,
        compute_dtype=compute_dtype_of(hidden, weight),
    )
    asked = {"logp": True, "entropy": return_entropy, "lse": return_lse}
    outputs = tuple(name for name in LOGP_OUTPUTS if asked[name])
    with_gradient = tuple(n for n in outputs if n != "entropy" or entropy_gradient)
    shape = targets.shape
    hidden, targets = hidden.reshape(-1, hidden.shape[-1]), targets.reshape(-1)
    run = _logps
    if torch.compiler.is_compiling():
        from . import compiled

        run = compiled.logps
    wanted = Wanted.of(hidden, weight, bias)
    results = run(hidden, weight, bias, targets, options, outputs, with_gradient, wanted)
    if len(shape) != 1:
        # a view only where the layout asks for one: FSDP2's hooks warn about returned views
        results = tuple(x.view(shape) for x in results)
    found = dict(zip(outputs, results, strict=True))
    return TokenLogps(found["logp"], found.get("entropy"), found.get("lse"))


def linear_grpo_loss(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    rows: LossRows,
    spec: LossSpec | None = None,
    loss_fn: LossFn | None = None,
    loss_fn_needs_whole_rows: bool = False,
    bias: Tensor | None = None,
    temperature: float | Tensor = 1.0,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    logits_dtype: str = "fp32",
    chunk_bytes: int | None = None,
    vocab: VocabParallel | None = None,
    grad_scale: float | Tensor = 1.0,
    accumulate_into: str | None = None,
    backend: str | None = None,
) -> GRPOLossOutput:
    """grad_scale * sum_t w_t L_t over the tokens of `rows`; its gradients are made in forward.

    Tokens outside the mask and rows of weight 0 never enter a GEMM (on CUDA: when
    `rows.token_index` names the others); their hidden gradient is 0, whatever they hold.

    Args:
        hidden: (N, D) or (B, L, D) float; N (or B * L) tokens as in `rows`.
        weight: (V, D) float.
        targets: (N,) or (B, L) integers; anything where the mask is off.
        rows: the loss's inputs; see `LossRows`.
        spec: a built-in loss; None: `LossSpec()` unless `loss_fn` is given.
        loss_fn: (logps (C,), entropy (C,), `TokenView` of the C tokens) -> (C,) per-token losses,
            in torch ops; they are multiplied by `TokenView.weight` and summed (token mean).
        loss_fn_needs_whole_rows: call `loss_fn` once with all tokens, for sequence-level losses.
        bias, temperature, softcap, logit_scale, logits_dtype, chunk_bytes, vocab, backend: as in
            `linear_logps`.
        grad_scale: factor of the loss and its gradients (not of the metrics), a number or a device
            scalar; taken into the coefficients before any rounding, so that the loss scale of fp16
            training belongs here and not behind the loss.
        accumulate_into: "grad" or "main_grad": add the weight's gradient to `weight.grad` (made
            where it is None) or `weight.main_grad` during this call, in place of a second (V, D)
            tensor; it is there before, and even without, backward. `loss.backward()` must then
            come without a factor (pass `grad_scale`). Autograd brings nothing to the weight: its
            hooks and DistributedDataParallel see no gradient, and a checkpointed region that
            computes the loss twice adds it twice. See `accumulation`.

    Returns:
        `GRPOLossOutput`. Its loss can be backpropagated once, scaled by anything.

    Under `torch.compile` a spec's loss is one operator of the graph; `loss_fn`, `vocab` and
    `accumulate_into` run outside of it (a graph break). Make the spec once: another object, even an
    equal one, compiles again.
    """
    caller = "linear_grpo_loss"
    if spec is not None and loss_fn is not None:
        raise ValueError(f"{caller}: give spec or loss_fn, not both; loss_fn is the whole loss")
    options = HeadOptions(
        temperature=temperature,
        softcap=softcap,
        logit_scale=logit_scale,
        logits_dtype=logits_dtype,
        chunk_bytes=chunk_bytes,
        backend=backend,
        vocab=vocab,
        compute_dtype=compute_dtype_of(hidden, weight),
    )
    shape = targets.shape
    hidden, targets = hidden.reshape(-1, hidden.shape[-1]), targets.reshape(-1)
    run = _grpo_loss
    if torch.compiler.is_compiling():
        from . import compiled

        run = compiled.grpo_loss
    loss, metrics, logps, entropy = run(
        hidden,
        weight,
        bias,
        targets,
        rows,
        spec or LossSpec(),
        options,
        Wanted.of(hidden, weight, bias),
        loss_fn=loss_fn,
        loss_fn_needs_whole_rows=loss_fn_needs_whole_rows,
        grad_scale=check_grad_scale(grad_scale, caller),
        accumulate_into=accumulate_into,
    )
    return GRPOLossOutput(loss, metrics, logps.view(shape), entropy.view(shape))


def _logps(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    options: HeadOptions,
    outputs: tuple[str, ...],
    with_gradient: tuple[str, ...],
    wanted: Wanted,
) -> tuple[Tensor, ...]:
    """The asked outputs of hidden (N, D), in eager mode."""
    with without_autocast(hidden.device):
        problem, backend = prepare_head(hidden, weight, bias, targets, options, "linear_logps")
        if wanted.any:
            found = LogpsFunction.apply(
                problem, backend, outputs, with_gradient, wanted, hidden, weight, bias
            )
            return cast(tuple[Tensor, ...], found)
        statistics = backend.statistics(problem)
        return tuple(getattr(statistics, name) for name in outputs)


def _grpo_loss(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    rows: LossRows,
    spec: LossSpec,
    options: HeadOptions,
    wanted: Wanted,
    *,
    loss_fn: LossFn | None,
    loss_fn_needs_whole_rows: bool,
    grad_scale: float | Tensor,
    accumulate_into: str | None,
) -> tuple[Tensor, Metrics, Tensor, Tensor]:
    """Loss, metrics, log-probs and entropies of hidden (N, D), in eager mode."""
    with without_autocast(hidden.device):
        call, kept_hidden = prepare_loss(
            hidden, weight, bias, targets, rows, spec, options, wanted,
            loss_fn=loss_fn, loss_fn_needs_whole_rows=loss_fn_needs_whole_rows,
        )  # fmt: skip
        call.grad_scale = grad_scale
        if accumulate_into is not None and torch.is_grad_enabled():
            call.weight_into = gradient_buffer(weight, accumulate_into, "linear_grpo_loss")
        found: dict[str, Any] = {}
        loss = cast(Tensor, LossFunction.apply(call, found, kept_hidden, weight, bias))
    statistics: Statistics = found["statistics"]
    logps, entropy = call.scatter(statistics.logp), call.scatter(statistics.entropy)
    return loss, found["metrics"], logps, entropy
