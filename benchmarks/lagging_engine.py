"""A rollout engine with weights of its own, in this process: servers without servers.

It writes by the product's transformers engine on a copy of the model that only `sync` renews, so
rows can be written on one thread while another trains. A generation is by one version throughout.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from polaris_fast.model.lora import whole_state
from polaris_fast.ranks import parts
from polaris_fast.rollout import Completion, RolloutRequest, SamplingParams
from polaris_fast.rollout.hf import HFEngine
from polaris_fast.types import VersionSpan


class LaggingEngine:
    """A `RolloutEngine` on a copy of `model`."""

    serves_all_ranks = True

    def __init__(self, model: Any, max_batch_size: int) -> None:
        self.model, self.version = model, -1
        self._copy = copy.deepcopy(model).requires_grad_(False)
        self._inner = HFEngine(self._copy, max_batch_size)
        self._in_use = threading.Lock()

    @torch.no_grad()
    def sync(self, version: int, check_stop: Callable[[], None]) -> None:
        """Copy the weights, when nothing is being written."""
        with self._in_use:
            self._copy.load_state_dict(whole_state(self.model))
            self.version = version

    def mend(self, version: int, check_stop: Callable[[], None]) -> None:
        """Nothing can be lost."""

    def close(self) -> None:
        """Nothing is held."""

    def generate(
        self,
        requests: Sequence[RolloutRequest],
        params: SamplingParams,
        on_finish: Callable[[int, Completion], None],
        on_token: Callable[[int], None] | None = None,
    ) -> None:
        """See `RolloutEngine`."""
        with self._in_use:

            def finish(index: int, row: Completion) -> None:
                span = VersionSpan(self.version, 0, len(row.completion_ids))
                on_finish(index, replace(row, versions=(span,)))

            self._inner.generate(requests, params, finish, on_token)


@contextmanager
def lagging_rollouts() -> Iterator[list[LaggingEngine]]:
    """Runs with `rollout.engine: vllm` get a `LaggingEngine` instead; yields those made."""
    made: list[LaggingEngine] = []

    def rollouts(config: Any, engine: Any, *_: Any) -> LaggingEngine:
        made.append(LaggingEngine(engine.model, config.rollout.max_batch_size))
        return made[-1]

    before = parts._rollouts, parts._open_servers
    parts._rollouts, parts._open_servers = rollouts, lambda *_: None  # type: ignore[assignment]
    try:
        yield made
    finally:
        parts._rollouts, parts._open_servers = before
