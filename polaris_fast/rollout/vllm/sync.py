"""The trainer's weights into the servers, by vLLM's weight-transfer API.

    pause (forgets cached prefixes) -> start -> update, while the weights are sent
    -> finish (with the version's label) -> resume

Rows in flight are ended by a pause, or kept: then they go on with the new weights, their keys and
values computed anew.

Servers on the trainer's GPU (`colocated`) sleep while it trains, and an update wakes them in two
parts, so that keys and values get their memory when the transfer's is free again. Whoever needs
memory comes after the other has given it back:

    server                                      trainer
    starts: measures the free memory, takes
        its share, says it is healthy           waits, holds nothing yet
    sleeps                                      loads the model, optimizer and reference
    |                                           gives back what its allocator caches
    wakes: weights                              sends
    |                                           gives back the transfer's memory
    wakes: keys and values; writes              waits
    sleeps                                      trains, and so on

vLLM takes any change of the free memory while it starts for its own doing, so the trainer must not
move then: it starts before the trainer has anything, and when it is lost and starts again, the
trainer stands still.

How they travel is the transfer's business: `gloo` between CPUs is ours, `nccl` (servers on other
GPUs) and `ipc` (a server on the trainer's GPU) are vLLM's. Weights go under the names that they
have in a checkpoint, adapters merged; vLLM maps, stacks and shards them itself.
"""

from __future__ import annotations

from contextlib import suppress

import torch

from ...config import Config
from .control import Control
from .errors import ServerError, Unreachable
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
            weights: gives the present weights as a checkpoint would hold them; adapters are merged
                tensor by tensor on their way.
            device: where they are.
        """
        self.fleet, self.timeout_s = fleet, config.rollout.vllm.sync_timeout_s
        self.shares_gpu = config.rollout.vllm.shares_trainers_gpu
        self.control = Control(fleet, self.timeout_s)
        kind = config.rollout.vllm.transfer_on(device.type)
        self.transfer: Transfer = (
            GlooTransfer(self.control, weights, self.timeout_s)
            if kind == "gloo"
            else CudaTransfer(kind, self.control, weights, device)
        )
        self._connected = False

    def send(self, version: str, *, keep_rows: bool = False) -> None:
        """Servers write with the model's present weights, labelled `version`, when this returns.

        Args:
            keep_rows: rows in flight go on with the new weights; else they are ended.

        Raises:
            ServerError: a server refused, is gone, or the transfer took longer than
                `rollout.vllm.sync_timeout_s`. The servers stay paused: their weights are mixed.
        """
        self.control.version = version
        try:
            within(self.timeout_s, lambda: self._send(keep_rows), self.fleet)
        except BaseException:
            self._disconnect()
            raise

    def forget_connections(self) -> None:
        """A server was started anew: the next `send` meets all of them again, awake."""
        self._disconnect()
        self.fleet.asleep = False

    def end_update(self) -> None:
        """Close an update that broke off, so that the next `send` may start one; rows still wait.

        vLLM refuses to start a second one, and to finish one that was not started.
        """
        path, body = "/finish_weight_update", {"weight_version": None}
        for client in self.fleet.clients:
            with suppress(ServerError, Unreachable):
                self.fleet.call(client.request("POST", path, self.timeout_s, body))

    def give_back_cache(self) -> None:
        """A server on the trainer's GPU may have what the trainer's allocator holds unused."""
        if self.shares_gpu:
            torch.cuda.empty_cache()  # does nothing in a process that uses no GPU

    def _disconnect(self) -> None:
        self.transfer.disconnect()
        self._connected = False

    def _send(self, keep_rows: bool) -> None:
        self.give_back_cache()
        if self.fleet.asleep:
            self.fleet.repeat("/wake_up?tags=weights", self.timeout_s)
        if not self._connected:
            self.transfer.connect()
            self._connected = True
        if not self.fleet.asleep:  # a sleeping server is paused
            self.fleet.repeat(f"/pause?mode={'keep' if keep_rows else 'abort'}", self.timeout_s)
        self.transfer.send()
        self.give_back_cache()
        if self.fleet.asleep:
            self.fleet.repeat("/wake_up?tags=kv_cache", self.timeout_s)
            self.fleet.asleep = False
        self.fleet.repeat("/resume", self.timeout_s)
