"""The native CPU backend: the fastest GEMMs of this CPU around the compiled row pass of csrc/cpu.

A chunk of C tokens goes through: logits GEMM, a vocabulary tile at a time, each reduced while it is
in the cache -> coefficients from the caller -> one pass that turns the logits into their gradient,
in place -> GEMM into dX -> GEMM into dW. Rows whose coefficients are all 0 are dropped before the
back-GEMMs, and what is left of several chunks is multiplied at once. Narrow heads have a form of
their own: `native_tiles`.

Shapes: `N tokens . C chunk . D hidden . V vocab . K rows kept`.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from ..objective import TokenGradients
from ..problem import HeadProblem
from .base import Coefficients, HeadGradients, Statistics, Wanted
from .chunks import empty_like_acc, even_slices, finish, rows_with_gradient
from .native_gemm import GemmPlan, Gemms, WeightGradient
from .native_library import NativeLibrary
from .native_logits import NativeLogitsPass
from .native_tiles import gradients_by_tiles, rows_of_statistics, takes_tiles
from .row_pass import RowCoefficients, RowStatistics, row_coefficients, shifted_targets
from .workspace import borrowed

# columns of logits that are made and reduced together: a multiple of the C code's block
_TILE_COLUMNS = 2048
# below this share of non-zero rows the others are dropped before the back-GEMMs
_PACK_BELOW = 0.75


class NativeBackend:
    """CPU only; float32, bfloat16, float16 and float64."""

    name = "native"

    def __init__(self) -> None:
        self.lib = NativeLibrary()
        self.logits_pass = NativeLogitsPass(self.lib)

    def num_chunks(self, problem: HeadProblem) -> int:
        """Chunks of `gradients` when no row is dropped."""
        gemms = self._gemms(problem)
        if takes_tiles(gemms):
            return 1
        return len(even_slices(problem.num_tokens, _rows_that_fit(gemms)))

    def statistics(self, problem: HeadProblem) -> Statistics:
        """Log-probs, entropies and lse; only tiles of the logits exist."""
        with _no_autocast():
            return finish(self._statistics(self._gemms(problem)))

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
        N, V = problem.num_tokens, problem.vocab_size
        gemms = self._gemms(problem)
        if takes_tiles(gemms):
            with _no_autocast():
                return self._gradients_by_tiles(gemms, coefficients, wanted, weight_into)
        plan = gemms.plan
        rows = RowStatistics.empty(N, empty_like_acc(problem))
        sums = _Sums(gemms, wanted, weight_into)
        size = max((s.stop - s.start for s in even_slices(N, _rows_that_fit(gemms))), default=0)
        start = 0
        with _no_autocast(), _buffer(size, V, plan.logits) as buffer:
            dz = _as_gradient(buffer, plan)
            pending: list[Tensor] = []
            held = 0
            while start < N:
                tokens = slice(start, min(start + size - held, N))
                start = tokens.stop
                z = buffer[held : held + tokens.stop - tokens.start]
                self._reduce(gemms, tokens, z, rows, keep=True)
                chunk = shifted_targets(rows[tokens])
                statistics = finish(chunk)
                given = coefficients(tokens, statistics)
                kept = _non_zero(given, tokens)
                factors = _factors(problem, tokens, chunk, statistics.entropy, given)
                out = dz[held : held + z.shape[0]]
                self.lib.gradient(problem, z, tokens, chunk.maximum, factors, out=out, rows=kept)
                last = start >= N
                if kept is None and not held:
                    sums.add(out, tokens, is_last=last)
                    continue
                if kept is None:
                    pending.append(torch.arange(tokens.start, tokens.stop, device="cpu"))
                else:
                    self.lib.pack_rows(out, kept)
                    pending.append(kept + tokens.start)
                held += pending[-1].numel()
                # the next chunk needs half of the buffer at least
                if held and (last or 2 * held > size):
                    sums.add(dz[:held], torch.cat(pending), is_last=last)
                    pending, held = [], 0
        return finish(shifted_targets(rows)), sums.result()

    def unit_gradients(
        self, problem: HeadProblem, outputs: tuple[str, ...]
    ) -> tuple[Statistics, dict[str, Tensor]]:
        """d output / d hidden with unit coefficients: what a frozen head keeps for backward."""
        N, V = problem.num_tokens, problem.vocab_size
        gemms = self._gemms(problem)
        plan = gemms.plan
        rows = RowStatistics.empty(N, empty_like_acc(problem))
        made = {name: _empty_hidden_gradient(problem) for name in outputs}
        buffers = min(len(outputs), 2)
        slices = even_slices(N, max(1, _rows_that_fit(gemms) // buffers))
        with _no_autocast():
            for tokens in slices:
                C = tokens.stop - tokens.start
                with _buffer(buffers * C, V, plan.logits) as buffer:
                    z = buffer[:C]
                    self._reduce(gemms, tokens, z, rows, keep=True)
                    chunk = shifted_targets(rows[tokens])
                    statistics = finish(chunk)
                    ones = torch.ones_like(statistics.logp)
                    for name in outputs:
                        # the last one may overwrite the logits
                        memory = z if name == outputs[-1] else buffer[C:]
                        unit = TokenGradients(**({"logp": None} | {name: ones}))
                        factors = _factors(problem, tokens, chunk, statistics.entropy, unit)
                        dz = _as_gradient(memory, plan)
                        self.lib.gradient(problem, z, tokens, chunk.maximum, factors, out=dz)
                        gemms.hidden_gradient_into(dz, made[name][tokens])
        return finish(shifted_targets(rows)), made

    def _gemms(self, problem: HeadProblem) -> Gemms:
        return Gemms(self.lib, problem)

    def _gradients_by_tiles(
        self, gemms: Gemms, coefficients: Coefficients, wanted: Wanted, weight_into: Tensor | None
    ) -> tuple[Statistics, HeadGradients]:
        everything = slice(0, gemms.problem.num_tokens)
        rows = self._statistics(gemms)
        found = finish(rows)
        given = coefficients(everything, found)
        factors = _factors(gemms.problem, everything, rows, found.entropy, given)
        kept = _non_zero(given, everything)
        return found, gradients_by_tiles(gemms, rows.maximum, factors, kept, wanted, weight_into)

    def _statistics(self, gemms: Gemms) -> RowStatistics:
        """All tokens, (N,) each, with shifted targets."""
        problem, dtype = gemms.problem, gemms.plan.logits
        rows = RowStatistics.empty(problem.num_tokens, empty_like_acc(problem))
        width = min(problem.vocab_size, _TILE_COLUMNS)
        for tokens in even_slices(problem.num_tokens, self._statistics_rows(gemms, width)):
            with _buffer(tokens.stop - tokens.start, width, dtype) as z:
                self._reduce(gemms, tokens, z, rows, keep=False)
        return shifted_targets(rows)

    def _statistics_rows(self, gemms: Gemms, width: int) -> int:
        problem = gemms.problem
        if takes_tiles(gemms):
            return rows_of_statistics(gemms, width)
        fit = max(1, problem.chunk_bytes // (max(width, 1) * gemms.plan.logits.itemsize))
        # the chunks of `gradients` where they fit, so that both give the same bits
        return min(fit, _rows_that_fit(gemms)) if self.num_chunks(problem) == 1 else fit

    def _reduce(
        self, gemms: Gemms, tokens: slice, z: Tensor, rows: RowStatistics, *, keep: bool
    ) -> None:
        """Raw logits of the tokens, reduced into `rows` (targets unshifted); z keeps them all
        (C, V), or the last tile only."""
        problem, V = gemms.problem, gemms.problem.vocab_size
        operand = gemms.logits_operand(tokens)
        flat = z.view(-1) if not keep else z
        for first in range(0, V, _TILE_COLUMNS):
            columns = slice(first, min(first + _TILE_COLUMNS, V))
            width = columns.stop - first
            tile = z[:, columns] if keep else flat[: z.shape[0] * width].view(-1, width)
            gemms.logits_into(operand, columns, tile)
            self.lib.statistics(problem, tile, tokens, columns, rows[tokens], accumulate=first > 0)


class _Sums:
    """dX written chunk by chunk; dW and db summed over chunks."""

    def __init__(self, gemms: Gemms, wanted: Wanted, weight_into: Tensor | None) -> None:
        problem = gemms.problem
        self.gemms = gemms
        self.problem = problem
        self.hidden = _empty_hidden_gradient(problem).zero_() if wanted.hidden else None
        self.weight = WeightGradient(gemms, weight_into) if wanted.weight else None
        self.bias = empty_like_acc(problem).new_zeros(problem.vocab_size) if wanted.bias else None
        self._calls = 0

    def add(self, dz: Tensor, tokens: slice | Tensor, *, is_last: bool) -> None:
        """Take in d loss / d raw logits (K, V) of some tokens, a slice or ascending positions."""
        problem = self.problem
        if self.hidden is not None:
            if isinstance(tokens, slice):
                self.gemms.hidden_gradient_into(dz, self.hidden[tokens])
            else:
                part = self.hidden.new_empty(tokens.numel(), self.hidden.shape[1])
                self.gemms.hidden_gradient_into(dz, part)
                self.hidden.index_copy_(0, tokens, part)
        if self.weight is not None:
            # a slice gives a view, positions a copy
            self.weight.add(dz, problem.hidden[tokens], alone=is_last and self._calls == 0)
        if self.bias is not None:
            self.bias.add_(dz.sum(0, dtype=self.bias.dtype))
        self._calls += 1

    def result(self) -> HeadGradients:
        """The sums; zero where nothing was added."""
        weight = None if self.weight is None else self.weight.result()
        return HeadGradients(self.hidden, weight, self.bias)


def _rows_that_fit(gemms: Gemms) -> int:
    row_bytes = gemms.problem.vocab_size * gemms.plan.logits.itemsize
    return max(1, gemms.problem.chunk_bytes // max(row_bytes, 1))


def _as_gradient(z: Tensor, plan: GemmPlan) -> Tensor:
    """(C, V) of the gradient's dtype in the first bytes of each row of z."""
    return z if plan.gradient == plan.logits else z.view(plan.gradient)[:, : z.shape[1]]


def _factors(
    problem: HeadProblem,
    tokens: slice,
    rows: RowStatistics,
    entropy: Tensor,
    given: TokenGradients,
) -> RowCoefficients:
    factor = problem.logit_scale / problem.temperature_of(tokens)
    return row_coefficients(given, rows, entropy, factor)


def _non_zero(given: TokenGradients, tokens: slice) -> Tensor | None:
    """(K,) rows with a non-zero coefficient, or None when nearly all have one."""
    total = tokens.stop - tokens.start
    index = rows_with_gradient(given)
    if index is None:
        return torch.zeros(0, dtype=torch.int64, device="cpu")
    return index if index.numel() < _PACK_BELOW * total else None


def _empty_hidden_gradient(problem: HeadProblem) -> Tensor:
    return problem.hidden.new_empty(problem.hidden.shape, dtype=problem.hidden_grad_dtype)


@contextmanager
def _buffer(num_rows: int, width: int, dtype: torch.dtype) -> Iterator[Tensor]:
    with borrowed(((num_rows, width),), torch.empty(0, dtype=dtype, device="cpu")) as (z,):
        yield z


def _no_autocast() -> torch.autocast:
    """Autocast would narrow the fp32 GEMMs in here."""
    return torch.autocast("cpu", enabled=False)
