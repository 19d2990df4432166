"""Several judgements of one story become one outcome."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from ..types import Failed, Outcome, Rejected, Scored
from .faults import FaultKind, JudgeFault, JudgeStopped
from .flow.panel import Tier


def outcome_of(fault: JudgeFault, tier: Tier = Tier.MAIN) -> Failed | Rejected:
    """How a judgement by the judge of this tier ended that could not be had."""
    if fault.kind is FaultKind.REFUSAL:
        return Rejected(fault.detail)
    # Without the fallback alone a run goes on: only the groups that it serves are dropped.
    stopped = isinstance(fault, JudgeStopped)
    final = stopped and (tier is Tier.MAIN or fault.kind is FaultKind.BUDGET)
    return Failed(fault.detail, fault.kind.value, final=final)


def combine_samples(outcomes: Sequence[Outcome], needed: int | None = None) -> Outcome:
    """The mean of several judgements of one story, if enough of them arrived.

    Args:
        needed: how many are enough; None: more than half.
    """
    if len(outcomes) == 1:
        return outcomes[0]
    scored = [outcome for outcome in outcomes if isinstance(outcome, Scored)]
    if len(scored) >= (len(outcomes) // 2 + 1 if needed is None else needed):
        return _mean(scored, len(outcomes))
    rejected = [outcome for outcome in outcomes if isinstance(outcome, Rejected)]
    failed = [outcome for outcome in outcomes if isinstance(outcome, Failed)]
    if len(rejected) > len(failed):
        return rejected[0]
    kind = Counter(one.kind for one in failed).most_common(1)[0][0]
    reason = next(one.reason for one in failed if one.kind == kind)
    text = f"{len(scored)} of {len(outcomes)} judgements arrived; {reason}"
    return Failed(text, kind, final=any(one.final for one in failed))


def _mean(scored: Sequence[Scored], wanted: int) -> Scored:
    flags = sorted({flag for one in scored for flag in one.flags})
    if len(scored) < wanted:
        flags.append(f"samples:{len(scored)}/{wanted}")
    names = [n for n in scored[0].dimensions if all(n in one.dimensions for one in scored)]
    return Scored(
        quality=sum(one.quality for one in scored) / len(scored),
        dimensions={n: sum(one.dimensions[n] for one in scored) / len(scored) for n in names},
        judge=scored[0].judge,
        flags=tuple(flags),
    )
