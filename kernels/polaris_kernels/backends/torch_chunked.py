"""The chunked torch backend: vendor GEMMs around an in-place row pass, on CPU and CUDA.

A chunk of C tokens goes through: logits GEMM -> row pass (statistics) -> coefficients from the
caller -> row pass (gradient, in place) -> GEMM into dX -> GEMM into dW. C comes from a byte budget;
the last chunk is no smaller than the others by more than one row each.

Shapes: `N tokens . C chunk . D hidden . V vocab`.
"""

import torch
from torch import Tensor

from ..objective import TokenGradients
from ..problem import HeadProblem
from . import gemm
from .base import Coefficients, HeadGradients, Statistics, Wanted
from .chunks import (
    add_rounding_once,
    buffer_shapes,
    chunks,
    empty_like_acc,
    finish,
    reduce_chunk,
    rows_with_gradient,
    stream,
)
from .row_pass import RowStatistics, gradient_block_, row_blocks, row_coefficients
from .workspace import borrowed

# below this share of non-zero rows the back-GEMMs run on a gathered copy of them
_GATHER_BELOW = 0.75


class TorchBackend:
    """Plain torch ops; runs wherever torch does."""

    name = "torch"

    def num_chunks(self, problem: HeadProblem) -> int:
        """Chunks of `gradients`."""
        return len(chunks(problem))

    def statistics(self, problem: HeadProblem) -> Statistics:
        """Log-probs, entropies and lse, streaming over vocabulary tiles when V is large."""
        rows = RowStatistics.empty(problem.num_tokens, empty_like_acc(problem))
        if self.num_chunks(problem) <= 1:
            # the very ops of `gradients`, so that both give the same bits
            for tokens in chunks(problem):
                with borrowed(buffer_shapes(problem, tokens), empty_like_acc(problem)) as (
                    z,
                    scratch,
                ):
                    reduce_chunk(problem, tokens, z, scratch, rows, keep="exp")
        else:
            stream(problem, rows)
        return finish(rows)

    def gradients(
        self,
        problem: HeadProblem,
        coefficients: Coefficients,
        wanted: Wanted,
        *,
        entropy_gradient: bool,
        weight_into: Tensor | None = None,
    ) -> tuple[Statistics, HeadGradients]:
        """Statistics and gradients; logits exist for one chunk at a time."""
        rows = RowStatistics.empty(problem.num_tokens, empty_like_acc(problem))
        keep = "shifted" if entropy_gradient or problem.softcap is not None else "exp"
        sums = _GradientSums(problem, wanted, weight_into)
        for tokens in chunks(problem):
            with borrowed(buffer_shapes(problem, tokens), empty_like_acc(problem)) as (z, scratch):
                reduce_chunk(problem, tokens, z, scratch, rows, keep=keep)
                statistics = finish(rows[tokens])
                token_gradients = coefficients(tokens, statistics)
                chunk = _Chunk(problem, tokens, rows[tokens], statistics.entropy)
                chunk.kept = chunk.non_zero(token_gradients)
                if chunk.kept is not None:
                    z = z.index_select(0, chunk.kept)
                chunk.to_gradient_(z, scratch, token_gradients, keep)
                sums.add(chunk, z)
        return finish(rows), sums.result()

    def unit_gradients(
        self, problem: HeadProblem, outputs: tuple[str, ...]
    ) -> tuple[Statistics, dict[str, Tensor]]:
        """d output / d hidden with unit coefficients: what a frozen head keeps for backward."""
        rows = RowStatistics.empty(problem.num_tokens, empty_like_acc(problem))
        wanted = Wanted(hidden=True, weight=False, bias=False)
        sums = {name: _GradientSums(problem, wanted) for name in outputs}
        needs_shifted = "entropy" in outputs or problem.softcap is not None
        keep = "shifted" if needs_shifted else "exp"
        for tokens in chunks(problem, buffers=min(len(outputs), 2)):
            with borrowed(buffer_shapes(problem, tokens), empty_like_acc(problem)) as (z, scratch):
                reduce_chunk(problem, tokens, z, scratch, rows, keep=keep)
                statistics = finish(rows[tokens])
                chunk = _Chunk(problem, tokens, rows[tokens], statistics.entropy)
                ones = torch.ones_like(statistics.logp)
                for i, name in enumerate(outputs):
                    dz = z if i == len(outputs) - 1 else z.clone()
                    unit = {"logp": None, "entropy": None, "lse": None} | {name: ones}
                    chunk.to_gradient_(dz, scratch, TokenGradients(**unit), keep)
                    sums[name].add(chunk, dz)
        units = {name: s.result().hidden for name, s in sums.items()}
        return finish(rows), {name: unit for name, unit in units.items() if unit is not None}


class _Chunk:
    """One chunk between its statistics and its gradient; `kept` are the rows still in it."""

    def __init__(
        self, problem: HeadProblem, tokens: slice, rows: RowStatistics, entropy: Tensor
    ) -> None:
        self.problem = problem
        self.tokens = tokens
        self.rows = rows
        self.entropy = entropy
        self.kept: Tensor | None = None

    def non_zero(self, gradients: TokenGradients) -> Tensor | None:
        """Rows with a non-zero coefficient, when few enough to gather; CPU only (it must sync)."""
        if self.entropy.device.type != "cpu":
            return None
        index = rows_with_gradient(gradients)
        if index is None:
            return self.entropy.new_zeros(0, dtype=torch.int64)
        return index if index.numel() < _GATHER_BELOW * self.entropy.numel() else None

    def take(self, value: Tensor) -> Tensor:
        """The kept rows of a (C, ...) tensor."""
        return value if self.kept is None else value.index_select(0, self.kept)

    def to_gradient_(
        self, z: Tensor, scratch: Tensor, gradients: TokenGradients, kept: str
    ) -> None:
        """z (kept rows, V): the reduced logits -> d loss / d raw logits, in place."""
        problem = self.problem
        temperature = problem.temperature_of(self.tokens)
        coefficients = row_coefficients(
            gradients, self.rows, self.entropy, problem.logit_scale / temperature
        )
        targets = self.take(problem.targets[self.tokens]).unsqueeze(1)
        if self.kept is not None:
            coefficients = coefficients.take(self.kept)
        cap: tuple[Tensor, Tensor] | None = None
        if problem.softcap is not None:
            maximum = self.take(self.rows.maximum).unsqueeze(1)
            per_row = maximum.new_zeros(self.entropy.shape[0], 1) + temperature
            cap = (maximum, self.take(per_row) / problem.softcap)
        for block in row_blocks(z.shape[0], z.shape[1], z.device):
            gradient_block_(
                z[block],
                scratch[: block.stop - block.start],
                targets[block],
                coefficients[block],
                kept=kept,
                cap_slope=None if cap is None else (cap[0][block], cap[1][block]),
            )


class _GradientSums:
    """dX written chunk by chunk, dW and db summed over chunks in the accumulation dtype."""

    def __init__(
        self, problem: HeadProblem, wanted: Wanted, weight_into: Tensor | None = None
    ) -> None:
        self.problem = problem
        self.wanted = wanted
        self.weight_into = weight_into
        adds_wide = weight_into is not None and weight_into.dtype == problem.acc_dtype
        self.weight = weight_into if adds_wide else None
        self.bias: Tensor | None = None
        self.hidden: Tensor | None = None
        if wanted.hidden:
            self.hidden = torch.empty_like(
                problem.hidden,
                dtype=problem.hidden_grad_dtype,
                memory_format=torch.contiguous_format,
            )

    def add(self, chunk: _Chunk, dz: Tensor) -> None:
        """Take in one chunk's d loss / d raw logits (kept rows, V)."""
        problem = self.problem
        if self.hidden is not None:
            gradient = gemm.hidden_gradient(dz, problem.weight)
            if chunk.kept is None:
                self.hidden[chunk.tokens].copy_(gradient)
            else:
                rows = self.hidden[chunk.tokens].zero_()
                rows.index_copy_(0, chunk.kept, gradient.to(rows.dtype))
        if self.wanted.weight:
            hidden = chunk.take(problem.hidden[chunk.tokens])
            self.weight = gemm.add_weight_gradient(self.weight, dz, hidden)
        if self.wanted.bias:
            total = dz.sum(0)
            self.bias = total if self.bias is None else self.bias.add_(total)

    def result(self) -> HeadGradients:
        """The sums; zero where there was no chunk."""
        like = empty_like_acc(self.problem)
        if self.weight_into is not None:
            if self.weight is not None and self.weight is not self.weight_into:
                add_rounding_once(self.weight_into, self.weight)
            self.weight = None
        elif self.wanted.weight and self.weight is None:
            self.weight = like.new_zeros(self.problem.weight.shape)
        if self.wanted.bias and self.bias is None:
            self.bias = like.new_zeros(self.problem.vocab_size)
        return HeadGradients(self.hidden, self.weight, self.bias)
