"""The values that travel through a step: a story record, a row, and how its judgement ended.

A row is one object that gains fields as it moves (prompts -> rollouts -> judge -> advantages ->
packing -> loss); a stage fills its own fields and never rewrites an earlier stage's.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class RowKind(StrEnum):
    """Where a row's text comes from."""

    POLICY = "policy"
    HUMAN = "human"
    CANARY = "canary"  # no row of a step: a fixed story that watches the judge


class FinishReason(StrEnum):
    """Why a completion ended: its own end token, or the token limit (truncated)."""

    STOP = "stop"
    LENGTH = "length"


@dataclass(frozen=True, slots=True)
class StoryRecord:
    """One line of the data: a prompt, the length it asks for, and the human story, if any."""

    uid: str
    prompt: str  # without its length sentence: what the judge sees
    target_word_count: int
    story: str | None = None
    reasoning: str | None = None
    source: str = ""
    columns: dict[str, Any] = field(default_factory=dict)  # further fields, for user rewards


@dataclass(frozen=True, slots=True)
class Scored:
    """A judgement that arrived whole. `quality` = overall / 100, see `judge.rubric`."""

    quality: float
    dimensions: dict[str, float] = field(default_factory=dict)
    judge: str = ""
    flags: tuple[str, ...] = ()

    def has_flag(self, name: str) -> bool:
        """Whether a flag is `name` or of its kind: `injection` for `injection:think_tag`."""
        return any(flag.partition(":")[0] == name for flag in self.flags)


@dataclass(frozen=True, slots=True)
class Failed:
    """No judgement could be had: the row leaves the group's statistics and the loss."""

    reason: str
    kind: str = "failed"  # the failure class, for metrics: throttle, timeout, invalid, ...
    final: bool = False  # nothing more will be judged in this run: money, judge or journal is gone


@dataclass(frozen=True, slots=True)
class Rejected:
    """The judge was reached and refused the text; treated like a failure by the loss."""

    reason: str


Outcome = Scored | Failed | Rejected


@dataclass(frozen=True, slots=True)
class RewardParts:
    """R and what it is made of (docs/training-runs.md). Penalties are stored unweighted."""

    total: float
    quality: float
    length_score: float  # band: 1 - length_penalty; ratio: g in [0, 1]
    self_repetition: float
    blank_penalty: float
    words: int
    injection: float = 0.0  # 1 when text addressed to the judge was found, else 0


@dataclass(frozen=True, slots=True)
class VersionSpan:
    """Tokens `start` to `end` (exclusive) of a completion, drawn by one version of the weights."""

    version: int  # optimizer steps that made the weights
    start: int
    end: int


@dataclass(slots=True)
class Row:
    """One prompt with one completion: a policy rollout, or the human story of a group."""

    row_id: str  # "step/group/slot", unique in a run
    group: int  # index of the group within the step
    slot: int  # index within the group
    kind: RowKind
    record: StoryRecord
    prompt_ids: list[int]
    # rollouts
    completion_ids: list[int] = field(default_factory=list)
    rollout_logps: list[float] | None = None  # full vocabulary, at the sampling temperature
    sampler_logps: list[float] | None = None  # after penalties, top-k and top-p: metrics only
    versions: tuple[VersionSpan, ...] = ()  # of every token; none on human rows
    finish_reason: FinishReason | None = None
    thinking: str = ""
    story: str = ""
    # judge and rewards
    outcome: Outcome | None = None
    reward: RewardParts | None = None
    # advantages
    advantage: float = 0.0
    trained: bool = False  # False: the row is outside numerator and denominator

    @property
    def num_tokens(self) -> int:
        """Tokens the model forward sees: prompt and completion."""
        return len(self.prompt_ids) + len(self.completion_ids)


@dataclass(slots=True)
class Group:
    """All rows of one prompt within a step."""

    index: int
    record: StoryRecord
    rows: list[Row]
    # why the group does not train: "zero_spread", "noise_floor", "too_few_scored"
    dropped: str | None = None


class UserError(ValueError):
    """A mistake in the input, with its remedy; the command line prints it without a traceback."""
