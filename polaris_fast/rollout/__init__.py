"""Rollout engines: token ids in, streamed completions with log-probs out."""

from .base import Completion, RolloutEngine, RolloutRequest, SamplingParams

__all__ = ["Completion", "RolloutEngine", "RolloutRequest", "SamplingParams"]
