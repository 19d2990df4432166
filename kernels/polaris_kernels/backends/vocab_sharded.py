"""Any backend over one shard of the vocabulary, made whole by one small collective a chunk.

Each rank reduces the logits of its own rows as if they were all there were, to log-prob l_r (where
it owns the target), entropy H_r and logsumexp lse_r. With a_r = lse_r - H_r (the mean logit) and
w_r = exp(lse_r - lse), the shard's share of the probability,
    lse = log sum_r exp(lse_r)     H = lse - sum_r w_r a_r     logp = l_o + lse_o - lse, o the owner
and the gradient of the whole softmax by the shard's logits is that of the shard's own softmax under
    g'_H = w_r g_H      g'_logp = g_logp on the owner, 0 elsewhere
    g'_lse = g'_logp + w_r (-g_logp + g_lse + g_H (lse - H - a_r))
so no kernel knows of shards. Three floats a token and rank are gathered, not reduced: every rank
adds them in the same order and gets the same bits, and so the same coefficients and losses.

Shapes: `N tokens . C tokens of a slice . D hidden . V_r rows of this rank's shard . R ranks`.
"""

from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
from torch import Tensor

from ..objective import TokenGradients
from ..problem import HeadProblem
from ..vocab_parallel import VocabParallel
from .base import Coefficients, HeadBackend, HeadGradients, Statistics, Wanted
from .chunks import add_rounding_once, even_slices

_ALL_BUT_BANNED = -1e30  # its exponential is 0 beside any other, and products with it are finite


class ShardedBackend:
    """`inner` on this rank's shard; problems carry the shard's weight and global targets."""

    def __init__(self, inner: HeadBackend, vocab: VocabParallel) -> None:
        self.inner = inner
        self.vocab = vocab
        self.name = f"{inner.name}, vocabulary over {len(vocab.sizes)} ranks"

    def num_chunks(self, problem: HeadProblem) -> int:
        """The most pieces that any rank's shard is cut into: all ranks cut alike."""
        widest = problem.weight[:1].expand(max(self.vocab.sizes), -1)
        return self.inner.num_chunks(replace(problem, weight=widest))

    def statistics(self, problem: HeadProblem) -> Statistics:
        """Log-probs, entropies and lse of the whole vocabulary, the same on every rank."""
        local, owned, elsewhere = self._localize(problem)
        return self._merge(self.inner.statistics(local), owned, elsewhere).whole

    def gradients(
        self,
        problem: HeadProblem,
        coefficients: Coefficients,
        wanted: Wanted,
        *,
        entropy_gradient: bool,
        weight_into: Tensor | None = None,
    ) -> tuple[Statistics, HeadGradients]:
        """As `HeadBackend.gradients`; hidden is summed over ranks, weight and bias are local."""
        local, owned, elsewhere = self._localize(problem)
        sums = _Sums(problem, wanted, weight_into, self.vocab)
        found: list[Statistics] = []
        for tokens in self._slices(problem):
            # a slice is one chunk of the inner backend on every rank: as many collectives on each
            def of_shard(
                part: slice, shard: Statistics, start: int = tokens.start
            ) -> TokenGradients:
                place = slice(start + part.start, start + part.stop)
                merged = self._merge(shard, owned[place], elsewhere[place])
                found.append(merged.whole)
                return merged.to_shard(coefficients(place, merged.whole))

            _, made = self.inner.gradients(
                _cut(local, tokens),
                of_shard,
                wanted,
                entropy_gradient=entropy_gradient,
                weight_into=sums.weight,
            )
            sums.add(tokens, made)
        return _joined(found, problem), sums.result()

    def unit_gradients(
        self, problem: HeadProblem, outputs: tuple[str, ...]
    ) -> tuple[Statistics, dict[str, Tensor]]:
        """As `HeadBackend.unit_gradients`, at the price of one logits GEMM an output."""
        units: dict[str, Tensor] = {}
        for name in outputs:

            def ones(_: slice, s: Statistics, name: str = name) -> TokenGradients:
                return TokenGradients(**({"logp": None} | {name: torch.ones_like(s.logp)}))

            statistics, made = self.gradients(
                problem, ones, Wanted(True, False, False), entropy_gradient=name == "entropy"
            )
            assert made.hidden is not None
            units[name] = made.hidden
        return statistics, units

    def _slices(self, problem: HeadProblem) -> list[slice]:
        count = max(1, self.num_chunks(problem))
        return even_slices(problem.num_tokens, -(-problem.num_tokens // count))

    def _localize(self, problem: HeadProblem) -> tuple[HeadProblem, Tensor, Tensor]:
        """The shard's problem, (N,) bool: whose target is among its rows, and (N,) the logit of a
        target that is not: -inf, and nan where no shard has it."""
        column = problem.targets - self.vocab.first_row
        size = problem.vocab_size
        owned = (column >= 0) & (column < size)
        local = replace(
            problem,
            targets=column.clamp(0, size - 1),
            bias=None if problem.bias is None else _never_all_banned(problem.bias),
            hidden_grad_dtype=problem.acc_dtype,
        )
        known = (problem.targets >= 0) & (problem.targets < self.vocab.total)
        nan = torch.full_like(column, torch.nan, dtype=problem.acc_dtype)
        return local, owned, nan.masked_fill_(known, -torch.inf)

    def _merge(self, shard: Statistics, owned: Tensor, elsewhere: Tensor) -> "_Merged":
        """Statistics (C,) of the whole vocabulary from those of every shard."""
        ranks, C = len(self.vocab.sizes), owned.shape[0]
        if not C:
            return _Merged(shard, shard.lse, shard.lse, owned)
        mean = shard.lse - shard.entropy
        # of the ranks that do not own the target, nothing: log 0
        logit = torch.where(owned, shard.logp + shard.lse, elsewhere)
        mine = torch.stack((shard.lse, mean, logit))
        gathered = mine.new_empty(ranks * 3, C)
        dist.all_gather_into_tensor(gathered, mine, group=self.vocab.group)
        every = gathered.view(ranks, 3, C)
        lse = every[:, 0].logsumexp(0)
        share = (every[:, 0] - lse).exp()
        whole = Statistics(
            logp=every[:, 2].amax(0) - lse,
            entropy=lse - (share * every[:, 1]).sum(0),
            lse=lse,
        )
        return _Merged(whole, share[self.vocab.rank], mean, owned)


@dataclass(frozen=True)
class _Merged:
    """A slice's statistics, and what turns its coefficients into the shard's; (C,) each."""

    whole: Statistics
    share: Tensor
    """w_r"""
    mean: Tensor
    """a_r"""
    owned: Tensor

    def to_shard(self, given: TokenGradients) -> TokenGradients:
        """Coefficients by the shard's own log-prob, entropy and lse."""
        through = torch.zeros_like(self.share)
        logp = None
        if given.logp is not None:
            logp = torch.where(self.owned, given.logp, 0.0)
            through = through - given.logp
        if given.lse is not None:
            through = through + given.lse
        entropy = None
        if given.entropy is not None:
            entropy = self.share * given.entropy
            through = through + given.entropy * (self.whole.lse - self.whole.entropy - self.mean)
        lse = self.share * through
        return TokenGradients(logp=logp, entropy=entropy, lse=lse if logp is None else lse + logp)


class _Sums:
    """dX of all slices, each summed over ranks while the next is computed; dW, db local sums."""

    def __init__(
        self,
        problem: HeadProblem,
        wanted: Wanted,
        weight_into: Tensor | None,
        vocab: VocabParallel,
    ) -> None:
        self.problem = problem
        self.vocab = vocab
        self.weight_into = weight_into
        acc, like = problem.acc_dtype, problem.weight
        self.weight: Tensor | None = None
        if wanted.weight:
            adds_wide = weight_into is not None and weight_into.dtype == acc
            self.weight = weight_into if adds_wide else like.new_zeros(like.shape, dtype=acc)
        self.bias = like.new_zeros(problem.vocab_size, dtype=acc) if wanted.bias else None
        self.hidden: Tensor | None = None
        if wanted.hidden:
            shape = problem.hidden.shape
            self.hidden = like.new_empty(shape, dtype=problem.hidden_grad_dtype)
        self._pending: tuple[slice, Tensor, dist.Work | None] | None = None

    def add(self, tokens: slice, made: HeadGradients) -> None:
        """Take in one slice's gradients (the weight's is in its buffer already)."""
        if self.bias is not None:
            assert made.bias is not None
            self.bias.add_(made.bias)
        if self.hidden is not None:
            assert made.hidden is not None
            self._store()
            work = dist.all_reduce(made.hidden, group=self.vocab.group, async_op=True)
            self._pending = (tokens, made.hidden, work)

    def result(self) -> HeadGradients:
        """The sums; zero where there was no slice."""
        self._store()
        weight = self.weight
        if weight is not None and self.weight_into is not None:
            if weight is not self.weight_into:
                add_rounding_once(self.weight_into, weight)
            weight = None
        return HeadGradients(self.hidden, weight, self.bias)

    def _store(self) -> None:
        if self._pending is None:
            return
        tokens, total, work = self._pending
        if work is not None:
            work.wait()
        assert self.hidden is not None
        self.hidden[tokens].copy_(total)
        self._pending = None


def _never_all_banned(bias: Tensor) -> Tensor:
    """A bias that bans every id of the shard made finite: a softmax of nothing is nan.

    Its share of the whole stays exactly 0.
    """
    return torch.where(bias.isneginf().all(), torch.full_like(bias, _ALL_BUT_BANNED), bias)


def _cut(problem: HeadProblem, tokens: slice) -> HeadProblem:
    """The same problem for some of its tokens."""
    temperature = problem.temperature
    if isinstance(temperature, Tensor):
        temperature = temperature[tokens]
    return replace(
        problem,
        hidden=problem.hidden[tokens],
        targets=problem.targets[tokens],
        temperature=temperature,
    )


def _joined(parts: list[Statistics], problem: HeadProblem) -> Statistics:
    if not parts:
        return Statistics(*problem.hidden.new_empty(3, 0, dtype=problem.acc_dtype).unbind())
    names = ("logp", "entropy", "lse")
    return Statistics(*(torch.cat([getattr(part, name) for part in parts]) for name in names))
