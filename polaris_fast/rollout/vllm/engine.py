"""`VLLMEngine`: rollouts on vLLM servers, each row handed over the moment it ends.

    servers <- one request a row (event loop's thread)
    rows    -> a queue -> `on_finish` and `on_token` on the caller's thread

A row whose server fails is asked for again, there or elsewhere; its seed is its own, so nothing
else changes. Rows end once: what was handed over is never written again. A server that is lost is
brought back, with the weights, by the training thread: no other may read them.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Sequence
from functools import partial

import torch

from ...config import Config
from ...types import FinishReason, VersionSpan
from ..base import Completion, RolloutRequest, SamplingParams
from .arrivals import Finished, deliver
from .client import Answer, VLLMClient
from .errors import Dropped, ServerError, Unreachable
from .fleet import Fleet
from .logprobs import name_logps
from .routing import Router, by_prompt
from .sync import WeightSync
from .transfer import Weights

log = logging.getLogger(__name__)


class VLLMEngine:
    """A `RolloutEngine` over the servers of a fleet; owns and closes the fleet."""

    def __init__(self, config: Config, fleet: Fleet, sync: WeightSync) -> None:
        self.settings, self.capacity = config.rollout.vllm, config.rollout.max_batch_size
        self.fleet, self._sync = fleet, sync
        self.version = ""  # label of the weights that the servers hold
        self.num_revivals = 0
        self._labels: list[str] = []  # of all weights that were sent, and those on their way
        self._sleeps = self.settings.placement == "colocated"
        self.serves_all_ranks = not self._sleeps  # a server on each rank's GPU writes its share
        self._lost: set[VLLMClient] = set()
        # one a running `generate`: a batch may be written while held-out prompts are
        self._routers: set[Router[VLLMClient]] = set()
        self._training_thread = threading.get_ident()

    def close(self) -> None:
        """End the launched servers."""
        self.fleet.close()

    def sync(self, version: int, check_stop: Callable[[], None]) -> None:
        """Give the servers the trainer's weights; the first call waits until they have started.

        Rows in flight, of another thread's `generate`, go on with the new weights. Servers that are
        lost are brought back first.

        Raises:
            ServerError: a server cannot be brought back, or took longer than `sync_timeout_s`.
        """
        self._training_thread = threading.get_ident()
        if not self.fleet.is_ready:
            self.fleet.wait_ready(check_stop)
        self._lost.update(self.fleet.ended())
        if self.version != str(version) or self._lost:
            self._send(str(version), check_stop)

    def mend(self, version: int, check_stop: Callable[[], None]) -> None:
        """Bring lost servers back, with the weights of `version`; see `RolloutEngine`."""
        if self._lost:
            self.sync(version, check_stop)

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
        if self.fleet.asleep:
            self._send(self.version, lambda: None)
        # Known to `_send` before it is filled: it hears of a server that returns meanwhile.
        router: Router[VLLMClient] = Router((), self.capacity)
        self._routers.add(router)
        present = [client for client in self.fleet.clients if client not in self._lost]
        self.fleet.call(router.restore(present))

        def look(missing: int) -> None:
            if on_token is not None:
                on_token(missing)
            if self._lost and threading.get_ident() == self._training_thread:
                self._send(self.version, partial(on_token or _ignore, missing))

        write = partial(self._write_all, router, requests, params)
        try:
            deliver(self.fleet, write, len(requests), on_finish, look)
        finally:
            self._routers.discard(router)
        if self._sleeps:
            self._to_sleep()

    def _to_sleep(self) -> None:
        """The rows are there: servers that do not sleep are ended, and lost until the next use."""
        try:
            self.fleet.sleep()
        except ServerError as error:
            log.warning("%s; the server is ended, for the trainer needs its memory", error)
            self.fleet.stop_launched()
            self._lost.update(self.fleet.clients)

    def _send(self, label: str, check_stop: Callable[[], None]) -> None:
        """All servers hold the present weights under this label, whoever is lost meanwhile."""
        if label not in self._labels:
            self._labels.append(label)
        is_second_try = False
        while True:
            revived = self._revive(check_stop)
            try:
                self._sync.send(label, keep_rows=bool(self._routers))
                break
            except ServerError as error:
                silent = self.fleet.silent()
                if silent:
                    # The others hold half an update; launched ones can begin anew.
                    self._lost.update(self.fleet.clients if self.fleet.launched else silent)
                elif isinstance(error.__cause__, Dropped) and not is_second_try:
                    is_second_try = True
                    log.warning("%s; the update is begun again", error)
                    self._sync.end_update()
                else:
                    raise
        self.version = label
        self._lost -= revived
        for router in list(self._routers) if revived else []:
            self.fleet.call(router.restore(revived))

    def _revive(self, check_stop: Callable[[], None]) -> set[VLLMClient]:
        """Start or await what is lost."""
        lost = set(self._lost)
        if not lost:
            return lost
        self.num_revivals += 1
        if self.num_revivals > self.settings.max_restarts:
            self.fleet.check_alive()
            raise ServerError(
                f"rollout.vllm: servers were lost more than max_restarts = "
                f"{self.settings.max_restarts} times; {self.fleet.where_to_look()}, then go on "
                "with resume_from_checkpoint, or raise rollout.vllm.max_restarts"
            )
        # Nothing else runs on the trainer's GPU from here on: see `sync` on why it must not.
        self._sync.give_back_cache()
        try:
            self.fleet.revive(list(lost), check_stop)
        except ServerError as error:
            if not self.settings.shares_trainers_gpu:
                raise
            raise ServerError(
                f"{error}\n  It shares its GPU with the trainer, whose memory may have left it too "
                "little: go on with resume_from_checkpoint, which starts the server first"
            ) from error
        self._sync.forget_connections()
        return lost

    # on the event loop ------------------------------------------------------------------------

    async def _write_all(
        self,
        router: Router[VLLMClient],
        requests: Sequence[RolloutRequest],
        params: SamplingParams,
        finished: Finished,
    ) -> None:
        try:
            async with asyncio.TaskGroup() as rows:
                for group in by_prompt(requests, self.capacity):
                    server = await router.place(len(group))
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
        """One row, on its group's server, then on another if that one is lost."""
        attempt = 0
        while True:
            oldest = self._labels.index(self.version)
            try:
                answer = await server.generate(
                    request.prompt_ids, params, request.seed, self.settings.request_timeout_s
                )
                # weights that came while the row was written drew the rest of it
                self._check(server, answer, params, set(self._labels[oldest:]))
                break
            except Unreachable as error:
                attempt += 1
                if attempt >= self.settings.max_attempts:
                    raise ServerError(
                        f"rollout.vllm: {server.base_url}: a row failed {attempt} times, at last "
                        f"with {error}; {self.fleet.where_to_look()}"
                    ) from error
                await pause_before_retry(attempt - 1)
                if server in self._lost or not await server.is_healthy():
                    self._lost.add(server)
                    await router.lose(server)
                    server = await router.place(1)
        await router.release(server)
        finished.put((index, self._completion(answer, params)))

    def _check(
        self, server: VLLMClient, answer: Answer, params: SamplingParams, allowed: set[str]
    ) -> None:
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
        if not answer.labels or not answer.labels <= allowed:
            raise ServerError(
                f"rollout.vllm: {server.base_url} wrote with weights of version "
                f"{sorted(answer.labels)}, the trainer's are {self.version!r}; another trainer "
                "uses it, or it was restarted: give every run servers of its own"
            )

    def _completion(self, answer: Answer, params: SamplingParams) -> Completion:
        rollout, sampler = name_logps(
            answer.logps, processed=self.fleet.processed_logprobs, params=params
        )
        return Completion(
            answer.token_ids,
            rollout,
            sampler,
            FinishReason(answer.finish_reason),
            tuple(VersionSpan(int(label), start, end) for label, start, end in answer.spans),
        )


def _ignore(num_alive: int) -> None:
    """Nobody asked to look up between rows."""


async def pause_before_retry(attempt: int) -> None:
    """0.5 s, 1 s, 2 s and so on, at most 10 s."""
    await asyncio.sleep(min(10.0, 0.5 * 2**attempt))


def open_vllm(
    config: Config,
    fleet: Fleet,
    weights: Weights,
    device: torch.device,
) -> VLLMEngine:
    """The engine over a fleet that is sent `weights()`: a checkpoint's names, whole tensors."""
    return VLLMEngine(config, fleet, WeightSync(fleet, weights, device, config))
