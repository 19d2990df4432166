"""A tiny model, a launched server that holds it, and what the trainer says of the same tokens."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from polaris_fast.config import Config
from polaris_fast.model.load import prepare_model
from polaris_fast.model.lora import whole_state
from polaris_fast.model.tiny import tiny_model
from polaris_fast.rollout import Completion, RolloutRequest, SamplingParams
from polaris_fast.rollout.vllm.engine import VLLMEngine, open_vllm
from polaris_fast.rollout.vllm.fleet import Fleet

VOCAB = 512
PACE_FILE = "POLARIS_TEST_PACE_FILE"  # see pace.py, which needs vLLM to be imported
REPOSITORY = Path(__file__).parents[2]
SLOW_S = 0.2  # a token, where a test must act before rows end: a long row takes minutes


def vllm_config(**vllm: Any) -> Config:
    """fp32, prompts of up to 448 tokens, stories of up to 512."""
    return Config.model_validate(
        {
            "dtype": "float32",
            "device": "cpu",
            "max_prompt_length": 448,
            "max_completion_length": 512,
            "rollout": {"engine": "vllm", "max_batch_size": 32, "vllm": vllm},
        }
    )


@dataclass
class Serving:
    """A running server and the trainer's model."""

    model: Any
    engine: VLLMEngine
    log_dir: Path
    version: int = 0

    def sync(self) -> None:
        """Send the model's present weights as a new version."""
        self.version += 1
        self.engine.sync(self.version, lambda: None)

    def write(
        self, prompts: list[list[int]], params: SamplingParams, *, seed: int = 0
    ) -> list[Completion]:
        """One completion a prompt, in order."""
        done: dict[int, Completion] = {}
        requests = [RolloutRequest(tuple(p), seed + n) for n, p in enumerate(prompts)]
        self.engine.generate(requests, params, done.__setitem__)
        return [done[n] for n in range(len(prompts))]

    @contextmanager
    def slowly(self) -> Iterator[Callable[[], None]]:
        """Rows take `SLOW_S` a token on all servers, in here and until what it yields is called."""
        pace = self.log_dir / "pace"
        pace.write_text(str(SLOW_S))
        let_go = partial(pace.unlink, missing_ok=True)
        try:
            yield let_go
        finally:
            let_go()

    def counted(self, name: str, number: int = 0) -> float:
        """One of a server's own metrics."""
        client = self.engine.fleet.clients[number]

        async def ask() -> str:
            async with client._session.get(client.base_url + "/metrics") as response:
                return await response.text()

        lines = self.engine.fleet.call(ask()).splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name + "{"))

    def num_drawn(self, number: int = 0) -> float:
        """How many tokens a server has drawn since it started."""
        return self.counted("vllm:generation_tokens_total", number)

    @torch.no_grad()
    def logps(self, prompt: list[int], completion: list[int], temperature: float = 1.0) -> Any:
        """(tokens,) the trainer's own log-probs of a completion, by a plain forward."""
        logits = self.model(torch.tensor([prompt + completion])).logits[0].float() / temperature
        table = logits.log_softmax(-1)[len(prompt) - 1 : -1]
        return table.gather(-1, torch.tensor(completion)[:, None])[:, 0]

    @torch.no_grad()
    def disturb(self, seed: int, scale: float = 0.05) -> None:
        """Move every weight, as an update would."""
        generator = torch.Generator().manual_seed(seed)
        for weight in self.model.parameters():
            weight.add_(torch.randn(weight.shape, generator=generator) * scale)


def wait_until(condition: Callable[[], bool], limit_s: float = 60.0) -> None:
    """Return once `condition()` holds."""
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


def save_tiny(folder: Path) -> Any:
    """A tiny Qwen3 whose predictions are far from uniform, saved for a server."""
    model = tiny_model("qwen3", vocab_size=VOCAB, initializer_range=0.1)
    model.save_pretrained(folder)
    return model


@contextmanager
def serve(folder: Path, **vllm: Any) -> Iterator[Serving]:
    """Launch servers for a tiny model in `folder`; they hold version 1 when this enters."""
    model = prepare_model(save_tiny(folder / "model"))
    config = vllm_config(extra_args=["--logits-processors", "tests.vllm.pace:Pace"], **vllm)
    seen_by_servers = {
        PACE_FILE: str(folder / "pace"),
        "PYTHONPATH": os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")]),
    }
    with mock.patch.dict(os.environ, seen_by_servers):
        fleet = Fleet(config, str(folder / "model"), log_dir=folder, backend="gloo")
    engine = open_vllm(config, fleet, lambda: whole_state(model), model.device)
    try:
        serving = Serving(model, engine, folder)
        serving.sync()
        yield serving
    finally:
        engine.close()
