"""OpenRLHF's `log_probs_from_logits`, by its signature, and the same without the logits.

    import openrlhf.models.actor as actor
    from polaris_kernels.adapters.openrlhf import log_probs_from_logits
    actor.log_probs_from_logits = log_probs_from_logits

OpenRLHF itself is not needed.
"""

from torch import Tensor

from ..head import TokenLogps, linear_logps
from ..logits import selective_logps


def log_probs_from_logits(
    logits: Tensor, labels: Tensor, temperature: float = 1.0, *, backend: str | None = None
) -> Tensor:
    """log softmax(logits / temperature)[label], float32; the logits stay as they are.

    Args:
        logits: (B, L, V) or (N, V) float.
        labels: (B, L) or (N,) integers in [0, V).
        temperature: above 0.
        backend: name of a backend.
    """
    flat = logits.reshape(-1, logits.shape[-1])
    found = selective_logps(flat, labels.reshape(-1), temperature=temperature, backend=backend)
    return found.logps.view(labels.shape)


def log_probs_from_hidden(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    temperature: float = 1.0,
    *,
    bias: Tensor | None = None,
    return_entropy: bool = False,
    logits_dtype: str = "fp32",
    backend: str | None = None,
) -> TokenLogps:
    """The same from hidden states: nothing of shape (B, L, V) exists.

    Args:
        hidden: (B, L, D) float, the positions that predict `labels`.
        weight: (V, D) of the output head; `bias` (V,).
        labels: (B, L) integers in [0, V).
        return_entropy: also the entropies in nats, differentiable.
        logits_dtype, backend: as in `linear_logps`.
    """
    return linear_logps(
        hidden, weight, labels, bias=bias, temperature=temperature, return_entropy=return_entropy,
        logits_dtype=logits_dtype, backend=backend,
    )  # fmt: skip
