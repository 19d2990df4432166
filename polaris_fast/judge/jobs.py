"""One story to be scored, and the interface of everything that scores stories."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Protocol, Self

from ..types import Outcome, RowKind


@dataclass(frozen=True, slots=True)
class JudgeJob:
    """One story to be scored."""

    job_id: str  # the row's id, unique in a run
    prompt: str  # without its length sentence
    story: str  # without the thinking
    samples: int = 1  # judgements to average; more than one for human stories
    kind: RowKind = RowKind.POLICY
    group: str | None = None  # unique in a run; rows of one group share judge and rubric
    columns: dict[str, Any] = field(default_factory=dict)  # for user rewards
    first_sample: int = 0  # index of the first of `samples`: others are fresh judgements
    needed: int | None = None  # of `samples`, for a score; None: more than half

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise ValueError(f"JudgeJob: samples must be at least 1, got {self.samples}")
        if self.first_sample < 0:
            raise ValueError(f"JudgeJob: first_sample must not be below 0, got {self.first_sample}")
        if self.needed is not None and not 1 <= self.needed <= self.samples:
            raise ValueError(
                f"JudgeJob: needed must be from 1 to samples ({self.samples}), got {self.needed}"
            )


class Scorer(Protocol):
    """A source of outcomes: `JudgePool` or `UserReward`; used as a context manager."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...

    def submit(self, job: JudgeJob) -> Future[Outcome]:
        """Start scoring; the future's result is an outcome, a failure is never a number."""
        ...

    def outdated(self, group: str) -> frozenset[str]:
        """Ids of the group's jobs that are to be submitted again: another judge serves it now."""
        ...

    def take_metrics(self) -> dict[str, float]:
        """`judge/*` since the last call."""
        ...
