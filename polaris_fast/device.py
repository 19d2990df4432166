"""Which device a process uses: the configuration's `device`, and the rank's own GPU."""

from __future__ import annotations

import sys

import torch

from .config import Config
from .types import UserError

_GPU_ONLY = ("fla", "causal_conv1d")


def choose_device(config: Config, local_rank: int = 0) -> torch.device:
    """The device of a process; a GPU becomes its current one, a CPU hides kernels made for GPUs.

    Args:
        local_rank: of the process among those of this machine; each has a GPU of its own.

    Raises:
        UserError: `device: cuda` without a GPU, or more ranks on this machine than GPUs.
    """
    if config.device == "cuda" and not torch.cuda.is_available():
        raise UserError("device: cuda asked for, but torch finds no GPU; set device to auto or cpu")
    if config.device == "cpu" or not torch.cuda.is_available():
        _hide_gpu_kernels()
        return torch.device("cpu")
    if local_rank >= torch.cuda.device_count():
        raise UserError(
            f"torchrun --nproc-per-node: rank {local_rank} of this machine has no GPU of its "
            f"own, torch finds {torch.cuda.device_count()}; start at most so many ranks, or set "
            "device: cpu"
        )
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


def _hide_gpu_kernels() -> None:
    """Let packages of GPU kernels count as not installed in this process.

    transformers calls them for tensors on a CPU as well, wherever they can be imported.
    """
    for name in _GPU_ONLY:
        sys.modules.setdefault(name, None)  # type: ignore[arg-type]
