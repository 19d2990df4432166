"""Shared settings of the judge tests: short waits, and a variable for keys that is never set."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from benchmarks.scripted_endpoint import KEY_VARIABLE
from polaris_fast.config import JudgeConfig
from polaris_fast.judge import Backoff, JudgePool


@pytest.fixture
def fast_config(monkeypatch: pytest.MonkeyPatch) -> Callable[..., JudgeConfig]:
    """Builds a JudgeConfig with short limits; keywords override."""
    monkeypatch.delenv(KEY_VARIABLE, raising=False)

    def build(base_url: str | None, **changes: Any) -> JudgeConfig:
        settings: dict[str, Any] = {
            "base_url": base_url,
            "api_key_env": KEY_VARIABLE,
            "timeout_s": 5.0,
            "connect_timeout_s": 2.0,
            "deadline_s": 20.0,
            "check_at_start": False,  # a script plays for the jobs alone
            "throttle_cooldown_s": 0.1,
            "breaker_pause_s": 0.02,
            "breaker_patience_s": 0.1,
        }
        return JudgeConfig(**(settings | changes))

    return build


@pytest.fixture
def make_pool(fast_config: Callable[..., JudgeConfig]) -> Callable[..., JudgePool]:
    """Builds a pool (not yet entered) whose waits are milliseconds."""

    def build(base_url: str | None, **changes: Any) -> JudgePool:
        return JudgePool(fast_config(base_url, **changes), backoff=Backoff(0.002, 0.02))

    return build
