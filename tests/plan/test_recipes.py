"""The shipped recipes on the machines that their headers name, and what is told to do elsewhere."""

from __future__ import annotations

from functools import cache

import pytest

from polaris_fast.config import Config
from polaris_fast.config_file import load_config
from polaris_fast.plan.advice import advise, longest_row, smallest_remedy, with_settings
from polaris_fast.plan.hardware import GIB, parse_gpus, this_cpu
from polaris_fast.plan.memory import memory_plan
from polaris_fast.plan.servers import own_gpus, servers_of, training_part
from polaris_fast.plan.shapes import ModelShape, shape_of_run
from polaris_fast.types import UserError


@cache
def recipe(name: str) -> tuple[Config, ModelShape]:
    config = load_config(name, {})
    return config, shape_of_run(config)


@pytest.mark.parametrize(
    ("name", "gpus"),
    [
        ("polaris_9b", "4xA100-80G"),
        ("polaris_9b_12k", "4xA100-80G"),
        ("polaris_9b_lora_1gpu", "A100-80G"),
    ],
)
def test_a_recipe_fits_its_machine(name: str, gpus: str) -> None:
    plan = memory_plan(*recipe(name), parse_gpus(gpus))
    assert plan.fits
    # Nothing is forgotten: 16 bytes a trained parameter over the ranks, 2 a frozen one.
    least = 8.95e9 * 2 if "lora" in name else 8.95e9 * 16 / 4
    assert plan.total > least


def test_one_gpu_is_too_small_for_all_weights_and_a_switch_is_named() -> None:
    config, shape = recipe("polaris_9b")
    machine = parse_gpus("A100-80G")
    now = memory_plan(config, shape, machine)
    assert not now.fits
    remedy = smallest_remedy(config, shape, machine)
    assert remedy is not None and remedy[1].fits
    assert remedy[0] == ("engine.offload_optimizer=true",)


def test_advice_is_what_the_changed_configuration_needs() -> None:
    config, shape = recipe("polaris_9b")
    config = with_settings(config, {"gradient_checkpointing": False})
    machine = parse_gpus("4xA100-80G")
    now = memory_plan(config, shape, machine)
    found = {advice.settings: advice for advice in advise(config, shape, machine, now)}
    saved = found["gradient_checkpointing=true",]
    changed = with_settings(config, {"gradient_checkpointing": True})
    assert saved.saving == now.total - memory_plan(changed, shape, machine).total > 50 * GIB
    assert saved.fits and not now.fits
    assert [a.saving for a in found.values()] == sorted(
        (a.saving for a in found.values()), reverse=True
    )


def test_the_longest_row_fits_and_a_longer_one_does_not() -> None:
    config, shape = recipe("polaris_9b_12k")
    machine = parse_gpus("4xA100-80G")
    longest = longest_row(config, shape, machine)
    assert longest > config.max_prompt_length + (config.max_completion_length or 0)
    for tokens, fits in ((longest, True), (longest + 512, False)):
        changed = with_settings(
            config,
            {
                "max_completion_length": tokens - config.max_prompt_length,
                "packing.max_tokens_per_microbatch": tokens,
            },
        )
        assert memory_plan(changed, shape, machine).fits is fits


def test_servers_take_gpus_from_training_or_share_them() -> None:
    config, shape = recipe("polaris_9b")
    machine = parse_gpus("8xA100-80G")
    split = {"rollout.engine": "vllm", "engine.zero_stage": 2}
    config = with_settings(config, split)
    config = with_settings(
        config, {"rollout.vllm": config.rollout.vllm.model_copy(update={"num_servers": 4})}
    )
    assert training_part(config, machine).count == 4
    plan = memory_plan(config, shape, training_part(config, machine))
    assert "generation" not in {phase.name for phase in plan.phases}
    servers = servers_of(config, shape, machine)
    assert servers is not None and 0 < servers.rows <= config.rollout.max_batch_size
    with pytest.raises(UserError, match=r"--gpus: 4 GPUs, and rollout\.vllm takes 4"):
        training_part(config, parse_gpus("4xA100-80G"))


@pytest.mark.parametrize("gpus", ["H200-141G", "4xH200-141G"])
def test_colocated_servers_are_one_a_rank_and_need_memory_while_they_write(gpus: str) -> None:
    config, shape = recipe("polaris_9b_lora_1gpu")
    colocated = config.rollout.vllm.model_copy(
        update={"placement": "colocated", "gpu_memory_utilization": 0.3}
    )
    config = with_settings(config, {"rollout.engine": "vllm", "rollout.vllm": colocated})
    machine = parse_gpus(gpus)
    assert training_part(config, machine) == machine and own_gpus(config) == 0
    plan = memory_plan(config, shape, machine)
    phases = {phase.name: dict(phase.pieces) for phase in plan.phases}
    sending, writing = phases.pop("weight update"), phases.pop("generation")
    assert sending.pop("vLLM server's weights") == 2 * shape.num_parameters
    assert sending.pop("weights on their way") > 2 * shape.largest_parameter
    assert sending.items() <= phases["forward"].items()
    assert plan.servers is not None and plan.servers.count == machine.count
    assert writing.pop("vLLM server") == int(0.3 * machine.memory_bytes)
    assert writing.items() <= phases["forward"].items()  # the trainer keeps its state
    assert not any("vLLM server" in pieces for pieces in phases.values())
    # one that shares a GPU without sleeping is there all the time
    awake = config.rollout.vllm.model_copy(update={"placement": "split", "transfer": "ipc"})
    plan = memory_plan(with_settings(config, {"rollout.vllm": awake}), shape, machine)
    assert all("vLLM server" in dict(phase.pieces) for phase in plan.phases)


def test_one_gpu_sheds_its_optimizer_without_a_launcher() -> None:
    config, shape = recipe("polaris_9b")
    config = with_settings(config, {"engine.kind": "replicated"})
    machine = parse_gpus("A100-80G")
    now = memory_plan(config, shape, machine)
    state = {"fp32 masters", "Adam moments", "gradients"}
    moved = with_settings(config, {"engine.offload_optimizer": True})
    offloaded = memory_plan(moved, shape, machine)
    assert not now.fits and offloaded.fits
    assert state <= {name for name, _ in now.peak_phase.pieces}
    assert not state & {name for phase in offloaded.phases for name, _ in phase.pieces}
    # masters, gradients and two moments in fp32, beside the model as it was read
    assert offloaded.engine.host == now.engine.host + 16 * shape.num_parameters
    eight_bits = memory_plan(with_settings(config, {"optim": "adamw_8bit"}), shape, machine)
    moments = dict(now.peak_phase.pieces)["Adam moments"]
    assert dict(eight_bits.peak_phase.pieces)["Adam moments"] == pytest.approx(
        moments * (2 + 8 / 256) / 8
    )


def test_zero_2_keeps_the_sums_of_bfloat16_gradients_on_the_gpu() -> None:
    config, shape = recipe("polaris_9b")
    config = with_settings(config, {"engine.offload_optimizer": True})
    machine = parse_gpus("4xA100-80G")
    shards, gradients = (
        memory_plan(with_settings(config, {"engine.zero_stage": stage}), shape, machine).engine
        for stage in (3, 2)
    )
    sums = 4 * shape.num_parameters
    assert shards.gradients == 0 and gradients.gradients == pytest.approx(sums / 4)
    assert shards.host - gradients.host == pytest.approx(sums)


def test_no_advice_leads_to_the_stage_that_bfloat16_may_not_have() -> None:
    config, shape = recipe("polaris_9b")
    config = with_settings(config, {"engine.kind": "replicated", "engine.zero_stage": 1})
    machine = parse_gpus("4xA100-80G")
    for advice in advise(config, shape, machine, memory_plan(config, shape, machine)):
        if "engine.kind=deepspeed" in advice.settings:
            assert advice.settings[1] in ("engine.zero_stage=2", "engine.zero_stage=3")


@pytest.mark.parametrize(("stage", "is_advised"), [(2, True), (3, False)])
def test_tiled_mlps_are_advised_where_no_weights_are_gathered(stage: int, is_advised: bool) -> None:
    config, shape = recipe("polaris_9b_12k")
    config = with_settings(config, {"engine.zero_stage": stage})
    machine = parse_gpus("4xA100-80G")
    advised = advise(config, shape, machine, memory_plan(config, shape, machine))
    assert (("mlp_tile_tokens=2048",) in {a.settings for a in advised}) is is_advised


REFUSED = {  # where a switch that is off would be refused
    "ZeRO-1 in float32": {"dtype": "float32", "engine.kind": "deepspeed", "engine.zero_stage": 1},
    "ZeRO-3's stage beside servers": {
        "engine.kind": "replicated", "engine.zero_stage": 3, "rollout.engine": "vllm",
    },
    "a run on the CPU": {"device": "cpu"},
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_run_takes_whatever_the_planner_advises(case: str) -> None:
    _, shape = recipe("polaris_9b")
    config = load_config("polaris_9b", {key: str(value) for key, value in REFUSED[case].items()})
    machine = parse_gpus("4xA100-80G")
    found = [
        a.settings for a in advise(config, shape, machine, memory_plan(config, shape, machine))
    ]
    remedy = smallest_remedy(config, shape, parse_gpus("4xRTX4090-24G"))
    found += [] if remedy is None else [remedy[0]]
    assert found
    for settings in found:
        keys = dict(setting.split("=") for setting in settings)
        load_config("polaris_9b", {k: str(v) for k, v in REFUSED[case].items()} | keys)


def test_a_remedy_leaves_out_what_cannot_be_combined() -> None:
    # 8-bit moments come first and are not enough, and DeepSpeed refuses them
    config, shape = recipe("polaris_9b")
    config = with_settings(config, {"engine.kind": "replicated", "engine.zero_stage": 2})
    remedy = smallest_remedy(config, shape, parse_gpus("4xA100-40G"))
    assert remedy is not None and remedy[1].fits
    assert "optim=adamw_8bit" not in remedy[0] and "engine.kind=deepspeed" in remedy[0]
    load_config("polaris_9b", {"engine.kind": "replicated"} | dict(s.split("=") for s in remedy[0]))


def test_liger_s_kernels_leave_less_for_backward() -> None:
    config, shape = recipe("polaris_9b_12k")
    config = with_settings(config, {"gradient_checkpointing": False})
    machine = parse_gpus("4xA100-80G")
    plain = memory_plan(config, shape, machine).micro_batch
    changed = with_settings(config, {"liger_kernels": True})
    liger = memory_plan(changed, shape, machine).micro_batch
    # silu's result, at least, and the norms' fp32 inputs
    tokens, width = config.packing.max_tokens_per_microbatch, shape.config.intermediate_size
    for kind, layer in plain.layers.items():
        assert layer.saved - liger.layers[kind].saved > 2 * tokens * width
    with pytest.raises(UserError, match="liger_kernels"):
        memory_plan(changed, shape, this_cpu())
