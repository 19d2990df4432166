"""A `VLLMEngine` over scripted servers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from polaris_fast.config import Config
from polaris_fast.rollout import Completion, RolloutRequest, SamplingParams
from polaris_fast.rollout.vllm.engine import VLLMEngine
from polaris_fast.rollout.vllm.fleet import Fleet

from .vllm_double import Script, VLLMDouble, answer, doubles

PARAMS = SamplingParams(max_completion_length=3)


class NoSync:
    """The stand-ins hold no weights; `sent` are the labels, and whether rows were kept."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, bool]] = []

    def send(self, version: str, *, keep_rows: bool = False) -> None:
        self.sent.append((version, keep_rows))

    def forget_connections(self) -> None:
        pass

    def give_back_cache(self) -> None:
        pass


def engine_config(servers: list[VLLMDouble], max_batch_size: int = 4, **vllm: Any) -> Config:
    given = {"launch": False, "base_urls": [server.url for server in servers]}
    rollout = {"engine": "vllm", "max_batch_size": max_batch_size, "vllm": given | vllm}
    return Config.model_validate({"rollout": rollout})


@contextmanager
def engine_over(
    *scripts: Script, max_batch_size: int = 4, **vllm: Any
) -> Iterator[tuple[VLLMEngine, list[VLLMDouble]]]:
    with doubles(*scripts) as servers:
        config = engine_config(servers, max_batch_size, **vllm)
        fleet = Fleet(config, "", log_dir=Path(), backend="gloo")
        engine = VLLMEngine(config, fleet, NoSync())  # type: ignore[arg-type]
        try:
            engine.sync(1, lambda: None)
            for server in servers:
                server.asked.clear()  # of the look at its log-probs
            yield engine, servers
        finally:
            engine.close()


def probe_then(script: Script) -> Script:
    """The first request asks which log-probs the server gives."""
    return lambda n, body: (
        answer(body) if body["sampling_params"]["top_k"] == 1 else script(n, body)
    )


def write(engine: VLLMEngine, prompts: list[tuple[int, ...]]) -> dict[int, Completion]:
    rows: dict[int, Completion] = {}

    def finish(index: int, completion: Completion) -> None:
        assert index not in rows, "a row ended twice"
        rows[index] = completion

    engine.generate([RolloutRequest(p, seed=n) for n, p in enumerate(prompts)], PARAMS, finish)
    return rows


def sent_by(engine: VLLMEngine) -> list[tuple[str, bool]]:
    return engine._sync.sent  # type: ignore[attr-defined, no-any-return]


def goes_down(server: Callable[[], VLLMDouble], at: int, back_after: int | None) -> Script:
    """Fails from request `at` on, unhealthy; healthy again after so many looks at its health."""

    def script(n: int, body: dict[str, Any]) -> Any:
        if n == at:
            server().go_down(back_after)
        return answer(body) if server().is_up else 503

    return probe_then(script)
