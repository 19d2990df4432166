"""Backends: who computes the head. Chosen by device, overridden by argument or environment.

`POLARIS_KERNELS_BACKEND` names one for the whole process; the `backend=` argument wins over it. A
backend that was asked for and is not there is an error, never another one in silence.
"""

import logging
import os
from collections.abc import Callable
from importlib.util import find_spec

import torch

from . import cuda_library, native_library
from .base import HeadBackend, Statistics
from .torch_chunked import TorchBackend

__all__ = ["HeadBackend", "Statistics", "active_backend", "available_backends", "get_backend"]

ENVIRONMENT_KEY = "POLARIS_KERNELS_BACKEND"

log = logging.getLogger("polaris_kernels")


def _native(device: torch.device) -> HeadBackend:
    from .native import NativeBackend

    return NativeBackend()


def _triton(name: str, *, drops_rows: bool) -> HeadBackend:
    # Triton takes a second to import and reads its environment when it is
    from .triton_chunked import TritonBackend

    return TritonBackend(name, drops_rows=drops_rows)


def _cuda(device: torch.device) -> HeadBackend:
    from .cuda_probe import checked_rows
    from .triton_chunked import TritonBackend

    return TritonBackend("cuda", kernels=checked_rows(device))


_FACTORIES: dict[str, Callable[[torch.device], HeadBackend]] = {
    TorchBackend.name: lambda device: TorchBackend()
}
if native_library.PATH.exists():
    _FACTORIES["native"] = _native
if find_spec("triton") is not None:
    _FACTORIES["triton"] = lambda device: _triton("triton", drops_rows=False)
    # waits for the device once a chunk, so nobody gets it without asking
    _FACTORIES["triton_compact"] = lambda device: _triton("triton_compact", drops_rows=True)
    if cuda_library.PATH.exists():
        _FACTORIES["cuda"] = _cuda
# first available name that serves the device wins
_PREFERENCE: dict[str, tuple[str, ...]] = {
    "cpu": ("native", "torch"),
    "cuda": ("cuda", "triton", "torch"),
}
# what is compiled, and only runs on these devices
_COMPILED = {
    "native": ("cpu", "the CPU", native_library),
    "cuda": ("cuda", "CUDA devices", cuda_library),
}
# by name, but for what is probed on each device: by name and device
_instances: dict[str, HeadBackend] = {}
_chosen: dict[torch.device, HeadBackend] = {}


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
        return _first_choice(_with_index(device))
    if name not in _FACTORIES:
        hint = f"; {_COMPILED[name][2].REBUILD}" if name in _COMPILED else ""
        raise ValueError(
            f"polaris_kernels: {source} asks for backend {name!r}, which is not available here; "
            f"available: {', '.join(_FACTORIES)}{hint}"
        )
    if name in _COMPILED and device.type != _COMPILED[name][0]:
        raise ValueError(
            f"polaris_kernels: {source} asks for backend {name!r}, which runs on "
            f"{_COMPILED[name][1]} only, for tensors on {device}; move them or choose another "
            "backend"
        )
    return _instance(name, _with_index(device))


def _instance(name: str, device: torch.device) -> HeadBackend:
    # chips of one machine may differ, and the right numbers of one say nothing of another's
    key = f"{name} on {device}" if name == "cuda" else name
    if key not in _instances:
        _instances[key] = _FACTORIES[name](device)
    return _instances[key]


def _with_index(device: torch.device) -> torch.device:
    """The device itself: "cuda" is the current one, and there is one CPU."""
    if device.type != "cuda":
        return torch.device(device.type)
    if device.index is None and torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return device


def _first_choice(device: torch.device) -> HeadBackend:
    """The first backend in the device's preference that works; what it replaces is logged, once."""
    if device not in _chosen:
        skipped, is_final = "", True
        for name in _PREFERENCE.get(device.type, ("torch",)):
            if name in _COMPILED and name not in _FACTORIES:
                library = _COMPILED[name][2]
                skipped = f" ({library.PATH.name} is missing: {library.REBUILD})"
            if name not in _FACTORIES:
                continue
            try:
                found = _instance(name, device)
            except native_library.NotNow as error:
                skipped, is_final = f" ({error})", False
                continue
            except native_library.LibraryError as error:
                skipped = f" ({error})"
                continue
            level = logging.WARNING if skipped else logging.INFO
            log.log(level, "head on %s: %s backend%s", device, name, skipped)
            if not is_final:
                return found
            _chosen[device] = found
            break
    return _chosen[device]
