"""What every rollout engine takes and gives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from ..config import Config
from ..types import FinishReason, VersionSpan


@dataclass(frozen=True)
class SamplingParams:
    """How tokens are drawn: penalty, then temperature, then top-k, then top-p."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0  # 0: all
    repetition_penalty: float = 1.0  # over prompt and completion, as in transformers and vLLM
    max_completion_length: int = 8192
    stop_ids: frozenset[int] = frozenset()

    @classmethod
    def from_config(cls, config: Config, stop_ids: frozenset[int]) -> SamplingParams:
        """The run's training distribution; `max_completion_length` must be resolved."""
        assert config.max_completion_length is not None
        return cls(
            temperature=config.temperature,
            top_p=config.top_p,
            top_k=config.top_k,
            repetition_penalty=config.repetition_penalty,
            max_completion_length=config.max_completion_length,
            stop_ids=stop_ids,
        )


@dataclass(frozen=True)
class RolloutRequest:
    """One completion to draw. Requests with equal prompts share one prefill."""

    prompt_ids: tuple[int, ...]
    seed: int  # the row's own random stream: its text does not depend on its neighbours' draws


@dataclass(frozen=True)
class Completion:
    """One drawn completion; the stop token, when there is one, is its last token."""

    completion_ids: list[int]
    # full vocabulary, at the sampling temperature; None where the engine cannot tell
    rollout_logps: list[float] | None
    sampler_logps: list[float] | None  # after penalty, top-k and top-p; None as above
    finish_reason: FinishReason
    versions: tuple[VersionSpan, ...] = ()  # empty: the engine writes with the trainer's weights


class RolloutEngine(Protocol):
    """Draws completions with the current weights; rows stream out as they finish."""

    serves_all_ranks: bool  # False: each rank has its own, and writes a share of the rows

    def sync(self, version: int, check_stop: Callable[[], None]) -> None:
        """Take over the trainer's present weights; called before the first rollouts, too.

        Args:
            version: optimizer steps that made them.
            check_stop: called while this waits; may raise to give up.
        """
        ...

    def mend(self, version: int, check_stop: Callable[[], None]) -> None:
        """Bring back what was lost, with the weights of `version`; cheap when nothing was.

        Called on the training thread, with the weights whole, while another thread generates. A
        `generate` on the training thread sees to it itself.
        """
        ...

    def close(self) -> None:
        """Give back what the engine holds; the last call."""
        ...

    def generate(
        self,
        requests: Sequence[RolloutRequest],
        params: SamplingParams,
        on_finish: Callable[[int, Completion], None],
        on_token: Callable[[int], None] | None = None,
    ) -> None:
        """Draw one completion a request.

        Args:
            requests: what to draw.
            params: the sampling distribution.
            on_finish: called with the request's index once, the moment its row ends.
            on_token: called after each decode step with the number of rows still running; may
                raise to stop the generation.
        """
        ...
