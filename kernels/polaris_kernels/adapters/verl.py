"""verl's `linear_cross_entropy`, by its signature: log-probs and entropies from hidden states.

    from verl.utils.kernel import linear_cross_entropy as kernel
    from polaris_kernels.adapters.verl import linear_cross_entropy
    kernel.linear_cross_entropy = linear_cross_entropy

verl itself is not needed. Of log-probs that must stay differentiable with a trainable head this is
four GEMMs, as verl's own; with a frozen head two.

Shapes: `N tokens . D hidden . V_r rows of this rank's shard`.
"""

from typing import Any

import torch.distributed as dist
from torch import Tensor
from torch.autograd import Function

from ..head import linear_logps
from ..vocab_parallel import VocabParallel

REDUCTIONS = ("none", "sum", "mean")


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    temperature: float | Tensor | None = 1.0,
    reduction: str | None = "none",
    dist_process_group: "dist.ProcessGroup | None" = None,
    *,
    logits_dtype: str = "fp32",
    chunk_bytes: int | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """log p(label) and the entropy of each token, differentiable, float32.

    Args:
        hidden: (..., D) float.
        weight: (V, D), or with a group this rank's equal share of its rows.
        labels: (...) integers in [0, V), over the whole vocabulary.
        temperature: above 0, a number or a tensor shaped like `labels`; None: 1.
        reduction: of the log-probs: "none" or None, "sum" or "mean". Entropies stay per token.
        dist_process_group: tensor-parallel ranks; rank r holds rows [r V_r, (r + 1) V_r). As in
            verl, the hidden gradients of the ranks *sum* to the gradient: Megatron's
            `gather_from_sequence_parallel_region` before the head does that in its backward.
        logits_dtype, chunk_bytes, backend: as in `linear_logps`.

    Returns:
        Log-probs (N,) or (), and entropies (N,): flat, as verl's.
    """
    reduction = "none" if reduction is None else reduction.lower()
    if reduction not in REDUCTIONS:
        raise ValueError(
            f"linear_cross_entropy: reduction={reduction!r} is unknown; use one of "
            f"{', '.join(REDUCTIONS)}"
        )
    temperature = 1.0 if temperature is None else temperature
    if isinstance(temperature, Tensor) and temperature.numel() > 1:
        temperature = temperature.reshape(-1)
    elif isinstance(temperature, Tensor):
        temperature = float(temperature)
    vocab = _shards(weight, dist_process_group)
    if vocab is not None:
        hidden = _ShareOfGradient.apply(hidden, len(vocab.sizes))
    found = linear_logps(
        hidden.reshape(-1, hidden.shape[-1]), weight, labels.reshape(-1),
        temperature=temperature, return_entropy=True, vocab=vocab,
        logits_dtype=logits_dtype, chunk_bytes=chunk_bytes, backend=backend,
    )  # fmt: skip
    assert found.entropy is not None
    logps = found.logps
    if reduction != "none":
        logps = logps.sum() if reduction == "sum" else logps.mean()
    return logps, found.entropy


def _shards(weight: Tensor, group: "dist.ProcessGroup | None") -> VocabParallel | None:
    """Equal shards in rank order, as verl assumes them; None for a group of one."""
    if group is None or dist.get_world_size(group) == 1:
        return None
    sizes = (weight.shape[0],) * dist.get_world_size(group)
    return VocabParallel(group, sizes, dist.get_rank(group))


class _ShareOfGradient(Function):
    """Identity; its gradient is this rank's even share of the one that every rank holds whole."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, ranks: int) -> Tensor:
        ctx.ranks = ranks
        return hidden.view_as(hidden)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad / ctx.ranks, None
