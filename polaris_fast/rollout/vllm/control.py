"""The requests of a weight update, to every server of a fleet at once."""

from __future__ import annotations

import base64
import pickle
from typing import Any

from .fleet import Fleet


class Control:
    """vLLM's `VLLMWeightSyncClient` over a whole fleet, for its trainer-side engines and ours."""

    def __init__(self, fleet: Fleet, timeout_s: float) -> None:
        self.fleet, self.timeout_s, self.version = fleet, timeout_s, ""
        self._sizes: list[int] | None = None

    @property
    def sizes(self) -> list[int]:
        """Workers of each server."""
        if self._sizes is None:
            asked = [c.repeat("GET", "/get_world_size", self.timeout_s) for c in self.fleet.clients]
            self._sizes = [int(answer["world_size"]) for answer in self.fleet.on_all(asked)]
        return self._sizes

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """`rank_offset`, where the transfer has one, is counted on from server to server."""
        bodies, offset = [], int(init_info.get("rank_offset", 0))
        for size in self.sizes:
            own = init_info | ({"rank_offset": offset} if "rank_offset" in init_info else {})
            bodies.append({"init_info": own})
            offset += size
        self.fleet.post("/init_weight_transfer_engine", self.timeout_s, bodies)

    def start_weight_update(self) -> None:
        self.fleet.post("/start_weight_update", self.timeout_s)

    def update_weights(self, update_info: dict[str, Any] | list[dict[str, Any]]) -> None:
        chunks = update_info if isinstance(update_info, list) else [update_info]
        sent = [_in_json(chunk) for chunk in chunks]
        body = {"update_info": sent if isinstance(update_info, list) else sent[0]}
        self.fleet.post("/update_weights", self.timeout_s, [body] * len(self.fleet.clients))

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        body = {"weight_version": weight_version or self.version}
        self.fleet.post("/finish_weight_update", self.timeout_s, [body] * len(self.fleet.clients))


def _in_json(update: dict[str, Any]) -> dict[str, Any]:
    """CUDA IPC handles are no JSON: vLLM's route takes them pickled, in base64."""
    handles = update.get("ipc_handles")
    if handles is None:
        return update
    rest = {name: value for name, value in update.items() if name != "ipc_handles"}
    return rest | {"ipc_handles_pickled": base64.b64encode(pickle.dumps(handles)).decode()}
