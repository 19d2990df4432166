"""Retries of the engine wait for nothing."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    async def at_once(attempt: int) -> None:
        pass

    monkeypatch.setattr("polaris_fast.rollout.vllm.engine.pause_before_retry", at_once)
    monkeypatch.setattr("polaris_fast.rollout.vllm.client._REPEAT_WAITS_S", (0.0, 0.0))
