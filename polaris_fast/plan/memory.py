"""The memory of one rank, phase by phase, and its peak."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..config import Config
from ..model.layer_kernels import check_layer_kernels
from ..model.memory import logits_chunk_bytes
from .activations import MicroBatchBytes, micro_batch_bytes
from .generation import generation_bytes
from .hardware import GIB, Machine
from .head import HeadBytes, head_bytes
from .sample import trained_parameters
from .servers import Servers, servers_of
from .shapes import ModelShape
from .state import EngineBytes, engine_bytes

# CUDA context with the kernels of a run, and NCCL's buffers where there are several ranks.
_CONTEXT_BYTES = int(0.6 * GIB)
_NCCL_BYTES = int(0.8 * GIB)
# Of what torch holds: blocks that are free but of the wrong size.
FRAGMENTATION = 0.05

Piece = tuple[str, int]


@dataclass(frozen=True)
class Phase:
    """One phase of a step: what is alive at its peak, largest terms named."""

    name: str
    pieces: tuple[Piece, ...]

    @property
    def bytes(self) -> int:
        """What tensors need in this phase."""
        return sum(size for _, size in self.pieces)


@dataclass(frozen=True)
class MemoryPlan:
    """One rank's memory for micro-batches of given rows."""

    rows: tuple[tuple[int, int], ...]  # (prompt, completion) tokens of the micro-batch
    phases: tuple[Phase, ...]
    engine: EngineBytes
    micro_batch: MicroBatchBytes
    head: HeadBytes
    servers: Servers | None
    overhead: int  # context and communication
    available: int

    @property
    def peak_phase(self) -> Phase:
        """The phase that needs most."""
        return max(self.phases, key=lambda phase: phase.bytes)

    @property
    def margin(self) -> int:
        """For fragmentation; a CPU's allocator needs none."""
        return int(self.peak_phase.bytes * FRAGMENTATION) if self.overhead else 0

    @property
    def total(self) -> int:
        """Peak with margin and overhead."""
        return self.peak_phase.bytes + self.margin + self.overhead

    @property
    def fits(self) -> bool:
        """Whether the machine has that much."""
        return self.total <= self.available


def memory_plan(
    config: Config,
    shape: ModelShape,
    machine: Machine,
    rows: Sequence[tuple[int, int]] | None = None,
) -> MemoryPlan:
    """Predict the peak of a rank.

    Args:
        config: with `max_completion_length` resolved.
        machine: the ranks' part, see `servers.training_part`.
        rows: (prompt, completion) tokens of the largest micro-batch; None: one row that fills it.

    Raises:
        UserError: a switch cannot be had on that machine or in that model.
    """
    if config.liger_kernels:
        check_layer_kernels(torch.device(machine.device))
    rows = tuple(rows or [_longest_row(config)])
    sizes = shape.config.hidden_size, shape.config.vocab_size
    head = head_bytes(
        sum(completion for _, completion in rows),
        *sizes,
        dtype=getattr(torch, config.dtype),
        logits_dtype=config.logits_dtype,
        device=machine.device,
        chunk_bytes=logits_chunk_bytes(config, *sizes, machine.device),
        frozen=config.lora.r > 0,
    )
    micro_batch = micro_batch_bytes(
        shape,
        rows,
        head,
        config,
        machine.device,
    )
    kept = micro_batch.saved
    if config.offload_activations and machine.device == "cuda":
        micro_batch = micro_batch.offloaded()
    trained = trained_parameters(config, shape)
    engine = engine_bytes(config, shape, trained, machine.count, machine.device)
    host = engine.host + machine.count * (kept - micro_batch.saved)
    engine = engine.scaled(host=host)
    servers = servers_of(config, shape, machine)
    is_gpu = machine.device == "cuda"
    return MemoryPlan(
        rows=rows,
        phases=_phases(config, shape, machine, engine, micro_batch, head, servers),
        engine=engine,
        micro_batch=micro_batch,
        head=head,
        servers=servers,
        overhead=(_CONTEXT_BYTES + _NCCL_BYTES * (machine.count > 1)) if is_gpu else 0,
        available=machine.memory_bytes,
    )


def _longest_row(config: Config) -> tuple[int, int]:
    prompt = config.max_prompt_length
    return prompt, config.packing.max_tokens_per_microbatch - prompt


def _phases(
    config: Config,
    shape: ModelShape,
    machine: Machine,
    engine: EngineBytes,
    micro_batch: MicroBatchBytes,
    head: HeadBytes,
    servers: Servers | None,
) -> tuple[Phase, ...]:
    state = [
        ("weights", engine.weights),
        ("reference model", engine.reference),
        ("fp32 masters", engine.masters),
        ("Adam moments", engine.moments),
    ]
    # On the CPU the head keeps its buffers from call to call.
    state.append(("head's workspace", head.workspace))
    writing, sending = [], []
    if servers is not None and servers.sleeps:
        writing = [*state, ("vLLM server", servers.memory)]
        state.append(("sleeping server's context", _CONTEXT_BYTES * (machine.device == "cuda")))
        sending = [("vLLM server's weights", servers.weights)]
    elif servers is not None and servers.shares_gpus:
        state.append(("vLLM server", servers.memory))
    elif servers is None:
        gathered = ("gathered weights", engine.gather)
        writing = [*state, gathered, *generation_bytes(config, shape, machine.count)]
    training = [*state, ("gradients", engine.gradients), ("engine's buffers", engine.buffers)]
    saved = micro_batch.saved
    # Servers on other GPUs, or awake all the time, add nothing to what training needs.
    phases = [Phase("generation", _present(writing))] if writing else []
    if servers is not None and servers.transfer:
        sending = [*state, *sending, ("weights on their way", servers.transfer)]
        phases.insert(0, Phase("weight update", _present(sending)))
    for name, peak in micro_batch.peaks().items():
        on_the_way = engine.backward if name == "backward" else 0
        kept = min(saved, peak)
        pieces = [
            *training,
            ("saved activations", kept),
            ("working tensors", peak - kept + on_the_way),
        ]
        phases.append(Phase(name, _present(pieces)))
    phases.append(Phase("optimizer", _present([*training, ("working tensors", engine.update)])))
    return tuple(phases)


def _present(pieces: Sequence[Piece]) -> tuple[Piece, ...]:
    return tuple((name, size) for name, size in pieces if size)
