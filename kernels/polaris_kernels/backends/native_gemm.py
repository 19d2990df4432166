"""The GEMMs around the compiled row pass: dtypes of a problem's buffers, and the three products.

Shapes: `C chunk . D hidden . V vocab . W columns of a vocabulary tile`.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..problem import HeadProblem
from .chunks import add_rounding_once
from .native_library import NativeLibrary
from .native_multiply import Multiplier, bf16_is_fast
from .workspace import borrowed

# elements of a piece of the weight that is cast, or of its gradient before it is rounded
PIECE_ELEMENTS = 2**21


@dataclass(frozen=True)
class GemmPlan:
    """Dtypes of one problem's logits buffer and of the gradient that replaces the logits in it."""

    logits: torch.dtype
    gradient: torch.dtype


class Gemms:
    """The products of one head problem."""

    def __init__(self, library: NativeLibrary, problem: HeadProblem) -> None:
        self.library = library
        self.problem = problem
        self.multiply = Multiplier(library)
        self.plan = self._plan()

    def _plan(self) -> GemmPlan:
        """bf16 operands where this CPU multiplies them fast, else everything in the wide dtype."""
        problem, wide = self.problem, self.problem.acc_dtype
        if problem.weight.dtype != torch.bfloat16:
            return GemmPlan(wide, wide)
        if not (self.multiply.has_kernel(torch.bfloat16) or bf16_is_fast()):
            return GemmPlan(wide, wide)
        # the GEMM's own rounding is the one asked for, unless a bias comes in between
        rounds = problem.rounds_logits and problem.bias is None
        return GemmPlan(torch.bfloat16 if rounds else wide, torch.bfloat16)

    def logits_operand(self, tokens: slice) -> Tensor:
        """Hidden states as `logits_into` wants them: cast once, not a tile at a time."""
        hidden, logits = self.problem.hidden[tokens], self.plan.logits
        is_bf16 = hidden.dtype == torch.bfloat16
        return hidden if is_bf16 and self.multiply.widens_bf16() else hidden.to(logits)

    def logits_into(self, operand: Tensor, columns: slice, out: Tensor) -> None:
        """out (C, W) = operand (C, D) @ weight[columns] (W, D).T"""
        weight = self.problem.weight[columns]
        for part in _pieces(weight, whole=weight.dtype == operand.dtype):
            cast = weight[part].to(operand.dtype)
            self.multiply.into(out[:, part], operand, cast.t())

    def hidden_gradient_into(self, dz: Tensor, out: Tensor) -> None:
        """out (C, D) = dz (C, V) @ weight (V, D), rounded once."""
        weight = self.problem.weight
        if dz.dtype == torch.bfloat16 and out.dtype == torch.bfloat16:
            # sums in fp32 and rounds once, ours as torch's
            self.multiply.into(out, dz, weight)
            return
        if dz.dtype == torch.bfloat16 and not self.multiply.has_kernel(torch.bfloat16):
            out.copy_(torch.mm(dz, weight))
            return
        total = out if out.dtype == self.problem.acc_dtype else self._wide(out)
        for part in _pieces(weight, whole=weight.dtype == dz.dtype):
            cast = weight[part].to(dz.dtype)
            self.multiply.into(total, dz[:, part], cast, add=part.start > 0)
        if total is not out:
            out.copy_(total)

    def add_hidden_gradient(self, dz: Tensor, columns: slice, total: Tensor) -> None:
        """total (C, D) += dz (C, W) @ weight[columns] (W, D); total has the accumulation dtype."""
        weight = self.problem.weight[columns]
        for part in _pieces(weight, whole=weight.dtype == dz.dtype):
            self.multiply.into(total, dz[:, part], weight[part].to(dz.dtype), add=True)

    def _wide(self, like: Tensor) -> Tensor:
        return like.new_empty(like.shape, dtype=self.problem.acc_dtype)


def weight_gradient_dtype(problem: HeadProblem) -> torch.dtype:
    """What a finished dW may be rounded to: autocast's type only where the leaf has it too."""
    kept = problem.weight_grad_dtype == problem.weight.dtype
    return problem.weight.dtype if kept else problem.acc_dtype


class WeightGradient:
    """dW over chunks: summed wide, rounded at most once.

    One chunk alone is rounded to the weight's dtype by its product, or piece by piece, and no wide
    dW exists.
    """

    def __init__(self, gemms: Gemms, into: Tensor | None) -> None:
        self._gemms = gemms
        self._into = into
        self._made: Tensor | None = None
        adds_wide = into is not None and into.dtype == gemms.problem.acc_dtype
        self._total = into if adds_wide else None

    def add(self, dz: Tensor, hidden: Tensor, *, alone: bool) -> None:
        """Add dz (C, V).T @ hidden (C, D); `alone`: there is no other chunk."""
        gemms = self._gemms
        hidden = hidden.to(dz.dtype)
        wide = dz.dtype != torch.bfloat16 or gemms.multiply.widens_bf16()
        narrow = weight_gradient_dtype(gemms.problem) != gemms.problem.acc_dtype
        if alone and self._total is None and narrow:
            self._round_pieces(dz, hidden, wide=wide)
        elif wide:
            started = self._total is not None
            if self._total is None:
                self._total = self._empty(gemms.problem.acc_dtype)
            gemms.multiply.into(self._total, dz.t(), hidden, add=started)
        else:
            self._add_rounded_parts(dz, hidden)

    def _round_pieces(self, dz: Tensor, hidden: Tensor, *, wide: bool) -> None:
        acc = self._gemms.problem.acc_dtype
        target = self._into
        if target is None:
            target = self._made = self._empty(self._gemms.problem.weight.dtype)
        if dz.dtype == target.dtype and self._gemms.multiply.has_kernel(dz.dtype):
            self._gemms.multiply.into(target, dz.t(), hidden, add=self._into is not None)
            return
        for rows, part in self._parts(dz, hidden, acc if wide else dz.dtype):
            if self._into is None:
                target[rows].copy_(part)
            else:
                target[rows].add_(part)

    def _add_rounded_parts(self, dz: Tensor, hidden: Tensor) -> None:
        if self._total is None:
            self._total = self._empty(self._gemms.problem.acc_dtype).zero_()
        for rows, part in self._parts(dz, hidden, dz.dtype):
            self._gemms.library.add_bf16(self._total[rows], part)

    def _parts(
        self, dz: Tensor, hidden: Tensor, dtype: torch.dtype
    ) -> Iterator[tuple[slice, Tensor]]:
        """Rows of dW and their product, in a buffer that the next piece takes."""
        weight = self._gemms.problem.weight
        height = min(weight.shape[0], _piece_rows(weight))
        like = weight.new_empty(0, dtype=dtype)
        with borrowed(((height, weight.shape[1]),), like) as (buffer,):
            for rows in _pieces(weight, whole=False):
                part = buffer[: rows.stop - rows.start]
                self._gemms.multiply.into(part, dz[:, rows].t(), hidden)
                yield rows, part

    def _empty(self, dtype: torch.dtype) -> Tensor:
        return self._gemms.library.empty(self._gemms.problem.weight.shape, dtype)

    def result(self) -> Tensor | None:
        """(V, D); None where the caller's tensor has taken it."""
        if self._into is not None:
            if self._total is not None and self._total is not self._into:
                add_rounding_once(self._into, self._total)
            return None
        if self._made is not None:
            return self._made
        if self._total is None:
            return self._empty(self._gemms.problem.acc_dtype).zero_()
        return self._total


def _pieces(weight: Tensor, *, whole: bool) -> Iterator[slice]:
    """Slices over the vocabulary; one where nothing has to be cast."""
    V = weight.shape[0]
    step = V if whole else _piece_rows(weight)
    return (slice(i, min(i + step, V)) for i in range(0, V, max(step, 1)))


def _piece_rows(weight: Tensor) -> int:
    return max(1, PIECE_ELEMENTS // max(weight.shape[1], 1))
