"""Numbers of a step, under TRL's names where they mean the same thing.

Means over rows are over scored policy rows; a failed row has no reward and no say.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Sequence

import torch

from polaris_kernels import mean_metrics

from .step import StepResult
from .text_stats import abs_log_ratio, is_within
from .types import FinishReason, Group, Row, RowKind, Scored


def step_metrics(result: StepResult) -> dict[str, float]:
    """Everything but judge/* and progress counters, for one line of metrics.jsonl."""
    policy = [r for r in result.rows if r.kind is RowKind.POLICY]
    metrics = {
        **reward_metrics(policy),
        **length_metrics(policy),
        **_group_metrics(result.groups),
        **_loss_metrics(result.loss_sums),
        **_sampling_metrics(result.sampling_sums, corrected="sum_is_weight" in result.loss_sums),
        **staleness_metrics(policy, result.step),
        **_hri_metrics(result),
        **_perf_metrics(result),
    }
    skipped = [u.skipped for u in result.updates if u.skipped]
    metrics["guard/skipped"] = float(len(skipped))
    norms = [u.grad_norm for u in result.updates]
    if norms:
        metrics["grad_norm"] = statistics.fmean(norms)
        metrics["learning_rate"] = result.updates[-1].learning_rate
    metrics["rows/failed"] = float(sum(not isinstance(r.outcome, Scored) for r in result.rows))
    return metrics


def reward_metrics(rows: Sequence[Row]) -> dict[str, float]:
    """Mean reward and its parts over scored rows."""
    parts = [r.reward for r in rows if r.reward is not None]
    if not parts:
        return {}
    return {
        "reward": _mean(p.total for p in parts),
        "reward/quality": _mean(p.quality for p in parts),
        "reward/length_score": _mean(p.length_score for p in parts),
        "reward/self_repetition": _mean(p.self_repetition for p in parts),
        "reward/blank_penalty": _mean(p.blank_penalty for p in parts),
        "reward/injection": _mean(p.injection for p in parts),
    }


def length_metrics(rows: Sequence[Row]) -> dict[str, float]:
    """Lengths in tokens and in words against the target; truncation."""
    if not rows:
        return {}
    tokens = [len(r.completion_ids) for r in rows]
    metrics = {
        "completions/mean_length": _mean(tokens),
        "completions/min_length": float(min(tokens)),
        "completions/max_length": float(max(tokens)),
        "completions/clipped_ratio": _mean(r.finish_reason is FinishReason.LENGTH for r in rows),
    }
    scored = [(r.reward.words, r.record.target_word_count) for r in rows if r.reward is not None]
    if scored:
        metrics |= {
            "length/abs_log_ratio": _mean(abs_log_ratio(words, target) for words, target in scored),
            "length/ratio": _mean(words / target for words, target in scored),
            "length/words": _mean(words for words, _ in scored),
            "length/within_20": _mean(is_within(words, target, 0.2) for words, target in scored),
        }
    return metrics


def _group_metrics(groups: Sequence[Group]) -> dict[str, float]:
    flat = sum(g.dropped == "zero_spread" for g in groups)
    spreads = []
    for group in groups:
        rewards = [
            r.reward.total for r in group.rows if r.kind is RowKind.POLICY and r.reward is not None
        ]
        if len(rewards) > 1:
            spreads.append(statistics.stdev(rewards))
    metrics = {
        "groups/trained": float(sum(g.dropped is None for g in groups)),
        "groups/dropped_zero_spread": float(flat),
        "groups/dropped_noise_floor": float(sum(g.dropped == "noise_floor" for g in groups)),
        "groups/dropped_too_few_scored": float(sum(g.dropped == "too_few_scored" for g in groups)),
        "frac_reward_zero_std": flat / len(groups),
    }
    if spreads:
        metrics["reward_std"] = _mean(spreads)
    return metrics


def _hri_metrics(result: StepResult) -> dict[str, float]:
    """Human minus policy mean reward, and the share of groups the human row wins."""
    metrics = {"hri/weight": result.human_weight}
    gaps, wins, own = [], [], []
    for group in result.groups:
        human = [r.reward.total for r in group.rows if r.kind is RowKind.HUMAN and r.reward]
        policy = [r.reward.total for r in group.rows if r.kind is RowKind.POLICY and r.reward]
        if human and policy:
            own.append(human[0])
            gaps.append(human[0] - statistics.fmean(policy))
            wins.append(human[0] > max(policy))
    if gaps:
        metrics |= {"hri/gap": _mean(gaps), "hri/human_wins": _mean(wins), "hri/reward": _mean(own)}
    return metrics


def _loss_metrics(sums: dict[str, torch.Tensor]) -> dict[str, float]:
    """Means from the loss's sums: the step's one transfer from the device."""
    if not sums:
        return {}
    means = mean_metrics(sums)
    # TRL's `entropy` is the policy's: human rows have their own.
    policy_tokens = (sums["num_tokens"] - sums["num_human_tokens"]).clamp(min=1)
    means["entropy"] = (sums["sum_entropy"] - sums["sum_entropy_human"]) / policy_tokens
    values = torch.stack([value.double() for value in means.values()]).tolist()
    metrics = dict(zip(means, values, strict=True))
    metrics["policy/loss"] = metrics.pop("loss/policy")
    human = {"hri/loss": "loss/human", "entropy/human": "entropy/human", "logp/human": "logp/human"}
    for name, source in human.items():
        value = metrics.pop(source)
        if float(sums["num_human_tokens"]) > 0:  # a mean over no rows is no number
            metrics[name] = value
    return metrics


def _sampling_metrics(sums: dict[str, torch.Tensor], *, corrected: bool) -> dict[str, float]:
    """How far the rollout engine's log-probs are from the trainer's (TRL's names).

    `corrected`: an importance correction weighs tokens by it, so some may meet its limits.
    """
    if not sums:
        return {}
    names = list(sums)
    values = dict(zip(names, torch.stack([sums[n].double() for n in names]).tolist(), strict=True))
    tokens = max(values["num_sampled_tokens"], 1.0)
    metrics = {
        "sampling/sampling_logp_difference/mean": values["sum_sampling_gap"] / tokens,
        "sampling/sampling_logp_difference/max": values["max_sampling_gap"],
        "sampling/mismatch_kl": values["sum_mismatch_kl"] / tokens,
    }
    if known := values["num_filtered_tokens"]:
        metrics["sampling/filter_gain"] = values["sum_filter_gain"] / known
    if corrected:
        metrics["is_weight/high_mean"] = values["num_is_high"] / tokens
        metrics["is_weight/low_mean"] = values["num_is_low"] / tokens
    return metrics


def staleness_metrics(rows: Sequence[Row], step: int) -> dict[str, float]:
    """By how many updates the weights that drew each token are older than those it trains.

    `staleness/share_N` is the share of tokens that are N updates old: a histogram over N.
    """
    tokens: Counter[int] = Counter()
    for row in rows:
        for span in row.versions:
            tokens[step - span.version] += span.end - span.start
    total = tokens.total()
    if not total:
        return {}
    shares = {f"staleness/share_{lag}": count / total for lag, count in sorted(tokens.items())}
    mean = sum(lag * count for lag, count in tokens.items()) / total
    return {"staleness/mean": mean, "staleness/max": float(max(tokens)), **shares}


def _perf_metrics(result: StepResult) -> dict[str, float]:
    clock = result.clock
    metrics = dict(clock.metrics())
    metrics["num_step_tokens"] = float(result.num_tokens)
    when = {what: at for at, kind, what in result.trace if kind == "step"}
    step_s = when["end"] - when["start"]
    metrics["perf/step_s"] = step_s
    metrics["perf/generation_s"] = result.generation_s
    if result.generation_s > 0:
        metrics["perf/rollout_tokens_per_s"] = result.num_tokens / result.generation_s
    if step_s > 0:
        metrics["perf/tokens_per_s"] = result.train_tokens / step_s
    return metrics


def _mean(values: Iterable[float]) -> float:
    return statistics.fmean(float(v) for v in values)
