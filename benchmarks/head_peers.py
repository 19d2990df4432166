"""The peers, each called as its own documentation says, on the inputs that ours get.

A builder takes the inputs and returns the call; one that cannot run here raises `Missing` with the
reason. Forms of one peer differ in what they are given, never in what they compute.

Shapes: `N tokens . D hidden . V vocab . R rows . L tokens a row`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .head_cases import SPEC, HeadInputs
from .head_exact import Outputs
from .measure import Call

LogpsOf = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(hidden (K, D), weight (V, D), targets (K,)) -> log-probs (K,), differentiable."""


class Missing(Exception):
    """A provider cannot run here; the message says why."""


def clipped_loss(logps: Tensor, old_logps: Tensor, advantages: Tensor) -> Tensor:
    """(K,) -min(r A, clip(r) A), written as any trainer in plain torch would."""
    ratio = torch.exp(logps - old_logps)
    clipped = ratio.clamp(1 - SPEC.epsilon, 1 + SPEC.upper_epsilon)
    return -torch.minimum(ratio * advantages, clipped * advantages)


def plain_logps(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """log softmax(hidden @ weight.T)[target], in float32 after the projection."""
    logits = F.linear(hidden, weight).float()
    return torch.log_softmax(logits, -1).gather(-1, targets[:, None]).squeeze(-1)


def plain_logps_and_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor
) -> tuple[Tensor, Tensor]:
    """The same with the entropy."""
    log_p = torch.log_softmax(F.linear(hidden, weight).float(), -1)
    entropy = -(log_p.exp() * log_p).sum(-1)
    return log_p.gather(-1, targets[:, None]).squeeze(-1), entropy


def through_logps(inputs: HeadInputs, logps_of: LogpsOf, *, gather: bool = False) -> Call:
    """Forward + backward of the case's loss on top of a peer's differentiable log-probs.

    Args:
        inputs: the case.
        logps_of: the peer.
        gather: give the peer only the tokens inside the mask.
    """
    hidden, weight = _leaves(inputs)
    index = inputs.mask.nonzero().squeeze(1) if gather else None
    take = (lambda x: x) if index is None else (lambda x: x.index_select(0, index))
    targets, old, mask = take(inputs.targets), take(inputs.old_logps), take(inputs.mask)
    advantages = take(inputs.advantages[inputs.row_of_token])
    upstream, denominator = take(inputs.upstream), inputs.denominator

    def run() -> Outputs:
        logps = logps_of(take(hidden), weight, targets)
        if inputs.case.task == "logp_op":
            return _outputs((logps * upstream).sum(), hidden, weight, logps=logps.detach())
        per_token = clipped_loss(logps, old, advantages)
        return _outputs((per_token * mask).sum() / denominator, hidden, weight)

    return Call(run)


def torch_loss(inputs: HeadInputs) -> Call:
    """F.linear, log_softmax, gather."""
    return through_logps(inputs, plain_logps)


def torch_gathered(inputs: HeadInputs) -> Call:
    """The same on the tokens inside the mask."""
    return through_logps(inputs, plain_logps, gather=True)


def torch_statistics(inputs: HeadInputs) -> Call:
    """Log-probs and entropies without gradient."""
    return _statistics(inputs, plain_logps_and_entropy)


def compiled_loss(inputs: HeadInputs) -> Call:
    """torch.compile of the plain log-probs."""
    return through_logps(inputs, torch.compile(plain_logps, dynamic=False))


def compiled_statistics(inputs: HeadInputs) -> Call:
    """torch.compile of the plain statistics."""
    return _statistics(inputs, torch.compile(plain_logps_and_entropy, dynamic=False))


def trl_loss(inputs: HeadInputs) -> Call:
    """TRL's ChunkedLogProbFunction; on a GPU TRL gathers the tokens inside the mask, here too."""
    logps_of = trl_logps(())
    return through_logps(
        inputs, lambda *args: logps_of(*args)[0], gather=inputs.device.type == "cuda"
    )


def trl_statistics(inputs: HeadInputs) -> Call:
    """The same function without gradient, asked for the entropy too."""
    logps_of = trl_logps(("entropy",))
    return _statistics(inputs, lambda *args: logps_of(*args)[:2])


def liger_chunked(inputs: HeadInputs) -> Call:
    """LigerFusedLinearGRPOLoss with its own defaults for chunks and compilation."""
    try:
        from liger_kernel.chunked_loss import LigerFusedLinearGRPOLoss
    except ImportError as error:
        raise Missing(f"cannot be imported: {error}") from error
    loss_module = LigerFusedLinearGRPOLoss(
        beta=0.0,
        use_ref_model=False,
        epsilon_low=SPEC.epsilon,
        epsilon_high=SPEC.upper_epsilon,
        loss_type=SPEC.loss_type,
        temperature=1.0,
    )
    hidden, weight = _leaves(inputs)
    targets, mask, old = (
        inputs.padded(x) for x in (inputs.targets, inputs.mask.long(), inputs.old_logps)
    )

    def run() -> Outputs:
        loss, _ = loss_module(
            hidden.view(*targets.shape, -1), weight, targets, mask, inputs.advantages,
            old_per_token_logps=old,
        )  # fmt: skip
        return _outputs(loss, hidden, weight)

    return Call(run)


def liger_triton(inputs: HeadInputs) -> Call:
    """F.linear, then Liger's Triton GRPO loss on the logits."""
    loss_of = _liger_triton(inputs)
    hidden, weight = _leaves(inputs)
    R, L = inputs.padded(inputs.targets).shape
    # the loss takes L + 1 positions and leaves the last one out
    position = torch.arange(L + 1, device=inputs.device).clamp(max=L - 1)
    index = (torch.arange(R, device=inputs.device)[:, None] * L + position).view(-1)

    def run() -> Outputs:
        logits = F.linear(hidden.index_select(0, index), weight).view(R, L + 1, -1)
        return _outputs(loss_of(logits), hidden, weight)

    return Call(run)


def cut_cross_entropy(inputs: HeadInputs) -> Call:
    """Apple's kernel without its gradient filter: on random hidden states that drops nearly all."""
    try:
        from cut_cross_entropy import linear_cross_entropy
    except ImportError as error:
        raise Missing(f"cannot be imported: {error}") from error
    _needs_cuda(inputs, "Triton kernels")
    if inputs.case.dtype == "fp32":
        raise Missing("takes half-precision inputs only")

    def logps_of(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        return -linear_cross_entropy(hidden, weight, targets, reduction="none", filter_eps=None)

    return through_logps(inputs, logps_of)


def torch_linear_cross_entropy(inputs: HeadInputs) -> Call:
    """F.linear_cross_entropy with its automatic chunking."""
    if not hasattr(torch.nn, "LinearCrossEntropyOptions"):
        raise Missing(f"torch {torch.__version__} has no chunked F.linear_cross_entropy (2.13 has)")
    options = torch.nn.LinearCrossEntropyOptions()

    def logps_of(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        return -F.linear_cross_entropy(
            hidden, weight, targets, reduction="none", options=options
        ).float()

    return through_logps(inputs, logps_of)


def torch_logits(inputs: HeadInputs) -> Call:
    """log_softmax and gather on the logits."""

    def logps_of(logits: Tensor, targets: Tensor) -> Tensor:
        return torch.log_softmax(logits.float(), -1).gather(-1, targets[..., None]).squeeze(-1)

    return _from_logits(inputs, logps_of)


def compiled_logits(inputs: HeadInputs) -> Call:
    """torch.compile of it."""

    def logps_of(logits: Tensor, targets: Tensor) -> Tensor:
        return torch.log_softmax(logits.float(), -1).gather(-1, targets[..., None]).squeeze(-1)

    return _from_logits(inputs, torch.compile(logps_of, dynamic=False))


def trl_logits(inputs: HeadInputs) -> Call:
    """TRL's selective_log_softmax."""
    try:
        from trl.trainer.utils import selective_log_softmax
    except ImportError as error:
        raise Missing(f"cannot be imported: {error}") from error
    return _from_logits(inputs, selective_log_softmax)


def liger_logits(inputs: HeadInputs) -> Call:
    """Liger's Triton GRPO loss; it writes the gradient over the logits."""
    loss_of = _liger_triton(inputs)
    working = inputs.logits.clone().requires_grad_()

    def run() -> Outputs:
        loss = loss_of(working)
        return Outputs(loss=loss.detach(), grad_logits=torch.autograd.grad(loss, working)[0])

    return Call(run, prepare=lambda: working.data.copy_(inputs.logits))


def _from_logits(inputs: HeadInputs, logps_of: Callable[[Tensor, Tensor], Tensor]) -> Call:
    leaf = inputs.logits.detach().requires_grad_()
    targets, old, mask = (inputs.padded(x) for x in (inputs.targets, inputs.old_logps, inputs.mask))
    advantages, denominator = inputs.advantages[:, None], inputs.denominator

    def run() -> Outputs:
        per_token = clipped_loss(logps_of(leaf[:, :-1], targets), old, advantages)
        loss = (per_token * mask).sum() / denominator
        return Outputs(loss=loss.detach(), grad_logits=torch.autograd.grad(loss, leaf)[0])

    return Call(run)


def _statistics(
    inputs: HeadInputs, both_of: Callable[[Tensor, Tensor, Tensor], Sequence[Tensor]]
) -> Call:
    def run() -> Outputs:
        with torch.no_grad():
            logps, entropy = both_of(inputs.hidden, inputs.weight, inputs.targets)
        return Outputs(logps=logps, entropy=entropy)

    return Call(run)


def trl_logps(outputs: tuple[str, ...]) -> Callable[..., Sequence[Tensor]]:
    try:
        from trl.kernels import ChunkedLogProbFunction
        from trl.trainer.utils import _CHUNKED_LOGPROB_CHUNK_SIZE as width
    except ImportError as error:
        raise Missing(f"cannot be imported: {error}") from error

    def logps_of(hidden: Tensor, weight: Tensor, targets: Tensor) -> Sequence[Tensor]:
        results: Sequence[Tensor] = ChunkedLogProbFunction.apply(
            hidden, weight, None, targets, 1.0, width, None, 1.0, outputs
        )
        return results

    return logps_of


def _liger_triton(inputs: HeadInputs) -> Callable[[Tensor], Tensor]:
    try:
        from liger_kernel.transformers.grpo_loss import triton_grpo_loss
    except ImportError as error:
        raise Missing(f"cannot be imported: {error}") from error
    _needs_cuda(inputs, "a Triton kernel")
    targets, mask, old = (
        inputs.padded(x).contiguous()
        for x in (inputs.targets, inputs.mask.long(), inputs.old_logps)
    )
    options: dict[str, Any] = {
        "temperature": 1.0, "beta": 0.0, "eps_low": SPEC.epsilon, "eps_high": SPEC.upper_epsilon,
        "loss_type": SPEC.loss_type, "inplace": True, "reduce": True,
    }  # fmt: skip

    def loss_of(logits: Tensor) -> Tensor:
        loss: Tensor = triton_grpo_loss(
            logits, old, None, targets, inputs.advantages, mask, **options
        )[0]
        return loss

    return loss_of


def _needs_cuda(inputs: HeadInputs, what: str) -> None:
    if inputs.device.type != "cuda":
        raise Missing(f"{what}: needs CUDA")


def _leaves(inputs: HeadInputs) -> tuple[Tensor, Tensor]:
    """Hidden states and weight as a model hands them over: the weight is frozen in `frozen`."""
    hidden = inputs.hidden.detach().requires_grad_()
    weight = inputs.weight.detach().requires_grad_(inputs.case.task != "frozen")
    return hidden, weight


def _outputs(loss: Tensor, hidden: Tensor, weight: Tensor, logps: Tensor | None = None) -> Outputs:
    leaves = [hidden, weight] if weight.requires_grad else [hidden]
    grads = torch.autograd.grad(loss, leaves)
    return Outputs(
        loss=loss.detach(),
        logps=logps,
        grad_hidden=grads[0],
        grad_weight=grads[1] if len(grads) > 1 else None,
    )
