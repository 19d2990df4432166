"""The parts of the vLLM engine that need no server: routing, log-probs, arguments, settings."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from polaris_fast.config import Config, VLLMConfig
from polaris_fast.rollout import RolloutRequest, SamplingParams
from polaris_fast.rollout.vllm import launcher
from polaris_fast.rollout.vllm.client import sampling_body
from polaris_fast.rollout.vllm.launcher import (
    last_words,
    own_environment,
    server_arguments,
    server_environment,
    visible_gpu,
)
from polaris_fast.rollout.vllm.logprobs import best_mode, name_logps
from polaris_fast.rollout.vllm.routing import Router, by_prompt
from polaris_fast.rollout.vllm.transfer import each_once
from polaris_fast.types import UserError

LOGPS = [-0.5, -1.5]
PLAIN, FILTERED = SamplingParams(), SamplingParams(top_p=0.9)
WARM, WARM_FILTERED = SamplingParams(temperature=0.7), SamplingParams(temperature=0.7, top_k=5)


@pytest.mark.parametrize(
    ("params", "raw", "processed"),
    [
        (PLAIN, (LOGPS, LOGPS), (LOGPS, LOGPS)),
        (FILTERED, (LOGPS, None), (None, LOGPS)),
        (SamplingParams(repetition_penalty=1.1), (LOGPS, None), (None, LOGPS)),
        (WARM, (None, None), (LOGPS, LOGPS)),
        (WARM_FILTERED, (None, None), (None, LOGPS)),
    ],
)
def test_logprobs_get_only_names_that_are_true(
    params: SamplingParams, raw: Any, processed: Any
) -> None:
    assert name_logps(LOGPS, processed=False, params=params) == raw
    assert name_logps(LOGPS, processed=True, params=params) == processed


@pytest.mark.parametrize("params", [PLAIN, FILTERED, WARM])
def test_the_chosen_mode_gives_rollout_logprobs_wherever_one_does(params: SamplingParams) -> None:
    processed = best_mode(params) == "processed_logprobs"
    assert name_logps(LOGPS, processed=processed, params=params)[0] == LOGPS


def test_router_takes_the_least_loaded_server_with_room() -> None:
    async def story() -> list[str]:
        router = Router(["a", "b"], capacity=4)
        placed = [await router.place(3), await router.place(2), await router.place(3)]
        waiting = asyncio.create_task(router.place(1))  # a: 3, b: 5
        placed.append(await waiting)
        full = asyncio.create_task(router.place(1))  # a: 4, b: 5
        await asyncio.sleep(0)
        assert not full.done()
        await router.release("b")
        await asyncio.sleep(0)
        assert not full.done()
        await router.release("b")
        placed.append(await full)
        return placed

    assert asyncio.run(story()) == ["a", "b", "b", "a", "b"]


def test_router_without_servers_waits_for_one_that_is_back() -> None:
    async def story() -> str:
        router = Router(["a"], capacity=1)
        await router.place(1)
        waiting = asyncio.create_task(router.place(1))
        await router.lose("a")
        await asyncio.sleep(0)
        assert not waiting.done()
        await router.restore(["a"])
        return await waiting

    assert asyncio.run(story()) == "a"


def test_requests_go_by_prompt_in_pieces_that_fit() -> None:
    prompts = [(1,), (2,), (1,), (1,), (2,)]
    requests = [RolloutRequest(prompt, seed=n) for n, prompt in enumerate(prompts)]
    assert by_prompt(requests, capacity=2) == [[0, 2], [3], [1, 4]]


def test_tied_weights_are_sent_once_under_their_first_name() -> None:
    table, other = torch.zeros(4, 2), torch.zeros(4, 2)
    state = {"embed": table, "norm": other, "head": table, "row": table[0]}
    assert [name for name, _ in each_once(state)] == ["embed", "norm", "row"]


def test_only_our_stop_ids_end_a_completion() -> None:
    body = sampling_body(SamplingParams(stop_ids=frozenset({9, 4})), seed=2**63 - 1)
    assert body["ignore_eos"] is True and body["stop_token_ids"] == [4, 9]
    assert json.loads(json.dumps(body))["seed"] == 2**63 - 1


def configured(**vllm: Any) -> Config:
    rollout = {"engine": "vllm", "vllm": vllm}
    return Config.model_validate({"rollout": rollout, "temperature": vllm.pop("temperature", 1.0)})


def arguments(config: Config, backend: str = "nccl", *, text_only: bool = False) -> list[str]:
    return server_arguments(config, "model", 8000, backend, text_only=text_only)


def value_of(words: list[str], name: str) -> str:
    return words[words.index(name) + 1]


def test_a_launched_server_fits_the_run() -> None:
    words = arguments(configured(extra_args=["--dtype", "float16"]))
    assert value_of(words, "--max-model-len") == str(256 + 8192)
    assert value_of(words, "--logprobs-mode") == "raw_logprobs"
    assert json.loads(value_of(words, "--weight-transfer-config")) == {"backend": "nccl"}
    assert words[-2:] == ["--dtype", "float16"]
    # a processor of images would ask for the tokenizer that no row needs
    assert "--language-model-only" in arguments(configured(), text_only=True)
    assert "--language-model-only" not in words
    assert value_of(arguments(configured(temperature=0.7)), "--logprobs-mode") == (
        "processed_logprobs"
    )


def test_each_launched_server_sees_its_own_gpus() -> None:
    settings = VLLMConfig(num_servers=2, tensor_parallel_size=2, gpus=[4, 5, 6, 7])
    assert [settings.gpus_of(n) for n in range(2)] == [[4, 5], [6, 7]]
    environment = server_environment(configured(), "nccl", ["6", "7"])
    assert environment["CUDA_VISIBLE_DEVICES"] == "6,7"
    assert "CUDA_VISIBLE_DEVICES" not in server_environment(configured(), "nccl", [])


def test_a_colocated_server_may_sleep_and_sees_its_ranks_gpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = configured(placement="colocated", gpu_memory_utilization=0.3)
    words = arguments(config, "ipc")
    assert "--enable-sleep-mode" in words
    assert value_of(words, "--gpu-memory-utilization") == "0.3"
    assert "--enable-sleep-mode" not in arguments(configured())
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert visible_gpu(1) == "1"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,GPU-a1")
    assert visible_gpu(1) == "GPU-a1"
    assert config.rollout.vllm.transfer_on("cuda") == "ipc"


def test_a_server_is_no_rank_of_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "MASTER_PORT", "TORCHELASTIC_RUN_ID"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("HF_HOME", "/models")
    kept = own_environment()
    assert kept["HF_HOME"] == "/models"
    assert not {"RANK", "WORLD_SIZE", "MASTER_PORT", "TORCHELASTIC_RUN_ID"} & set(kept)


def test_only_ipc_permits_pickled_handles() -> None:
    name = "VLLM_ALLOW_INSECURE_SERIALIZATION"
    assert name in server_environment(configured(), "ipc", [])
    assert name not in server_environment(configured(), "nccl", [])


def test_transfer_follows_the_device() -> None:
    assert VLLMConfig().transfer_on("cpu") == "gloo"
    assert VLLMConfig(gpus=[1]).transfer_on("cuda") == "nccl"
    assert VLLMConfig(transfer="ipc").transfer_on("cuda") == "ipc"


def test_a_transfer_that_cannot_work_here_is_refused() -> None:
    with pytest.raises(UserError, match="needs a GPU, the trainer is on cpu"):
        VLLMConfig(transfer="nccl", gpus=[1]).transfer_on("cpu")
    with pytest.raises(UserError, match=r"name the GPUs of the launched servers"):
        VLLMConfig().transfer_on("cuda")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"rollout": {"vllm": {"base_urls": ["http://a"]}}}, "set launch to false"),
        ({"rollout": {"engine": "vllm", "vllm": {"launch": False}}}, "give the servers' URLs"),
        ({"rollout": {"vllm": {"num_servers": 2, "gpus": [0]}}}, "= 2 GPUs, got"),
        ({"rollout": {"vllm": {"num_servers": 2, "transfer": "ipc"}}}, "reaches one server"),
        (
            {"rollout": {"vllm": {"tensor_parallel_size": 2, "transfer": "ipc"}}},
            "set num_servers and tensor_parallel_size to 1",
        ),
        (
            {"rollout": {"vllm": {"placement": "colocated", "gpus": [1]}}},
            "one server on each rank's own GPU: leave launch",
        ),
        (
            {"rollout": {"vllm": {"placement": "colocated", "transfer": "nccl"}}},
            "cannot reach a server on the trainer's own GPU",
        ),
        ({"rollout": {"vllm": {"placement": "colocated"}}}, "gpu_memory_utilization to the server"),
        (
            {
                "rollout": {"engine": "vllm"},
                "engine": {"kind": "deepspeed", "zero_stage": 3},
            },
            "set engine.zero_stage to 2",
        ),
    ],
)
def test_settings_that_contradict_each_other_name_the_remedy(
    settings: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValidationError, match=words):
        Config.model_validate(settings)


def test_the_log_of_the_run_before_can_still_be_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(launcher, "require_vllm", lambda: None)
    monkeypatch.setattr(launcher.subprocess, "Popen", lambda *_, **__: None)
    log = tmp_path / "vllm-0.log"
    for before in (None, "out of memory", "no such model"):
        if before is not None:
            log.write_text(before)
        launcher.LaunchedServer(
            configured(), "model", text_only=False, log_path=log, backend="gloo", gpus=[]
        )
        assert log.read_text() == ""
        kept = tmp_path / "vllm-0.before.log"
        assert (kept.read_text() if kept.exists() else None) == before


def test_the_last_errors_of_a_log_speak_for_it() -> None:
    log = "start\n(A) WARNING OSError: harmless\n  File x\nValueError: no such model\nbye\n"
    assert last_words(log) == ["ValueError: no such model"]
    assert last_words("one\n\ntwo\n") == ["one", "two"]
