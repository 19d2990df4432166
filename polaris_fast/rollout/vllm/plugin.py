"""What vLLM loads of this project in each of its processes (entry point `vllm.general_plugins`).

Imports nothing at module level: the entry point is found by every vLLM on the machine.
"""

from __future__ import annotations

# arch_prctl(ARCH_REQ_XCOMP_PERM, XTILEDATA) on x86-64 Linux
_SYS_ARCH_PRCTL, _REQUEST_PERMISSION, _TILE_DATA = 158, 0x1023, 18


def register() -> None:
    """Add the `gloo` weight transfer; on a CPU with AMX, permit its tiles to this process."""
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory as Factory
    from vllm.platforms import current_platform

    if "gloo" not in Factory._registry:  # the plugin may be loaded twice in a process
        Factory.register_engine("gloo", "polaris_fast.rollout.vllm.gloo_worker", "GlooReceiver")
    if current_platform.is_cpu():
        permit_amx()


def permit_amx() -> None:
    """Ask Linux for the AMX tile registers; vLLM's bf16 attention on CPUs uses them unasked.

    Without the permission its first tile instruction ends the process. A CPU or kernel without AMX
    refuses, and vLLM then takes other code.
    """
    import ctypes
    import platform

    if platform.system() == "Linux" and platform.machine() == "x86_64":
        ctypes.CDLL(None).syscall(_SYS_ARCH_PRCTL, _REQUEST_PERMISSION, _TILE_DATA)
