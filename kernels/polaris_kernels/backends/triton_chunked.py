"""The Triton backend: vendor GEMMs around the row kernels, one chunk of tokens at a time.

A chunk of C tokens goes through:
    logits GEMM      hidden (C, D), W (V, D)  -> logits (C, V), fp32 or bf16
    row statistics   logits                   -> five floats a row
    coefficients     the caller's, on the device: three floats a row
    row gradient     logits                   -> dz (C, V) in W's dtype, in the logits' own memory
                     (all three in one kernel where that exists and the loss is `Foreseen`)
    GEMM into dX     dz, W                    -> (C, D)
    GEMM into dW     dz, hidden               -> (V, D), summed over chunks in fp32
fp32 logits become half dz in the first half of each row's bytes, so no second buffer exists.

The host never waits for the device, but for `triton_compact`, which asks once a chunk how many rows
have a coefficient that is not 0 and runs the last two GEMMs on those rows alone: worth it only when
many rows drop. Under CUDA graph capture it does not ask.

Shapes: `N tokens . C chunk . K kept rows . D hidden . V vocab`.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from ..foreseen import Foreseen, RowRule
from ..objective import TokenGradients
from ..problem import HeadProblem
from . import triton_gemm as gemm
from .base import Coefficients, HeadGradients, Statistics, Wanted
from .chunks import add_rounding_once, rows_with_gradient
from .row_kernels import CudaRows, RowKernels, TritonRows
from .triton_launch import RowState, Scaling, check_device, narrow_view, padded_width
from .triton_logits import TritonLogitsPass

# tokens of a chunk: every chunk reads and writes all of dW, C / 4 flop a byte, and about 2 D of
# them keep that below the GEMM's own time; fewer than the least only when the byte budget says so
_LEAST_ROWS = 2_048
_MOST_ROWS = 8_192
# a GEMM tile's height: chunks are a multiple of it where they are large enough to care
_TILE_ROWS = 128
# at or above this share of kept rows the back-GEMMs run on all of them
_COMPACT_BELOW = 0.75


class TritonBackend:
    """CUDA through Triton, or CPU tensors in Triton's interpreter.

    Args:
        kernels: who runs the row pass; None: Triton.
    """

    def __init__(
        self,
        name: str = "triton",
        *,
        drops_rows: bool = False,
        kernels: RowKernels | None = None,
    ) -> None:
        self.name = name
        self.drops_rows = drops_rows
        self.kernels = kernels or TritonRows()
        self.logits_pass = TritonLogitsPass(self.kernels)

    def num_chunks(self, problem: HeadProblem) -> int:
        """Chunks of `gradients`."""
        return len(self._chunks(problem))

    def statistics(self, problem: HeadProblem) -> Statistics:
        """Log-probs, entropies and lse in one read of each chunk's logits."""
        check_device(problem.hidden.device)
        state = RowState.empty(problem.num_tokens, problem.hidden)
        chunks = self._chunks(problem)
        if len(chunks) > 1:
            # no dW to read and write: half the memory costs nothing
            chunks = _even_chunks(problem.num_tokens, _rows_that_fit(problem, 2.0))
        logits = _logits_buffer(problem, chunks)
        scaling = _scaling(problem)
        for tokens in chunks:
            self._reduce(problem, tokens, logits, scaling, state)
        return state.statistics

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
        check_device(problem.hidden.device)
        state = RowState.empty(problem.num_tokens, problem.hidden)
        chunks = self._chunks(problem)
        logits = _logits_buffer(problem, chunks)
        scaling = _scaling(problem)
        sums = _GradientSums(problem, wanted, weight_into)
        kept = None
        if self.drops_rows and chunks and not _is_capturing(problem.hidden.device):
            kept = _KeptRows(problem, sums, self.kernels, capacity=logits.shape[0])
        for tokens in chunks:
            if kept is None and isinstance(coefficients, Foreseen):
                dz = self._foreseen(problem, tokens, logits, scaling, state, coefficients.rule)
                if dz is not None:
                    sums.add(tokens, dz)
                    continue
            s = self._reduce(problem, tokens, logits, scaling, state)
            rows = state[tokens]
            found = coefficients(tokens, rows.statistics)
            if kept is not None and kept.take(tokens, s, scaling, rows, found):
                continue
            dz = narrow_view(s, problem.weight.dtype)
            self.kernels.gradients(s, problem.targets[tokens], scaling[tokens], rows, found, dz)
            sums.add(tokens, dz)
        if kept is not None:
            kept.flush()
        return state.statistics, sums.result()

    def unit_gradients(
        self, problem: HeadProblem, outputs: tuple[str, ...]
    ) -> tuple[Statistics, dict[str, Tensor]]:
        """d output / d hidden with unit coefficients: what a frozen head keeps for backward."""
        check_device(problem.hidden.device)
        state = RowState.empty(problem.num_tokens, problem.hidden)
        # all outputs but the last need a buffer of their own for dz
        extra = len(outputs) > 1
        chunks = _even_chunks(problem.num_tokens, _rows_that_fit(problem, 1.5 if extra else 1.0))
        logits = _logits_buffer(problem, chunks)
        spare = None
        if extra:
            spare = logits.new_empty(logits.shape, dtype=problem.weight.dtype)
        scaling = _scaling(problem)
        wanted = Wanted(hidden=True, weight=False, bias=False)
        sums = {name: _GradientSums(problem, wanted) for name in outputs}
        ones = torch.ones_like(state.logp)
        for tokens in chunks:
            if not extra:
                (name,) = outputs
                rule_of = partial(_unit_rule, name, ones)
                dz = self._foreseen(problem, tokens, logits, scaling, state, rule_of)
                if dz is not None:
                    sums[name].add(tokens, dz)
                    continue
            s = self._reduce(problem, tokens, logits, scaling, state)
            for name in outputs:
                if name == outputs[-1] or spare is None:
                    dz = narrow_view(s, problem.weight.dtype)
                else:
                    dz = spare[: s.shape[0], : s.shape[1]]
                unit = _unit_rule(name, ones, tokens).given
                self.kernels.gradients(
                    s, problem.targets[tokens], scaling[tokens], state[tokens], unit, dz
                )
                sums[name].add(tokens, dz)
        units = {name: s.result().hidden for name, s in sums.items()}
        return state.statistics, {name: unit for name, unit in units.items() if unit is not None}

    def _reduce(
        self,
        problem: HeadProblem,
        tokens: slice,
        buffer: Tensor,
        scaling: Scaling,
        state: RowState,
    ) -> Tensor:
        """The chunk's raw logits (C, V) in the buffer, and its statistics in `state[tokens]`."""
        s = _logits_into(buffer, problem, tokens)
        self.kernels.statistics(s, problem.targets[tokens], scaling[tokens], state[tokens])
        return s

    def _foreseen(
        self,
        problem: HeadProblem,
        tokens: slice,
        buffer: Tensor,
        scaling: Scaling,
        state: RowState,
        rule_of: Callable[[slice], RowRule | None],
    ) -> Tensor | None:
        """dz (C, V) and `state[tokens]` by one kernel; None where it takes two."""
        s = buffer[: tokens.stop - tokens.start, : problem.vocab_size]
        dz = narrow_view(s, problem.weight.dtype)
        kernels = self.kernels
        if not isinstance(kernels, CudaRows) or not kernels.takes_rule(s, dz):
            return None
        rule = rule_of(tokens)  # costs a few launches
        if rule is None:
            return None
        gemm.logits_into(problem.hidden[tokens], problem.weight, s)
        targets = problem.targets[tokens]
        kernels.both(s, targets, scaling[tokens], state[tokens], rule, dz)
        return dz

    def _chunks(self, problem: HeadProblem) -> list[slice]:
        buffers = 1.5 if self.drops_rows else 1.0
        return _even_chunks(problem.num_tokens, _rows_that_fit(problem, buffers))


class _GradientSums:
    """dX written chunk by chunk, dW and db summed over chunks in the accumulation dtype."""

    def __init__(
        self, problem: HeadProblem, wanted: Wanted, weight_into: Tensor | None = None
    ) -> None:
        self.problem = problem
        self.weight_into = weight_into
        # `bias` starts at zero; `weight` is written by its first GEMM, or holds a sum already
        self._is_first = True
        acc = problem.acc_dtype
        self.hidden: Tensor | None = None
        self.weight: Tensor | None = None
        self.bias: Tensor | None = None
        if wanted.hidden:
            self.hidden = problem.hidden.new_empty(
                problem.hidden.shape, dtype=problem.hidden_grad_dtype
            )
        if wanted.weight and weight_into is not None and weight_into.dtype == acc:
            self.weight, self._is_first = weight_into, False
        elif wanted.weight:
            self.weight = problem.weight.new_empty(problem.weight.shape, dtype=acc)
        if wanted.bias:
            self.bias = problem.weight.new_zeros(problem.vocab_size, dtype=acc)

    def add(self, tokens: slice, dz: Tensor) -> None:
        """Take in d loss / d raw logits (C, V) of some tokens."""
        if self.hidden is not None:
            gemm.hidden_gradient_into(dz, self.problem.weight, self.hidden[tokens])
        self._add_to_weight(self.problem.hidden[tokens], dz)

    def add_rows(self, index: Tensor, dz: Tensor) -> None:
        """The same of the tokens listed in `index` (K,); the others were `drop`ped."""
        if self.hidden is not None:
            made = self.hidden.new_empty(index.shape[0], self.hidden.shape[1])
            gemm.hidden_gradient_into(dz, self.problem.weight, made)
            self.hidden.index_copy_(0, index, made)
        self._add_to_weight(self.problem.hidden.index_select(0, index), dz)

    def drop(self, tokens: slice) -> None:
        """These tokens have no gradient, but for those that `add_rows` brings later."""
        if self.hidden is not None:
            self.hidden[tokens].zero_()

    def result(self) -> HeadGradients:
        """The sums; zero where nothing came in."""
        weight = self.weight
        if weight is not None and self.weight_into is not None:
            if weight is not self.weight_into and not self._is_first:
                add_rounding_once(self.weight_into, weight)
            weight = None
        elif weight is not None and self._is_first:
            weight.zero_()
        return HeadGradients(self.hidden, weight, self.bias)

    def _add_to_weight(self, hidden: Tensor, dz: Tensor) -> None:
        if self.weight is not None:
            gemm.add_weight_gradient(dz, hidden, self.weight, first=self._is_first)
        if self.bias is not None:
            self.bias.add_(dz.sum(0, dtype=self.bias.dtype))
        self._is_first = False


class _KeptRows:
    """Second compaction: rows with a gradient, collected over chunks for one pair of GEMMs."""

    def __init__(
        self, problem: HeadProblem, sums: _GradientSums, kernels: RowKernels, *, capacity: int
    ) -> None:
        self.problem = problem
        self.sums = sums
        self.kernels = kernels
        self.dz = problem.weight.new_empty(capacity, padded_width(problem.vocab_size))
        self.index: list[Tensor] = []
        self.num_rows = 0

    def take(
        self, tokens: slice, s: Tensor, scaling: Scaling, rows: RowState, found: TokenGradients
    ) -> bool:
        """True when the chunk's gradient rows were collected; False: it has too many of them."""
        # the one place that waits for the device
        index = rows_with_gradient(found)
        if index is None or index.numel() >= _COMPACT_BELOW * s.shape[0]:
            return False
        self.sums.drop(tokens)
        if self.num_rows + index.numel() > self.dz.shape[0]:
            self.flush()
        end = self.num_rows + index.numel()
        dz = self.dz[self.num_rows : end, : self.problem.vocab_size]
        targets = self.problem.targets[tokens]
        self.kernels.gradients(s, targets, scaling[tokens], rows, found, dz, index)
        self.index.append(index + tokens.start)
        self.num_rows = end
        return True

    def flush(self) -> None:
        """Run the back-GEMMs on what was collected."""
        if self.num_rows:
            dz = self.dz[: self.num_rows, : self.problem.vocab_size]
            self.sums.add_rows(torch.cat(self.index), dz)
        self.index, self.num_rows = [], 0


def _unit_rule(name: str, ones: Tensor, tokens: slice) -> RowRule:
    return RowRule(TokenGradients(**({"logp": None} | {name: ones[tokens]})))


def _logits_into(buffer: Tensor, problem: HeadProblem, tokens: slice) -> Tensor:
    s = buffer[: tokens.stop - tokens.start, : problem.vocab_size]
    gemm.logits_into(problem.hidden[tokens], problem.weight, s)
    return s


def _scaling(problem: HeadProblem) -> Scaling:
    return Scaling.make(
        problem.temperature,
        logit_scale=problem.logit_scale,
        softcap=problem.softcap,
        bias=problem.bias,
        # bf16 logits come out of their GEMM rounded
        rounds=problem.rounds_logits and _logits_dtype(problem) != torch.bfloat16,
    )


def _logits_dtype(problem: HeadProblem) -> torch.dtype:
    """bf16 where the GEMM's own output has to be rounded to bf16; else the accumulation dtype."""
    if problem.rounds_logits and problem.bias is None and problem.weight.dtype == torch.bfloat16:
        return torch.bfloat16
    return problem.acc_dtype


def _logits_buffer(problem: HeadProblem, chunks: list[slice]) -> Tensor:
    rows = max((t.stop - t.start for t in chunks), default=0)
    shape = (rows, padded_width(problem.vocab_size))
    return problem.hidden.new_empty(shape, dtype=_logits_dtype(problem))


def _rows_that_fit(problem: HeadProblem, buffers: float) -> int:
    """Tokens of a chunk: the byte budget over a row, about 2 D at most."""
    row_bytes = int(padded_width(problem.vocab_size) * _logits_dtype(problem).itemsize * buffers)
    rows = min(
        problem.chunk_bytes // max(row_bytes, 1),
        min(_MOST_ROWS, max(_LEAST_ROWS, 2 * problem.hidden.shape[1])),
    )
    return max(1, _tile_multiple(rows, up=False))


def _even_chunks(total: int, largest: int) -> list[slice]:
    if total == 0:
        return []
    count = -(-total // largest)
    size = min(largest, _tile_multiple(-(-total // count), up=True))
    return [slice(i, min(i + size, total)) for i in range(0, total, size)]


def _tile_multiple(rows: int, *, up: bool) -> int:
    if rows < 2 * _TILE_ROWS:
        return rows
    return (rows + (_TILE_ROWS - 1 if up else 0)) // _TILE_ROWS * _TILE_ROWS


def _is_capturing(device: torch.device) -> bool:
    if device.type != "cuda":
        return False
    # of the tensors' device, which need not be the current one
    with torch.cuda.device(device):
        return torch.cuda.is_current_stream_capturing()
