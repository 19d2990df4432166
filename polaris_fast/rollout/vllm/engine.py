"""`VLLMEngine`: rollouts on vLLM servers, each row handed over the moment it ends.

    servers <- one request a row (event loop's thread)
    rows    -> a queue -> `on_finish` and `on_token` on the caller's thread

A row whose server fails is asked for again, there or elsewhere; its seed is its own, so nothing
else changes. Rows end once: what was handed over is never written again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from queue import Empty, SimpleQueue

import torch

from ...config import Config
from ...types import FinishReason
from ..base import Completion, RolloutRequest, SamplingParams
from .client import Answer, VLLMClient
from .errors import ServerError, Unreachable
from .fleet import Fleet
from .logprobs import name_logps
from .routing import Router, by_prompt
from .sync import WeightSync

_POLL_S = 0.1  # how often the caller may look for a stop while no row ends

Finished = SimpleQueue[tuple[int, Completion] | None]


class VLLMEngine:
    """A `RolloutEngine` over the servers of a fleet; owns and closes the fleet."""

    serves_all_ranks = True

    def __init__(self, config: Config, fleet: Fleet, sync: WeightSync) -> None:
        self.settings, self.capacity = config.rollout.vllm, config.rollout.max_batch_size
        self.fleet, self._sync = fleet, sync
        self.version = ""  # label of the weights that the servers hold
        self._is_ready = False

    def close(self) -> None:
        """End the launched servers."""
        self.fleet.close()

    def sync(self, version: int, check_stop: Callable[[], None]) -> None:
        """Give the servers the trainer's weights; the first call waits until they have started.

        Raises:
            ServerError: a server is gone, or took longer than `sync_timeout_s`.
        """
        if not self._is_ready:
            self.fleet.wait_ready(check_stop)
            self._is_ready = True
        if self.version != str(version):
            self._sync.send(str(version))
            self.version = str(version)

    def generate(
        self,
        requests: Sequence[RolloutRequest],
        params: SamplingParams,
        on_finish: Callable[[int, Completion], None],
        on_token: Callable[[int], None] | None = None,
    ) -> None:
        """Draw one completion a request, see `RolloutEngine`; `on_token` is called between rows.

        Raises:
            ServerError: no server is left, or one drew with other weights than the trainer's.
        """
        finished: Finished = SimpleQueue()
        future = self.fleet.submit(self._write_all(requests, params, finished))
        future.add_done_callback(lambda _: finished.put(None))
        missing = len(requests)
        try:
            while True:
                try:
                    arrived = finished.get(timeout=_POLL_S)
                except Empty:
                    pass
                else:
                    if arrived is None:
                        break
                    missing -= 1
                    on_finish(*arrived)
                if on_token is not None:
                    on_token(missing)
        except BaseException:
            future.cancel()  # closes the connections, and the servers drop the rows
            raise
        future.result()

    # on the event loop ------------------------------------------------------------------------

    async def _write_all(
        self, requests: Sequence[RolloutRequest], params: SamplingParams, finished: Finished
    ) -> None:
        router = Router(self.fleet.clients, self.capacity)
        try:
            async with asyncio.TaskGroup() as rows:
                for group in by_prompt(requests, self.capacity):
                    server = await self._place(router, len(group))
                    for index in group:
                        rows.create_task(
                            self._write(router, server, index, requests[index], params, finished)
                        )
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None

    async def _write(
        self,
        router: Router[VLLMClient],
        server: VLLMClient,
        index: int,
        request: RolloutRequest,
        params: SamplingParams,
        finished: Finished,
    ) -> None:
        """One row, on its group's server, then on others if that one is lost."""
        attempt = 0
        while True:
            try:
                answer = await server.generate(
                    request.prompt_ids, params, request.seed, self.settings.request_timeout_s
                )
                self._check(server, answer, params)
                break
            except Unreachable as error:
                attempt += 1
                if attempt >= self.settings.max_attempts:
                    raise ServerError(
                        f"rollout.vllm: {server.base_url}: a row failed {attempt} times, at last "
                        f"with {error}; {self.fleet.where_to_look()}"
                    ) from error
                await pause_before_retry(attempt - 1)
                if not await server.is_healthy():
                    await router.lose(server)
                    server = await self._place(router, 1)
        await router.release(server)
        finished.put((index, self._completion(answer, params)))

    async def _place(self, router: Router[VLLMClient], num_rows: int) -> VLLMClient:
        server = await router.place(num_rows)
        if server is None:
            self.fleet.check_alive()
            raise ServerError(
                f"rollout.vllm: no server answers any more; {self.fleet.where_to_look()}, then go "
                "on with resume_from_checkpoint"
            )
        return server

    def _check(self, server: VLLMClient, answer: Answer, params: SamplingParams) -> None:
        """What is handed over is whole and of the trainer's weights."""
        if answer.finish_reason not in (FinishReason.STOP, FinishReason.LENGTH):
            raise Unreachable(f"the row ended with {answer.finish_reason!r}")
        drawn = len(answer.token_ids)
        if answer.finish_reason == FinishReason.LENGTH and drawn < params.max_completion_length:
            raise ServerError(
                f"rollout.vllm: {server.base_url} cut a row at {drawn} of "
                f"{params.max_completion_length} tokens; start it with a --max-model-len of at "
                "least max_prompt_length + max_completion_length"
            )
        if answer.versions != {self.version}:
            raise ServerError(
                f"rollout.vllm: {server.base_url} wrote with weights of version "
                f"{sorted(answer.versions)}, the trainer's are {self.version!r}; another trainer "
                "uses it, or it was restarted: give every run servers of its own"
            )

    def _completion(self, answer: Answer, params: SamplingParams) -> Completion:
        rollout, sampler = name_logps(
            answer.logps, processed=self.fleet.processed_logprobs, params=params
        )
        return Completion(answer.token_ids, rollout, sampler, FinishReason(answer.finish_reason))


async def pause_before_retry(attempt: int) -> None:
    """0.5 s, 1 s, 2 s and so on, at most 10 s."""
    await asyncio.sleep(min(10.0, 0.5 * 2**attempt))


def open_vllm(
    config: Config,
    fleet: Fleet,
    weights: Callable[[], Mapping[str, torch.Tensor]],
    device: torch.device,
) -> VLLMEngine:
    """The engine over a fleet that is sent `weights()`: a checkpoint's names, whole tensors."""
    return VLLMEngine(config, fleet, WeightSync(fleet, weights, device, config))
