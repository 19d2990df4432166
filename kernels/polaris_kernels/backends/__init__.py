"""Backends: who computes the head. Chosen by device, overridden by argument or environment.

`POLARIS_KERNELS_BACKEND` names one for the whole process; the `backend=` argument wins over it. A
backend that was asked for and is not there is an error, never another one in silence.
"""

import os
from collections.abc import Callable

import torch

from .base import HeadBackend, Statistics
from .torch_chunked import TorchBackend

__all__ = ["HeadBackend", "Statistics", "active_backend", "available_backends", "get_backend"]

ENVIRONMENT_KEY = "POLARIS_KERNELS_BACKEND"

_FACTORIES: dict[str, Callable[[], HeadBackend]] = {TorchBackend.name: lambda: TorchBackend()}
# first name that serves the device wins
_PREFERENCE: dict[str, tuple[str, ...]] = {"cpu": ("torch",), "cuda": ("torch",)}
_instances: dict[str, HeadBackend] = {}


def available_backends() -> tuple[str, ...]:
    """Names that `backend=` and `POLARIS_KERNELS_BACKEND` accept here."""
    return tuple(_FACTORIES)


def active_backend(device: torch.device | str) -> str:
    """The name of the backend that a call on `device` uses when it names none."""
    return get_backend(torch.device(device)).name


def get_backend(device: torch.device, name: str | None = None) -> HeadBackend:
    """The backend called `name`, else the environment's, else the device's first choice."""
    source = "backend argument"
    if name is None and (name := os.environ.get(ENVIRONMENT_KEY) or None):
        source = ENVIRONMENT_KEY
    if name is None:
        name = _PREFERENCE.get(device.type, ("torch",))[0]
    if name not in _FACTORIES:
        raise ValueError(
            f"polaris_kernels: {source} asks for backend {name!r}, which is not available here; "
            f"available: {', '.join(_FACTORIES)}"
        )
    if name not in _instances:
        _instances[name] = _FACTORIES[name]()
    return _instances[name]
