"""Which charts the page has: metrics, words and colours, as data."""

from __future__ import annotations

import math
from dataclasses import dataclass

# Made by `charts` from several metrics:
REST = "rest of perf/step_s"  # what no other phase of the chart accounts for
INVALID = "answers that break the schema or contradict themselves"


@dataclass(frozen=True)
class Line:
    """One metric in a chart; `colour` is a name of the page's palette."""

    key: str
    name: str
    colour: str
    dashed: bool = False
    raw: bool = False  # drawn as it is: jumps matter, or there is no noise


@dataclass(frozen=True)
class Chart:
    """A chart over the steps. `level`: a value worth a dashed line, with its name."""

    slug: str
    title: str
    caption: str
    lines: tuple[Line, ...]
    level: tuple[float, str] | None = None
    floor: float | None = None
    percent: bool = False
    stacked: bool = False
    marks: str | None = None  # a count; steps where it is not 0 get a cross


SECTIONS: tuple[tuple[str, str, tuple[Chart, ...]], ...] = (
    (
        "learning",
        "Learning",
        (
            Chart(
                "sft",
                "Supervised loss",
                "Mean of -log p of the human stories, in nats a token.",
                (
                    Line("sft/loss", "training", "blue"),
                    Line("sft/eval_loss", "held out", "amber"),
                ),
            ),
            Chart(
                "reward",
                "Reward",
                "Mean over the stories that the model wrote.",
                (Line("reward", "mean", "blue"),),
            ),
            Chart(
                "parts",
                "What the reward is made of",
                "Means of the parts before their weights; repetition and blank are penalties.",
                (
                    Line("reward/quality", "quality", "blue"),
                    Line("reward/length_score", "length score", "teal"),
                    Line("reward/self_repetition", "repetition", "rose"),
                    Line("reward/blank_penalty", "blank", "slate"),
                ),
            ),
            Chart(
                "length-error",
                "Length error",
                "Mean |ln(words / target)|: 0 is exact, short and long count alike.",
                (Line("length/abs_log_ratio", "mean", "teal"),),
                level=(math.log(1.2), "20 % off"),
                floor=0.0,
            ),
            Chart(
                "length-ratio",
                "Length ratio",
                "Mean words written per word asked for; 1 is the target.",
                (Line("length/ratio", "words / target", "teal"),),
                level=(1.0, "target"),
            ),
            Chart(
                "within",
                "Hits and cut-offs",
                "Share of stories within 20 % of the target, and share cut off by the token limit.",
                (
                    Line("length/within_20", "within 20 %", "teal"),
                    Line("completions/clipped_ratio", "cut off", "rose"),
                ),
                floor=0.0,
                percent=True,
            ),
            Chart(
                "tokens",
                "Completion length",
                "Tokens of a completion, thinking included.",
                (
                    Line("completions/mean_length", "mean", "teal"),
                    Line("completions/max_length", "longest", "slate", dashed=True),
                    Line("completions/min_length", "shortest", "slate", dashed=True),
                ),
                floor=0.0,
            ),
        ),
    ),
    (
        "policy",
        "Policy",
        (
            Chart(
                "entropy",
                "Entropy",
                "Mean over tokens, in nats; a collapse shows as a fall to 0.",
                (
                    Line("entropy", "model's rows", "violet"),
                    Line("entropy/human", "human rows", "amber"),
                ),
            ),
            Chart(
                "kl",
                "KL",
                "Divergence from the starting model, in nats a token.",
                (Line("kl", "KL", "violet"),),
                floor=0.0,
            ),
            Chart(
                "clip",
                "Clipped tokens",
                "Share of tokens whose ratio was clipped; 0 when a batch is used for one update.",
                (
                    Line("clip_ratio/high_mean", "above", "blue"),
                    Line("clip_ratio/low_mean", "below", "rose"),
                    Line("clip_ratio/region_mean", "either", "slate", dashed=True),
                ),
                floor=0.0,
                percent=True,
            ),
            Chart(
                "grad",
                "Gradient norm",
                "Before clipping; a cross is an update that the guard skipped.",
                (Line("grad_norm", "norm", "slate", raw=True),),
                floor=0.0,
                marks="guard/skipped",
            ),
            Chart(
                "loss",
                "Loss",
                "Its height says little in policy optimisation; jumps do.",
                (
                    Line("loss", "whole", "slate"),
                    Line("policy/loss", "model's rows", "blue"),
                ),
            ),
            Chart(
                "lr",
                "Learning rate",
                "As the schedule set it.",
                (Line("learning_rate", "learning rate", "slate", raw=True),),
                floor=0.0,
            ),
        ),
    ),
    (
        "human",
        "Human reference",
        (
            Chart(
                "gap",
                "Human minus model",
                "Mean reward of the human row minus the mean of the model's rows of its group.",
                (Line("hri/gap", "gap", "amber"),),
                level=(0.0, ""),
            ),
            Chart(
                "wins",
                "Weight and wins",
                "Weight of the human row's advantage; share of groups whose human row scores best.",
                (
                    Line("hri/human_wins", "human wins", "amber"),
                    Line("hri/weight", "weight", "slate", dashed=True, raw=True),
                ),
                floor=0.0,
            ),
            Chart(
                "human-loss",
                "Loss on human rows",
                "The human rows' part of the loss, their weight included.",
                (Line("hri/loss", "loss", "amber"),),
            ),
        ),
    ),
    (
        "signs",
        "Signs of gaming",
        (
            Chart(
                "copies",
                "Copies and appeals",
                "Shares: of 8-grams from the prompt's human story, of 4-grams that two rollouts of "
                "one prompt have in common, of stories that speak to the judge.",
                (
                    Line("signs/reference_overlap", "from the human story", "amber"),
                    Line("signs/group_similarity", "shared by rollouts", "blue"),
                    Line("reward/injection", "speak to the judge", "rose"),
                ),
                floor=0.0,
                percent=True,
            ),
            Chart(
                "figures",
                "Figures of speech",
                "Per 1,000 words, by patterns: comparisons, and images made of feelings.",
                (Line("signs/figurative_density", "figures of speech", "violet"),),
                floor=0.0,
            ),
        ),
    ),
    (
        "speed",
        "Speed",
        (
            Chart(
                "phases",
                "Time per step",
                "Seconds by phase; judging counts only where nothing else went on.",
                (
                    Line("perf/rollout_s", "writing", "blue"),
                    Line("perf/judge_exposed_s", "judge, exposed", "amber"),
                    Line("perf/train_s", "training", "teal"),
                    Line("perf/optimizer_s", "optimizer", "violet"),
                    Line(REST, "other", "slate"),
                ),
                floor=0.0,
                stacked=True,
            ),
            Chart(
                "throughput",
                "Tokens per second",
                "All tokens over the whole step; written tokens over the writing alone.",
                (
                    Line("perf/tokens_per_s", "whole step", "teal"),
                    Line("perf/rollout_tokens_per_s", "writing", "blue"),
                ),
                floor=0.0,
            ),
            Chart(
                "between",
                "Between steps",
                "Seconds until the rollout engine had the new weights, and until rows of the old "
                "ones were written.",
                (
                    Line("perf/sync_s", "sending the weights", "violet"),
                    Line("perf/settle_s", "rows of the old weights", "blue"),
                ),
                floor=0.0,
                stacked=True,
            ),
        ),
    ),
    (
        "rollouts",
        "Rollout engine",
        (
            Chart(
                "staleness",
                "Staleness",
                "Updates between the weights that drew a token and those that trained on it.",
                (
                    Line("staleness/mean", "mean", "blue", raw=True),
                    Line("staleness/max", "oldest token", "slate", dashed=True, raw=True),
                ),
                floor=0.0,
            ),
            Chart(
                "mismatch",
                "Mismatch",
                "KL between the rollout engine and the trainer, in nats a token.",
                (Line("sampling/mismatch_kl", "mismatch KL", "violet"),),
                floor=0.0,
            ),
            Chart(
                "is-clip",
                "Limited importance weights",
                "Share of the model's tokens whose weight lay outside the limits.",
                (
                    Line("is_weight/high_mean", "above the cap", "blue"),
                    Line("is_weight/low_mean", "below the floor", "rose"),
                ),
                floor=0.0,
                percent=True,
            ),
        ),
    ),
    (
        "judging",
        "Judging",
        (
            Chart(
                "latency",
                "Judge latency",
                "Seconds from asking for a judgement to having it.",
                (
                    Line("judge/latency_s/p50", "median", "amber"),
                    Line("judge/latency_s/p95", "95th percentile", "slate", dashed=True),
                    Line("judge/latency_s/p99", "99th percentile", "rose", dashed=True),
                ),
                floor=0.0,
            ),
            Chart(
                "faults",
                "Failed tries by class",
                "Tries that gave no judgement; most are made good by another try.",
                (
                    Line("judge/faults/throttle", "throttled", "amber"),
                    Line("judge/faults/transient", "server, connection", "slate"),
                    Line("judge/faults/timeout", "timeout", "blue"),
                    Line("judge/faults/truncated", "cut off", "teal"),
                    Line(INVALID, "invalid", "violet"),
                    Line("judge/faults/refusal", "refused", "rose"),
                ),
                floor=0.0,
                stacked=True,
            ),
            Chart(
                "unscored",
                "Stories without a score",
                "Judgements that failed for good, by the class that ended them.",
                (
                    Line("judge/failures/throttle", "throttled", "amber"),
                    Line("judge/failures/transient", "server, connection", "slate"),
                    Line("judge/failures/timeout", "timeout", "blue"),
                    Line("judge/failures/truncated", "cut off", "teal"),
                    Line("judge/failures/invalid", "invalid", "violet"),
                    Line("judge/failures/refusal", "refused", "rose"),
                ),
                floor=0.0,
                stacked=True,
            ),
            Chart(
                "calls",
                "Calls",
                "Requests sent, and the ones among them that were not the first of a judgement.",
                (
                    Line("judge/calls", "sent", "blue"),
                    Line("judge/retries", "retries", "amber"),
                    Line("judge/hedges", "hedges", "violet"),
                    Line("judge/journal_hits", "from the journal", "teal", dashed=True),
                ),
                floor=0.0,
            ),
            Chart(
                "limit",
                "Requests at once",
                "What the limiter allows at the end of a step; throttling cuts it.",
                (Line("judge/limit", "limit", "teal", raw=True),),
                floor=0.0,
            ),
            Chart(
                "cost",
                "Cost",
                "Dollars spent on judging since the run was started or resumed.",
                (Line("judge/spent_usd", "spent", "blue", raw=True),),
                floor=0.0,
            ),
        ),
    ),
)
