"""Scores for stories: a pool of calls to an LLM judge, a local heuristic judge, user rewards.

with open_scorer(config.judge, config.reward) as scorer:
    future = scorer.submit(JudgeJob(job_id="3/0/2", prompt=prompt, story=story))
    outcome = future.result()    # Scored, Failed or Rejected
"""

from __future__ import annotations

from pathlib import Path

from ..config import JudgeConfig, RewardConfig
from .jobs import JudgeJob, Scorer
from .local_server import LocalJudge
from .pool import JudgePool
from .retry import Backoff
from .user_reward import UserReward

__all__ = [
    "Backoff",
    "JudgeJob",
    "JudgePool",
    "LocalJudge",
    "Scorer",
    "UserReward",
    "open_scorer",
]


def open_scorer(
    judge: JudgeConfig,
    reward: RewardConfig,
    *,
    run_dir: Path | None = None,
    longest_story_tokens: int | None = None,
) -> Scorer:
    """The scorer a configuration asks for: the user's function, or else the judge.

    Args:
        run_dir: the run's folder, beside which the journal of judgements lies; None: no run.
        longest_story_tokens: that a judge must be able to hold; None: unknown.

    Raises:
        UserError: `reward.function` cannot be loaded. An unreachable judge is told on `with`.
    """
    if reward.function:
        return UserReward(reward.function)
    return JudgePool(judge, run_dir=run_dir, longest_story_tokens=longest_story_tokens)
