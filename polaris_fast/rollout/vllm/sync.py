"""The trainer's weights into the servers, by vLLM's weight-transfer API.

    pause (ends rows, forgets cached prefixes) -> start -> update, while the weights are sent
    -> finish (with the version's label) -> resume

How they travel is the transfer's business: `gloo` between CPUs is ours, `nccl` (servers on other
GPUs) and `ipc` (a server on the trainer's GPU) are vLLM's. Weights go under the names that they
have in a checkpoint, adapters merged; vLLM maps, stacks and shards them itself.
"""

from __future__ import annotations

import torch

from ...config import Config
from .control import Control
from .fleet import Fleet
from .side_by_side import within
from .transfer import CudaTransfer, GlooTransfer, Transfer, Weights


class WeightSync:
    """Sends a model's weights to every server of a fleet."""

    def __init__(
        self, fleet: Fleet, weights: Weights, device: torch.device, config: Config
    ) -> None:
        """
        Args:
            weights: gives the present weights as a checkpoint would hold them, whole.
            device: where they are.
        """
        self.fleet, self.timeout_s = fleet, config.rollout.vllm.sync_timeout_s
        self.control = Control(fleet, self.timeout_s)
        kind = config.rollout.vllm.transfer_on(device.type)
        self.transfer: Transfer = (
            GlooTransfer(self.control, weights, self.timeout_s)
            if kind == "gloo"
            else CudaTransfer(kind, self.control, weights, device)
        )
        self._connected = False

    def send(self, version: str) -> None:
        """Servers write with the model's present weights, labelled `version`, when this returns.

        Raises:
            ServerError: a server refused, is gone, or the transfer took longer than
                `rollout.vllm.sync_timeout_s`. The servers stay paused: their weights are mixed.
        """
        self.control.version = version
        within(self.timeout_s, self._send, self.fleet)

    def _send(self) -> None:
        if not self._connected:
            self.transfer.connect()
            self._connected = True
        # Whatever runs is of an abandoned step.
        self.fleet.post("/pause?mode=abort", self.timeout_s)
        self.transfer.send()
        self.fleet.post("/resume", self.timeout_s)
