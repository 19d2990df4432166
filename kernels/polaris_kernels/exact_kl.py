"""The KL divergence to a reference over the whole vocabulary, from both models' hidden states.

The estimators of `LossSpec.kl_estimator` see one sampled token a position. This is their mean over
the policy, KL(pi || ref) = sum_j p_j (log p_j - log q_j): no sampling noise, never negative, and
the same number for any token. It costs the reference's logits, one GEMM more than an estimator.
With the states fixed, as in every estimator, its gradient is

    d KL / d z_j = p_j (log p_j - log q_j - KL).

It is an operator of its own and not one more `kl_estimator`, because a `LossSpec` is a function of
numbers per token, which `LossRows` carries, while this needs hidden states and a second head. In
return it serves any loss (`grpo_loss`, a callback, distillation from a teacher, whose reverse KL
this is), the two heads may differ in width, and the reference is asked for nothing but hidden
states, whether it is a second model or the same one with its adapters off.

- `linear_kl`: one value a token, differentiable, for losses of your own. With a frozen weight it
  keeps d KL / d hidden; a trainable one makes backward compute both models' logits again.
- `linear_kl_loss`: the sum over the tokens of `LossRows` with the weights of a `LossSpec`, so that
  it adds to the loss of `linear_grpo_loss`; gradients are made in forward. This is what a trainer
  wants:

      out = linear_grpo_loss(hidden, W, targets, rows=rows, spec=spec)        # spec.beta = 0
      kl = linear_kl_loss(hidden, W, ref_hidden, ref_W, rows=rows, spec=spec)
      (out.loss + beta * kl.loss).backward()

Logits of both models exist for one chunk of tokens at a time.

Shapes: `N tokens . K tokens with loss . C chunk . D hidden . V vocab`.
"""

from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .autograd import read_again, scaled
from .backends.base import Wanted
from .kl_pass import Head, HeadPair, check_reference, kl_pass
from .loss_call import times_scale
from .metrics import Metrics
from .problem import (
    accumulation_dtype,
    check_grad_scale,
    check_temperature,
    compute_dtype_of,
    without_autocast,
)
from .rows import LossRows, TokenView, scatter_tokens, select_tokens, view_rows
from .spec import LossSpec


class KLLossOutput(NamedTuple):
    """What `linear_kl_loss` returns."""

    loss: Tensor
    """scalar float32, differentiable; times no beta"""
    metrics: Metrics
    """`sum_kl` over the tokens with loss: `out.metrics | kl.metrics` is one batch's"""
    kl: Tensor
    """(N,) KL of each token without gradient, 0 where a token carries no loss"""


def linear_kl(
    hidden: Tensor,
    weight: Tensor,
    ref_hidden: Tensor,
    ref_weight: Tensor,
    *,
    bias: Tensor | None = None,
    ref_bias: Tensor | None = None,
    temperature: float | Tensor = 1.0,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    logits_dtype: str = "fp32",
    chunk_bytes: int | None = None,
) -> Tensor:
    """KL(pi || ref) of each position, differentiable in `hidden`, `weight` and `bias`.

    Args:
        hidden: (..., D) float.
        weight: (V, D) float.
        ref_hidden: (..., D') float, as many positions as `hidden`; D' may differ from D.
        ref_weight: (V, D') float; may be `weight` itself. The reference gets no gradient.
        bias, ref_bias: (V,) float.
        temperature, softcap, logit_scale, logits_dtype: as in `linear_logps`, for both models.
        chunk_bytes: budget of the logits (of both) that exist at a time; None: by device.

    Returns:
        float32 (float64 for float64 inputs), shaped like `hidden` without its last dimension.

    Not handled: infinite logits (`linear_logps` takes a bias of -inf, this does not); a vocabulary
    cut over ranks; `torch.compile`, which breaks its graph here.
    """
    shape = hidden.shape[:-1]
    hidden = hidden.reshape(-1, hidden.shape[-1])
    pair = HeadPair.make(
        Head(hidden, weight, bias),
        Head(ref_hidden.reshape(-1, ref_hidden.shape[-1]), ref_weight, ref_bias),
        caller="linear_kl",
        temperature=temperature,
        softcap=softcap,
        logit_scale=logit_scale,
        logits_dtype=logits_dtype,
        chunk_bytes=chunk_bytes,
    )
    with without_autocast(hidden.device):
        kl: Tensor = _KLFunction.apply(pair, Wanted.of(hidden, weight, bias), hidden, weight, bias)
    # a view only where the layout asks for one: FSDP2's hooks warn about returned views
    return kl if len(shape) == 1 else kl.view(shape)


def linear_kl_loss(
    hidden: Tensor,
    weight: Tensor,
    ref_hidden: Tensor,
    ref_weight: Tensor,
    *,
    rows: LossRows,
    spec: LossSpec | None = None,
    bias: Tensor | None = None,
    ref_bias: Tensor | None = None,
    temperature: float | Tensor = 1.0,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    logits_dtype: str = "fp32",
    chunk_bytes: int | None = None,
    grad_scale: float | Tensor = 1.0,
) -> KLLossOutput:
    """grad_scale * sum_t w_t KL_t over the tokens of `rows`; its gradients are made in forward.

    Args:
        rows: mask, row weights and denominator are used; human rows count like any.
        spec: its aggregation gives w_t; None: `LossSpec()`.
        grad_scale: factor of the loss and its gradients (not of the metrics); as in
            `linear_grpo_loss` the place of fp16 training's loss scale.
        the others: as in `linear_kl`, with (N, D) or (B, L, D) hidden states.

    Returns:
        `KLLossOutput`. Its loss can be backpropagated once, scaled by anything.
    """
    caller = "linear_kl_loss"
    grad_scale = check_grad_scale(grad_scale, caller)
    shape, num_tokens = hidden.shape[:-1], hidden.shape[:-1].numel()
    rows.validate(num_tokens, hidden.device, caller)
    hidden = hidden.reshape(-1, hidden.shape[-1])
    ref_hidden = ref_hidden.detach().reshape(-1, ref_hidden.shape[-1])
    check_reference(hidden, ref_hidden, caller)
    acc = accumulation_dtype(compute_dtype_of(hidden, weight))
    temperature = check_temperature(temperature, num_tokens, hidden.device, acc, caller)
    index, kept = select_tokens(rows, num_tokens)
    if index is not None:
        hidden, ref_hidden = hidden.index_select(0, index), ref_hidden.index_select(0, index)
        if isinstance(temperature, Tensor):
            temperature = temperature.index_select(0, index)
    elif kept is not None:
        # 0 times an inf under the mask would be nan
        hidden = torch.where(kept.unsqueeze(1), hidden, 0.0)
        ref_hidden = torch.where(kept.unsqueeze(1), ref_hidden, 0.0)
        if isinstance(temperature, Tensor):
            temperature = torch.where(kept, temperature, 1.0)
    pair = HeadPair.make(
        Head(hidden, weight, bias),
        Head(ref_hidden, ref_weight, ref_bias),
        caller=caller,
        temperature=temperature,
        softcap=softcap,
        logit_scale=logit_scale,
        logits_dtype=logits_dtype,
        chunk_bytes=chunk_bytes,
    )
    view = view_rows(rows, index, kept, spec or LossSpec(), acc)
    found: dict[str, Tensor] = {}
    with without_autocast(hidden.device):
        loss: Tensor = _KLLossFunction.apply(
            pair, Wanted.of(hidden, weight, bias), view, grad_scale, found, hidden, weight, bias
        )
    kl = scatter_tokens(found["kl"], index, view.kept, num_tokens)
    return KLLossOutput(loss=loss, metrics={"sum_kl": kl.sum()}, kl=kl.view(shape))


class _KLFunction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        pair: HeadPair,
        wanted: Wanted,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
    ) -> Tensor:
        ctx.wanted = wanted
        ctx.dtypes = tuple(None if x is None else x.dtype for x in (hidden, weight, bias))
        ctx.keeps_unit = wanted.hidden and not (wanted.weight or wanted.bias)
        policy = pair.policy
        if ctx.keeps_unit:
            ones = policy.hidden.new_ones(policy.num_tokens, dtype=policy.acc_dtype)
            kl, made = kl_pass(pair, ones, wanted)
            ctx.save_for_backward(made.hidden)
            return kl
        # the tensors go through autograd, which notices in-place changes
        others = (pair.reference.hidden, *read_again(policy.targets, policy.temperature)[1:])
        ctx.save_for_backward(hidden, weight, bias, *others)
        empty = hidden.new_empty(0)
        ctx.pair = pair._replace(policy=replace(policy, hidden=empty, weight=empty, bias=None))
        ctx.compute = policy.hidden.dtype
        return kl_pass(pair, None, wanted)[0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.keeps_unit:
            (unit,) = ctx.saved_tensors
            return None, None, (unit * grad.unsqueeze(1)).to(ctx.dtypes[0]), None, None
        hidden, weight, bias, *_ = ctx.saved_tensors
        acc = accumulation_dtype(ctx.compute)
        policy = replace(
            ctx.pair.policy,
            hidden=hidden.detach().to(ctx.compute),
            weight=weight.detach().to(ctx.compute),
            bias=None if bias is None else bias.detach().to(acc),
        )
        with without_autocast(hidden.device):
            made = kl_pass(ctx.pair._replace(policy=policy), grad.to(acc), ctx.wanted)[1]
        return None, None, *_as_dtypes((made.hidden, made.weight, made.bias), ctx.dtypes)


class _KLLossFunction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        pair: HeadPair,
        wanted: Wanted,
        view: TokenView,
        grad_scale: float | Tensor,
        found: dict[str, Tensor],
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
    ) -> Tensor:
        ctx.dtypes = tuple(None if x is None else x.dtype for x in (hidden, weight, bias))
        # into the coefficients: behind the loss a gradient may have been rounded to 0
        coefficients = times_scale(view.weight, grad_scale) if wanted.any else None
        found["kl"], ctx.made = kl_pass(pair, coefficients, wanted)
        return times_scale((view.with_loss(found["kl"]) * view.weight).sum(), grad_scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        made, ctx.made = ctx.made, None
        if made is None:
            raise RuntimeError(
                "linear_kl_loss: backward ran a second time, but its gradients are made once, in "
                "forward, and handed over in the first backward; compute the loss again"
            )
        found = (made.hidden, made.weight, made.bias)
        # no other reference may live on, so that autograd takes the tensors without a copy
        del made
        return (
            *(None,) * 5,
            *(
                None if g is None else scaled(g, grad_loss, dtype)
                for g, dtype in zip(found, ctx.dtypes, strict=True)
            ),
        )


def _as_dtypes(
    gradients: tuple[Tensor | None, ...], dtypes: tuple[torch.dtype | None, ...]
) -> tuple[Tensor | None, ...]:
    return tuple(
        None if g is None else g.to(dtype) for g, dtype in zip(gradients, dtypes, strict=True)
    )
