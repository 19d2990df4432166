"""What a backend must do: statistics of a head problem, and gradients made in forward.

Shapes: `N tokens . D hidden . V vocab . C chunk`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..objective import TokenGradients
from ..problem import HeadProblem


@dataclass(frozen=True)
class Statistics:
    """Per-token results, in the problem's accumulation dtype."""

    logp: Tensor
    """(N,) log softmax(z)[target]"""
    entropy: Tensor
    """(N,) entropy of softmax(z), in nats"""
    lse: Tensor
    """(N,) logsumexp(z)"""


@dataclass(frozen=True)
class Wanted:
    """Which gradients a call needs."""

    hidden: bool
    weight: bool
    bias: bool

    @classmethod
    def of(cls, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> "Wanted":
        """What autograd will ask for of these leaves, in the mode of the call."""
        asked = torch.is_grad_enabled()
        return cls(*(asked and x is not None and x.requires_grad for x in (hidden, weight, bias)))

    @property
    def any(self) -> bool:
        """True when at least one is needed."""
        return self.hidden or self.weight or self.bias


@dataclass(frozen=True)
class HeadGradients:
    """Gradients of a scalar; None where not wanted."""

    hidden: Tensor | None
    """(N, D) `problem.hidden_grad_dtype`"""
    weight: Tensor | None
    """(V, D) accumulation dtype, or the weight's where one GEMM alone has made it; None too where
    `weight_into` has taken it"""
    bias: Tensor | None
    """(V,) accumulation dtype"""


Coefficients = Callable[[slice, Statistics], TokenGradients]
"""(tokens of the chunk, their statistics) -> d loss / d (logp, entropy, lse) of those tokens."""


class HeadBackend(Protocol):
    """One implementation of the head."""

    name: str

    def num_chunks(self, problem: HeadProblem) -> int:
        """How many pieces `gradients` cuts the problem into (0 for no tokens)."""

    def statistics(self, problem: HeadProblem) -> Statistics:
        """Log-probs, entropies and lse; nothing of size (N, V) is kept."""

    def gradients(
        self,
        problem: HeadProblem,
        coefficients: Coefficients,
        wanted: Wanted,
        *,
        entropy_gradient: bool,
        weight_into: Tensor | None = None,
    ) -> tuple[Statistics, HeadGradients]:
        """Statistics and gradients in one pass: `coefficients` is called once a chunk, in order.

        Args:
            entropy_gradient: False promises that no coefficient has an entropy part.
            weight_into: with `wanted.weight`, (V, D) contiguous, of the accumulation or the
                weight's dtype: the weight gradient is added to it and not returned. In the
                accumulation dtype the GEMMs add straight into it; a narrower one is rounded once,
                after the last chunk.
        """

    def unit_gradients(
        self, problem: HeadProblem, outputs: tuple[str, ...]
    ) -> tuple[Statistics, dict[str, Tensor]]:
        """Statistics, and d output_t / d hidden_t as (N, D) for each of logp, entropy, lse."""
