"""GPUs that the planner knows: memory, peak rates, links. Vendors' figures, without sparsity.

Rates are what a data sheet promises; `Assumptions` says what share of them a run gets.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

import torch

from ..types import UserError
from .kernels import Device

GIB = 2**30


@dataclass(frozen=True)
class Machine:
    """Identical accelerators in one machine, or its CPU."""

    name: str
    count: int
    device: Device
    memory_bytes: int  # of one, as torch sees it
    bf16_flops: float  # per second, dense
    memory_bandwidth: float  # bytes per second
    link_bandwidth: float  # bytes per second, one direction, to its neighbours


@dataclass(frozen=True)
class _Gpu:
    tflops: float
    tb_per_s: float
    link_gb_per_s: float
    gib: dict[int, float]  # size in the name -> GiB that torch sees


_GPUS = {
    "A100": _Gpu(312, 2.04, 300, {40: 39.4, 80: 79.2}),
    "H100": _Gpu(989, 3.35, 450, {80: 79.2}),
    "H200": _Gpu(989, 4.80, 450, {141: 139.8}),
    "B200": _Gpu(2250, 7.70, 900, {180: 178.4}),
    "L40S": _Gpu(362, 0.86, 25, {48: 44.4}),
    "RTX4090": _Gpu(165, 1.01, 25, {24: 23.5}),
}
_FORM = re.compile(r"(?:(\d+)x)?([A-Za-z0-9]+)-(\d+)G", re.IGNORECASE)


def known_gpus() -> list[str]:
    """Names as `--gpus` takes them, without the count."""
    return [f"{name}-{size}G" for name, gpu in _GPUS.items() for size in gpu.gib]


def parse_gpus(text: str) -> Machine:
    """`4xA100-80G`, `H200-141G` or `cpu` -> the machine.

    Raises:
        UserError: another form, or a GPU that is not in the table; lists the known ones.
    """
    if text.lower() == "cpu":
        return this_cpu()
    form = _FORM.fullmatch(text)
    name, size = (form[2].upper(), int(form[3])) if form else ("", 0)
    if form is None or size not in getattr(_GPUS.get(name), "gib", {}) or form[1] == "0":
        raise UserError(
            f"--gpus: {text!r} is not known; write NxNAME-MEMG such as 4xA100-80G (or cpu) with "
            f"NAME-MEMG one of {', '.join(known_gpus())}"
        )
    gpu = _GPUS[name]
    return Machine(
        name=f"{name}-{size}G",
        count=int(form[1] or 1),
        device="cuda",
        memory_bytes=int(gpu.gib[size] * GIB),
        bf16_flops=gpu.tflops * 1e12,
        memory_bandwidth=gpu.tb_per_s * 1e12,
        link_bandwidth=gpu.link_gb_per_s * 1e9,
    )


def this_machine() -> Machine:
    """The GPUs that torch finds here, else the CPU."""
    if not torch.cuda.is_available():
        return this_cpu()
    found = torch.cuda.get_device_properties(0)
    names = [name for name in _GPUS if name in found.name.upper().replace(" ", "")]
    gpu = _GPUS[names[0]] if names else _GPUS["A100"]
    return Machine(
        name=found.name if names else f"{found.name} (rates of an A100)",
        count=torch.cuda.device_count(),
        device="cuda",
        memory_bytes=found.total_memory,
        bf16_flops=gpu.tflops * 1e12,
        memory_bandwidth=gpu.tb_per_s * 1e12,
        link_bandwidth=gpu.link_gb_per_s * 1e9,
    )


def this_cpu() -> Machine:
    """One process on this machine's CPU; its rates are rough."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    cores = torch.get_num_threads()
    return Machine("CPU", 1, "cpu", memory, cores * 5e10, 2e10, 1e10)
