"""How completions are written: in place, or on vLLM servers."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from ..types import UserError
from .section import Section


class VLLMConfig(Section):
    """vLLM servers that write the rollouts when `rollout.engine` is vllm."""

    launch: bool = True
    """Start the servers with the run and stop them with it; false: `base_urls` are used."""
    base_urls: list[str] = Field(default_factory=list)
    """Servers that run already, such as http://10.0.0.2:8000; started as docs/vllm.md says."""
    num_servers: int = Field(1, ge=1)
    """Servers to launch, each with `tensor_parallel_size` GPUs."""
    gpus: list[int] = Field(default_factory=list)
    """GPUs of the launched servers in order, as in CUDA_VISIBLE_DEVICES; other ones than those of
    the ranks, but for `ipc`. Empty: no GPUs, or the trainer's."""
    tensor_parallel_size: int = Field(1, ge=1)
    """GPUs that share one server's model."""
    gpu_memory_utilization: float | None = Field(None, gt=0, le=1)
    """Share of a GPU's memory that a launched server takes; null: vLLM's own."""
    cpu_kv_cache_gib: int = Field(1, ge=1)
    """Memory for keys and values of a launched server without a GPU, GiB."""
    extra_args: list[str] = Field(default_factory=list)
    """Further arguments of launched servers, such as [--enforce-eager]; they win."""
    placement: Literal["split", "colocated"] = "split"
    """`split`: servers have GPUs of their own; `colocated`: each rank launches one on its own GPU,
    which sleeps while the rank trains."""
    transfer: Literal["auto", "nccl", "ipc", "gloo"] = "auto"
    """How weights reach the servers: `nccl` to other GPUs, `ipc` to a server on the trainer's GPU,
    `gloo` between CPUs; auto: nccl with a GPU, gloo without."""
    start_timeout_s: float = Field(900.0, gt=0)
    """Limit on the start of the servers."""
    sync_timeout_s: float = Field(300.0, gt=0)
    """Limit on one update of their weights."""
    request_timeout_s: float = Field(3600.0, gt=0)
    """Limit on one completion, waiting in the server included."""
    max_attempts: int = Field(4, ge=1)
    """Tries for one completion before the run stops."""
    max_restarts: int = Field(3, ge=0)
    """How often lost servers are started again (given ones waited for, `start_timeout_s` each time)
    before the run stops."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.launch and self.base_urls:
            raise ValueError(
                f"launch is true and base_urls are given ({', '.join(self.base_urls)}); set launch "
                "to false to use these servers, or drop base_urls"
            )
        several = max(self.num_servers, len(self.base_urls), self.tensor_parallel_size) > 1
        if self.transfer == "ipc" and several:
            raise ValueError(
                "transfer ipc reaches one server, on the trainer's GPU alone; set num_servers and "
                "tensor_parallel_size to 1, or transfer to nccl"
            )
        if self.placement == "colocated":
            self._check_colocated()
        need = self.num_servers * self.tensor_parallel_size
        if self.gpus and len(self.gpus) != need:
            raise ValueError(
                f"gpus must name num_servers * tensor_parallel_size = {need} GPUs, got {self.gpus}"
            )
        return self

    def _check_colocated(self) -> None:
        one = self.num_servers == self.tensor_parallel_size == 1 and self.launch and not self.gpus
        if not one:
            raise ValueError(
                "placement colocated launches one server on each rank's own GPU: leave launch, "
                "num_servers, tensor_parallel_size and gpus as they are, or set placement to split "
                f"(got launch={self.launch}, num_servers={self.num_servers}, "
                f"tensor_parallel_size={self.tensor_parallel_size}, gpus={self.gpus})"
            )
        if self.transfer not in ("auto", "ipc"):
            raise ValueError(
                f"transfer {self.transfer} cannot reach a server on the trainer's own GPU; set it "
                "to auto with placement colocated"
            )
        if self.gpu_memory_utilization is None:
            raise ValueError(
                "placement colocated shares each GPU between trainer and server: set "
                "gpu_memory_utilization to the server's share while it writes, such as 0.3"
            )

    @property
    def shares_trainers_gpu(self) -> bool:
        """Whether a server takes its memory from a GPU that a rank trains on."""
        return self.placement == "colocated" or self.transfer == "ipc"

    def gpus_of(self, number: int) -> list[int]:
        """GPUs of the launched server of this number, from 0."""
        size = self.tensor_parallel_size
        return self.gpus[number * size : (number + 1) * size]

    def transfer_on(self, device_type: str) -> str:
        """`transfer`, settled for a trainer on "cpu" or "cuda".

        Raises:
            UserError: it cannot work there.
        """
        transfer = self.transfer
        if self.placement == "colocated":
            transfer = "ipc"
        if transfer == "auto":
            transfer = "nccl" if device_type == "cuda" else "gloo"
        if transfer != "gloo" and device_type != "cuda":
            raise UserError(
                f"rollout.vllm.transfer: {transfer} needs a GPU, the trainer is on {device_type}; "
                "set it to auto"
            )
        if transfer == "nccl" and self.launch and not self.gpus:
            raise UserError(
                "rollout.vllm.gpus: name the GPUs of the launched servers, such as [1], which no "
                "rank trains on; with a single GPU set rollout.vllm.transfer to ipc and "
                "rollout.vllm.gpu_memory_utilization to the servers' share of it"
            )
        return transfer


class RolloutConfig(Section):
    """How completions are generated."""

    engine: Literal["hf", "vllm"] = "hf"
    """Rollout engine; `hf` generates with the training weights in place, `vllm` on servers."""
    max_batch_size: int = Field(64, ge=1)
    """Rows decoded together, on each vLLM server; finished rows leave the batch."""
    max_staleness: int = Field(0, ge=0)
    """Steps by which the weights that draw a token may be older than those that train on it; above
    0 later batches are written while earlier ones train (vllm; needs `is_correction`)."""

    vllm: VLLMConfig = VLLMConfig()

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.engine == "vllm" and not self.vllm.launch and not self.vllm.base_urls:
            raise ValueError(
                "vllm.launch is false and vllm.base_urls is empty; give the servers' URLs, or set "
                "vllm.launch to true"
            )
        return self
