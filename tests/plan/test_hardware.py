"""Names of GPUs as `--gpus` takes them."""

from __future__ import annotations

import pytest

from polaris_fast.plan.hardware import GIB, known_gpus, parse_gpus
from polaris_fast.types import UserError


def test_a_name_tells_count_and_memory() -> None:
    machine = parse_gpus("4xA100-80G")
    assert (machine.count, machine.device) == (4, "cuda")
    assert 78 * GIB < machine.memory_bytes < 80 * GIB
    assert parse_gpus("a100-40g").memory_bytes < machine.memory_bytes / 1.9
    assert parse_gpus("H200-141G").count == 1


def test_every_known_gpu_parses() -> None:
    for name in known_gpus():
        machine = parse_gpus(f"8x{name}")
        assert (machine.count, machine.name) == (8, name)
        assert machine.bf16_flops > 1e14 and machine.memory_bandwidth > 5e11


@pytest.mark.parametrize("text", ["4xA100", "A100-81G", "4xTPU-80G", "0xA100-80G", "", "4A100-80G"])
def test_other_names_are_refused_with_the_known_ones(text: str) -> None:
    with pytest.raises(UserError, match=r"--gpus.*NxNAME-MEMG.*A100-80G.*H200-141G"):
        parse_gpus(text)
