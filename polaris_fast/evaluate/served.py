"""Stories from vLLM servers that loaded the model themselves: no trainer, no weights on the way.

The fleet and the client are those of training; what training adds (weight updates, their labels,
servers that come back with the trainer's weights) has no place here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from ..config import Config
from ..model.load import is_multimodal, read_config
from ..rollout import Completion, RolloutRequest, SamplingParams
from ..rollout.vllm.arrivals import Finished, deliver
from ..rollout.vllm.client import VLLMClient
from ..rollout.vllm.errors import ServerError, Unreachable
from ..rollout.vllm.fleet import Fleet
from ..types import FinishReason

_PAUSE_S = 0.5  # before a row is asked for again; doubled each time


class ServedModel:
    """Draws completions on a fleet's servers, each row on the next one."""

    def __init__(self, config: Config, fleet: Fleet) -> None:
        self.fleet, self.settings = fleet, config.rollout.vllm
        self.capacity = config.rollout.max_batch_size * len(fleet.clients)

    def generate(
        self,
        requests: Sequence[RolloutRequest],
        params: SamplingParams,
        on_finish: Callable[[int, Completion], None],
        on_token: Callable[[int], None] | None = None,
    ) -> None:
        """Draw one completion a request, see `RolloutEngine`; `on_token` is called between rows.

        Raises:
            ServerError: a row failed `rollout.vllm.max_attempts` times, or a server refuses it.
        """
        write = partial(self._write_all, requests, params)
        deliver(self.fleet, write, len(requests), on_finish, on_token or (lambda missing: None))

    # on the fleet's loop ----------------------------------------------------------------------

    async def _write_all(
        self, requests: Sequence[RolloutRequest], params: SamplingParams, finished: Finished
    ) -> None:
        places = asyncio.Semaphore(self.capacity)
        clients = self.fleet.clients
        try:
            async with asyncio.TaskGroup() as rows:
                for index, request in enumerate(requests):
                    await places.acquire()
                    server = clients[index % len(clients)]
                    row = rows.create_task(self._write(server, index, request, params, finished))
                    row.add_done_callback(lambda _: places.release())
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None

    async def _write(
        self,
        server: VLLMClient,
        index: int,
        request: RolloutRequest,
        params: SamplingParams,
        finished: Finished,
    ) -> None:
        timeout_s, attempts = self.settings.request_timeout_s, self.settings.max_attempts
        for attempt in range(attempts):
            try:
                answer = await server.generate(request.prompt_ids, params, request.seed, timeout_s)
                reason = FinishReason(answer.finish_reason)
                break
            except (Unreachable, ValueError) as error:  # no such reason: the row was aborted
                if attempt + 1 == attempts:
                    raise ServerError(
                        f"rollout.vllm: {server.base_url}: a row failed {attempts} times, at last "
                        f"with {error}; {self.fleet.where_to_look()}; what was written is kept"
                    ) from error
                self.fleet.check_alive()
                await asyncio.sleep(_PAUSE_S * 2**attempt)
        finished.put((index, Completion(answer.token_ids, None, None, reason)))


@contextmanager
def serve_model(
    path: str, config: Config, log_dir: Path, backend: str, check_stop: Callable[[], None]
) -> Iterator[ServedModel]:
    """Launch servers for a model, or take those of `base_urls`; ended with the block.

    Args:
        backend: of weight transfer, which is not used: launched servers want one.

    Raises:
        ServerError: vLLM is not installed, or a server does not start.
    """
    text_only = config.rollout.vllm.launch and is_multimodal(read_config(path))
    with Fleet(config, path, log_dir=log_dir, backend=backend, text_only=text_only) as fleet:
        fleet.wait_ready(check_stop)
        yield ServedModel(config, fleet)
