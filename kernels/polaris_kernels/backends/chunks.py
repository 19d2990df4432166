"""How the torch backend cuts a problem into pieces, and the statistics of one piece.

Shapes: `N tokens . C chunk . V vocab . W columns of a vocabulary tile`.
"""

import torch
from torch import Tensor

from ..objective import TokenGradients
from ..problem import HeadProblem
from .base import Statistics
from .gemm import logits_into
from .row_pass import RowStatistics, block_rows, reduce_block, row_blocks, scale_logits_
from .workspace import borrowed

# columns of a tile when only statistics are wanted and the logits do not fit the budget
_STREAM_COLUMNS = 4096
# elements of a gradient that are added to a narrower one at a time
_ADD_ELEMENTS = 2**21


def chunks(problem: HeadProblem, buffers: int = 1) -> list[slice]:
    """Token slices of even size whose logits (`buffers` copies) fit the byte budget."""
    return even_slices(problem.num_tokens, _rows_that_fit(problem, problem.vocab_size, buffers))


def buffer_shapes(problem: HeadProblem, tokens: slice) -> tuple[tuple[int, int], ...]:
    """Shapes of a chunk's logits and of the row pass's scratch."""
    C, V = tokens.stop - tokens.start, problem.vocab_size
    return (C, V), (block_rows(C, V, problem.hidden.device), V)


def empty_like_acc(problem: HeadProblem) -> Tensor:
    """A (0,) tensor with the accumulation dtype and the device of the problem."""
    return problem.hidden.new_empty(0, dtype=problem.acc_dtype)


def finish(rows: RowStatistics) -> Statistics:
    """Log-prob, entropy and lse from the reduced rows."""
    log_sum = rows.sum_exp.log()
    return Statistics(
        logp=rows.target - log_sum,
        entropy=log_sum - rows.sum_z_exp / rows.sum_exp,
        lse=rows.maximum + log_sum,
    )


def reduce_chunk(
    problem: HeadProblem,
    tokens: slice,
    z: Tensor,
    scratch: Tensor,
    rows: RowStatistics,
    *,
    keep: str,
) -> None:
    """Fill z (C, V) with the chunk's reduced logits and `rows[tokens]` with its statistics."""
    hidden, prescaled = _prescaled(problem, tokens)
    logits_into(hidden, problem.weight, z)
    start = tokens.start
    for block in row_blocks(z.shape[0], z.shape[1], z.device):
        at = slice(start + block.start, start + block.stop)
        scale_logits_(z[block], problem, at, slice(None), prescaled=prescaled)
        reduce_block(
            z[block],
            scratch[: block.stop - block.start],
            problem.targets[at],
            rows[at],
            keep=keep,
        )


def stream(problem: HeadProblem, rows: RowStatistics) -> None:
    """Statistics of all tokens over vocabulary tiles: W is read once for many tokens."""
    V, device = problem.vocab_size, problem.hidden.device
    tiles = even_slices(V, _STREAM_COLUMNS)
    width = max(t.stop - t.start for t in tiles)
    for tokens in even_slices(problem.num_tokens, _rows_that_fit(problem, width, 1)):
        C = tokens.stop - tokens.start
        hidden, prescaled = _prescaled(problem, tokens)
        total = rows[tokens]
        shapes = ((C, width), (block_rows(C, width, device), width))
        with borrowed(shapes, empty_like_acc(problem)) as (buffer, scratch):
            for i, tile in enumerate(tiles):
                z = buffer.view(-1)[: C * (tile.stop - tile.start)].view(C, -1)
                logits_into(hidden, problem.weight[tile], z)
                part = total if i == 0 else RowStatistics.empty(C, empty_like_acc(problem))
                _reduce_tile(problem, tokens, tile, z, scratch, part, prescaled=prescaled)
                if i:
                    _merge_(total, part)


def _reduce_tile(
    problem: HeadProblem,
    tokens: slice,
    tile: slice,
    z: Tensor,
    scratch: Tensor,
    part: RowStatistics,
    *,
    prescaled: bool,
) -> None:
    columns = problem.targets[tokens] - tile.start
    inside = (columns >= 0) & (columns < z.shape[1])
    columns = columns.clamp(0, z.shape[1] - 1)
    # -inf: "not in this tile", which `_merge_` tells from a target with a tiny probability
    part.target.fill_(-torch.inf)
    for block in row_blocks(z.shape[0], z.shape[1], z.device):
        at = slice(tokens.start + block.start, tokens.start + block.stop)
        scale_logits_(z[block], problem, at, tile, prescaled=prescaled)
        flat = scratch.view(-1)[: z[block].numel()].view_as(z[block])
        reduce_block(z[block], flat, columns[block], part[block], keep="exp", inside=inside[block])


def _merge_(total: RowStatistics, part: RowStatistics) -> None:
    """Fold a tile into the running statistics, all shifted to the larger maximum."""
    maximum = torch.maximum(total.maximum, part.maximum)
    sums: list[tuple[Tensor, Tensor]] = []
    for rows in (total, part):
        shift = rows.maximum - maximum
        scale = shift.exp()
        # z' moves by the shift: sum (z' + shift) E = sum z' E + shift sum E
        sums.append((rows.sum_exp * scale, (rows.sum_z_exp + shift * rows.sum_exp) * scale))
    target = torch.maximum(
        total.target + (total.maximum - maximum), part.target + (part.maximum - maximum)
    )
    total.maximum.copy_(maximum)
    total.sum_exp.copy_(sums[0][0] + sums[1][0])
    total.sum_z_exp.copy_(sums[0][1] + sums[1][1])
    total.target.copy_(target)


def _prescaled(problem: HeadProblem, tokens: slice) -> tuple[Tensor, bool]:
    """The chunk's hidden states, times logit_scale / temperature where the GEMM may take it."""
    hidden = problem.hidden[tokens]
    wide = problem.weight.dtype == problem.acc_dtype or hidden.device.type == "cpu"
    if not wide or problem.bias is not None or problem.rounds_logits or problem.softcap is not None:
        return hidden, False
    factor = problem.logit_scale / problem.temperature_of(tokens)
    if not isinstance(factor, Tensor) and factor == 1.0:
        return hidden, True
    return hidden.to(problem.acc_dtype) * factor, True


def _rows_that_fit(problem: HeadProblem, width: int, buffers: int) -> int:
    acc = empty_like_acc(problem).element_size()
    # a GPU's half GEMMs read the gradient in the weight's dtype: one more, narrower buffer
    narrow = problem.weight.dtype != problem.acc_dtype and problem.hidden.device.type != "cpu"
    row_bytes = width * (acc * buffers + (problem.weight.element_size() if narrow else 0))
    return max(1, problem.chunk_bytes // max(row_bytes, 1))


def add_rounding_once(into: Tensor, total: Tensor) -> None:
    """into += total, rounded once to into's narrower dtype; (V, D) both."""
    # in-place addition of a wider tensor makes whole wide copies: a block of rows at a time
    for rows in even_slices(into.shape[0], max(1, _ADD_ELEMENTS // max(into.shape[1], 1))):
        into[rows].add_(total[rows])


def rows_with_gradient(given: TokenGradients) -> Tensor | None:
    """(K,) int64 rows with a coefficient that is not 0, found by a wait for the device; None when
    there is no coefficient at all."""
    found: Tensor | None = None
    for part in (given.logp, given.entropy, given.lse):
        if part is not None:
            found = part != 0 if found is None else found | (part != 0)
    return None if found is None else found.nonzero().squeeze(1)


def even_slices(total: int, largest: int) -> list[slice]:
    """As few slices of 0..total as can be, none longer than `largest`, all about as long."""
    if total == 0:
        return []
    count = -(-total // largest)
    size = -(-total // count)
    return [slice(i, min(i + size, total)) for i in range(0, total, size)]
