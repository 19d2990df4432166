"""Scores for stories: a pool of calls to an LLM judge, a local heuristic judge, user rewards.

with open_scorer(config.judge, config.reward) as scorer:
    future = scorer.submit(JudgeJob(job_id="3/0/2", prompt=prompt, story=story))
    outcome = future.result()    # Scored, Failed or Rejected
"""

from __future__ import annotations

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


def open_scorer(judge: JudgeConfig, reward: RewardConfig) -> Scorer:
    """The scorer a configuration asks for: the user's function, or else the judge.

    Raises:
        UserError: `reward.function` cannot be loaded. An unreachable judge is told on `with`.
    """
    return UserReward(reward.function) if reward.function else JudgePool(judge)
