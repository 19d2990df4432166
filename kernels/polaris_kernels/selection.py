"""Losses that treat a few tokens of a batch in their own way: by entropy, or by covariance.

- Top entropy ("Beyond the 80/20 Rule", arXiv 2506.01939): only tokens whose entropy reaches the
  quantile keep their policy loss and entropy bonus.
- Covariance ("The Entropy Mechanism", arXiv 2505.22617): a token's part in the covariance of
  log-prob and advantage, (l - mean l)(A - mean A), predicts how much it lowers the entropy.
  Clip-Cov takes some tokens of a band out of the loss, KL-Cov holds the largest to the old policy.

What all of them share:

- Quantiles, means and ranks are those of one call: its tokens with loss, each counted once. A
  trainer with many micro-batches that wants one entropy quantile for all of them takes it from the
  entropies of the pass that made `old_logps`, and hands it over as `LossRows.entropy_threshold`.
  That also saves the statistics pass that a quantile of this forward's entropies needs.
- Human rows are neither counted nor chosen: entropy and covariance speak of what the policy
  sampled, and text from elsewhere, rare under the policy and well rewarded, would fill every rank.
- The choice is a function of the values alone, the same bits on every run, and no size, count or
  threshold is read by the host. Clip-Cov's paper draws its tokens at random from the band. Here the
  band is sorted by covariance and cut into as many equal parts as there are tokens to draw, and the
  middle of each part is taken: a stratified sample with the uniform draw's spread over the band. It
  has no seed to carry through checkpoints and ranks, and does not depend on the order of rows.

Shapes: `K tokens`.
"""

import torch
from torch import Tensor

from .rows import TokenView


def high_entropy(entropy: Tensor, view: TokenView, share: float) -> Tensor:
    """(K,) bool: tokens at or above the (1 - share) quantile of the entropies, and human tokens.

    The threshold is the next entropy that occurs at or above the quantile, so the highest one is
    always kept. `view.entropy_threshold`, when there, is used in its place.
    """
    sampled = _sampled(view)
    threshold = view.entropy_threshold
    if threshold is None:
        if not entropy.numel():
            return torch.ones_like(entropy, dtype=torch.bool)
        ordered = entropy.masked_fill(~sampled, torch.inf).sort().values
        last = sampled.sum() - 1
        # less a little: (1 - share) * last may be a rounding error above a whole number
        rank = (last.double() * (1.0 - share) - 1e-6).ceil().long()
        threshold = ordered.gather(0, rank.clamp(min=0).unsqueeze(0))
    return (entropy >= threshold) | ~sampled


def covariance(logps: Tensor, view: TokenView) -> Tensor:
    """(K,) (l - mean l)(A - mean A), the means over sampled tokens."""
    sampled = _sampled(view)
    return _centred(logps, sampled) * _centred(view.advantages, sampled)


def spread_over_band(
    values: Tensor, view: TokenView, *, share: float, low: float, high: float, barred: Tensor
) -> Tensor:
    """(K,) bool: about `share` of the sampled tokens, evenly spread over the band by rank.

    Args:
        values: (K,) what to rank by.
        share: of the sampled tokens (not of the band's); at least one, as far as the band has any.
        low, high: ends of the band, both outside it.
        barred: (K,) bool, tokens that are never chosen.
    """
    eligible = _sampled(view) & ~barred & (values > low) & (values < high)
    order = values.masked_fill(~eligible, torch.inf).argsort(stable=True)
    found = eligible.sum()
    wanted = torch.minimum(_count(view, share), found)
    rank = torch.arange(values.shape[0], device=values.device)

    def taken_below(ranks: Tensor) -> Tensor:
        # how many of the ranks floor((2 j + 1) found / (2 wanted)), j = 0 .. wanted - 1, are below
        behind = found - 2 * wanted * ranks
        return -torch.div(behind, (2 * found).clamp(min=1), rounding_mode="floor")

    chosen = (taken_below(rank + 1) > taken_below(rank)) & (rank < found)
    return torch.empty_like(chosen).index_copy_(0, order, chosen)


def largest(values: Tensor, view: TokenView, *, share: float) -> Tensor:
    """(K,) bool: the `share` of the sampled tokens with the largest values, at least one."""
    order = values.masked_fill(~_sampled(view), -torch.inf).argsort(stable=True, descending=True)
    chosen = torch.arange(values.shape[0], device=values.device) < _count(view, share)
    return torch.empty_like(chosen).index_copy_(0, order, chosen)


def _count(view: TokenView, share: float) -> Tensor:
    """() int64: `share` of the sampled tokens, at least one where there are any."""
    total = _sampled(view).sum()
    return torch.minimum((total.double() * share).floor().long().clamp(min=1), total)


def _sampled(view: TokenView) -> Tensor:
    """(K,) bool: tokens with loss that the policy has sampled."""
    sampled = torch.ones_like(view.row, dtype=torch.bool) if view.kept is None else view.kept > 0
    return sampled if view.is_human is None else sampled & ~view.is_human


def _centred(values: Tensor, counted: Tensor) -> Tensor:
    total = torch.where(counted, values, 0.0).sum()
    return values - total / counted.sum().clamp(min=1)
