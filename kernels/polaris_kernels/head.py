"""The head's public functions and module: log-probs and policy losses straight from hidden states.

    from polaris_kernels import FusedHead, LossRows, LossSpec
    model.lm_head = FusedHead.from_linear(model.lm_head)
    out = model.lm_head(hidden, targets=targets, rows=LossRows(...), spec=LossSpec(...))
    out.loss.backward()

Shapes: `N tokens . D hidden . V vocab . R rows . K tokens with loss`.
"""

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .autograd import LOGP_OUTPUTS, LogpsFunction, LossCall, LossFunction
from .backends import get_backend
from .backends.base import Wanted
from .metrics import Metrics
from .objective import CallbackObjective, Objective, SpecObjective
from .problem import accumulation_dtype, check_temperature, make_problem
from .rows import LossFn, LossRows, TokenView, scatter_tokens, select_tokens, view_rows
from .spec import LossSpec


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
    return_lse: bool = False,
    chunk_bytes: int | None = None,
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
        return_lse: also logsumexp(z), differentiable.
        chunk_bytes: budget of the logits that exist at a time; None: by device.
        backend: name of a backend; None: the environment's or the device's.

    Returns:
        `TokenLogps` shaped like `targets`. With a frozen weight (and bias), backward needs no
        logits; otherwise it makes them again.

    Not handled: infinite logits (a bias of -inf).
    """
    shape = targets.shape
    hidden = hidden.reshape(-1, hidden.shape[-1])
    problem = make_problem(
        hidden,
        weight,
        targets.reshape(-1),
        bias=bias,
        temperature=temperature,
        softcap=softcap,
        logit_scale=logit_scale,
        logits_dtype=logits_dtype,
        chunk_bytes=chunk_bytes,
        caller="linear_logps",
    )
    chosen = get_backend(hidden.device, backend)
    asked = {"logp": True, "entropy": return_entropy, "lse": return_lse}
    outputs = tuple(name for name in LOGP_OUTPUTS if asked[name])
    wanted = _wanted(hidden, weight, bias)
    if wanted.any:
        results = LogpsFunction.apply(problem, chosen, outputs, wanted, hidden, weight, bias)
    else:
        statistics = chosen.statistics(problem)
        results = tuple(getattr(statistics, name) for name in outputs)
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
    backend: str | None = None,
) -> GRPOLossOutput:
    """sum_t w_t L_t over the tokens of `rows`; its gradients are made in forward.

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
        bias, temperature, softcap, logit_scale, logits_dtype, chunk_bytes, backend: as in
            `linear_logps`.

    Returns:
        `GRPOLossOutput`. Its loss can be backpropagated once, scaled by anything.
    """
    caller = "linear_grpo_loss"
    if spec is not None and loss_fn is not None:
        raise ValueError(f"{caller}: give spec or loss_fn, not both; loss_fn is the whole loss")
    spec = spec or LossSpec()
    shape = targets.shape
    hidden = hidden.reshape(-1, hidden.shape[-1])
    targets = targets.reshape(-1)
    num_tokens = targets.shape[0]
    rows.validate(num_tokens, hidden.device, caller)
    if loss_fn is None:
        check_inputs_of_spec(rows, spec, caller)
    index, kept = select_tokens(rows, num_tokens)
    acc = accumulation_dtype(torch.promote_types(hidden.dtype, weight.dtype))
    view = view_rows(rows, index, kept, spec, acc)
    temperature = check_temperature(temperature, num_tokens, hidden.device, acc, caller)
    # first compaction: index_select's own backward scatters the hidden gradient back
    if index is not None:
        hidden, targets = hidden.index_select(0, index), targets.index_select(0, index)
        if isinstance(temperature, Tensor):
            temperature = temperature.index_select(0, index)
    elif kept is not None:
        # 0 times an inf under the mask would be nan
        hidden = torch.where(kept.unsqueeze(1), hidden, 0.0)
        targets = targets.masked_fill(~kept, 0)
    problem = make_problem(
        hidden,
        weight,
        targets,
        bias=bias,
        temperature=temperature,
        softcap=softcap,
        logit_scale=logit_scale,
        logits_dtype=logits_dtype,
        chunk_bytes=chunk_bytes,
        caller=caller,
    )
    call = LossCall(
        problem=problem,
        objective=build_objective(spec, loss_fn, loss_fn_needs_whole_rows, view),
        backend=get_backend(hidden.device, backend),
        wanted=_wanted(hidden, weight, bias),
    )
    loss = cast(Tensor, LossFunction.apply(call, hidden, weight, bias))
    statistics = call.statistics
    assert statistics is not None and call.metrics is not None
    return GRPOLossOutput(
        loss=loss,
        metrics=call.metrics,
        logps=scatter_tokens(statistics.logp, index, view.kept, num_tokens).view(shape),
        entropy=scatter_tokens(statistics.entropy, index, view.kept, num_tokens).view(shape),
    )


class FusedHead(nn.Linear):
    """An `nn.Linear` that turns hidden states into log-probs or a loss when it is given targets.

    Calling it as a module is what lets ZeRO-3 and FSDP2 gather the weight, before forward and again
    before backward, and what keeps tied weights one parameter.
    """

    @classmethod
    def from_linear(cls, linear: nn.Linear) -> "FusedHead":
        """A head over the very parameters of `linear` (tied weights stay tied).

        A layer that changes its output by other means than weight and bias (an adapter, a
        parametrization, a quantized layer) is refused: the fused pass would leave that out.
        """
        if type(linear) not in (nn.Linear, cls):
            raise ValueError(
                f"FusedHead.from_linear: got {type(linear).__module__}.{type(linear).__qualname__},"
                " not a plain nn.Linear; merge or remove its adapter or parametrization first"
            )
        head = cls(
            linear.in_features,
            linear.out_features,
            bias=linear.bias is not None,
            device="meta",
            dtype=linear.weight.dtype,
        )
        head.weight = linear.weight
        head.bias = linear.bias
        return head.train(linear.training)

    def forward(  # type: ignore[override]
        self,
        hidden: Tensor,
        *,
        targets: Tensor | None = None,
        rows: LossRows | None = None,
        **options: Any,
    ) -> Tensor | TokenLogps | GRPOLossOutput:
        """Logits without targets, `TokenLogps` with targets, `GRPOLossOutput` with rows too.

        Args:
            hidden: (..., D).
            targets: (...) integers.
            rows: the loss's inputs.
            options: keywords of `linear_logps` or `linear_grpo_loss`, except `bias`.
        """
        if targets is None:
            if rows is not None or options:
                given = ", ".join((["rows"] if rows is not None else []) + sorted(options))
                raise ValueError(f"FusedHead: {given} given without targets; pass targets too")
            return F.linear(hidden, self.weight, self.bias)
        if rows is None:
            return linear_logps(hidden, self.weight, targets, bias=self.bias, **options)
        return linear_grpo_loss(hidden, self.weight, targets, rows=rows, bias=self.bias, **options)

    def logps(self, hidden: Tensor, *, targets: Tensor, **options: Any) -> TokenLogps:
        """`linear_logps` through the module, hooks and all; options as there."""
        return cast(TokenLogps, self(hidden, targets=targets, **options))


def build_objective(
    spec: LossSpec, loss_fn: LossFn | None, needs_whole_rows: bool, view: TokenView
) -> Objective:
    """The loss of one call: the user's when there is one, else the spec's."""
    if loss_fn is None:
        return SpecObjective(spec, view)
    return CallbackObjective(loss_fn, view, whole_rows=needs_whole_rows)


def check_inputs_of_spec(rows: LossRows, spec: LossSpec, caller: str) -> None:
    """ValueError when the spec needs a field that the rows do not have."""
    if spec.beta > 0 and rows.ref_logps is None:
        raise ValueError(
            f"{caller}: spec.beta={spec.beta} needs rows.ref_logps, got None; pass the reference "
            "model's log-probs or set beta to 0"
        )
    if spec.is_correction != "none" and rows.rollout_logps is None:
        raise ValueError(
            f"{caller}: spec.is_correction={spec.is_correction!r} needs rows.rollout_logps, got "
            "None; pass the engine's log-probs or set is_correction to 'none'"
        )
    if spec.human_ratio == "luffy" and rows.is_human is None:
        raise ValueError(
            f"{caller}: spec.human_ratio='luffy' needs rows.is_human, got None; mark the rows or "
            "set human_ratio to 'same'"
        )


def _wanted(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Wanted:
    if not torch.is_grad_enabled():
        return Wanted(False, False, False)
    return Wanted(
        hidden.requires_grad, weight.requires_grad, bias is not None and bias.requires_grad
    )
