"""Stories written on all ranks at once; rows reach the conductor as they finish."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..rollout import Completion, RolloutEngine, RolloutRequest, SamplingParams
from .channel import Channel
from .streams import Abandoned, Inbox, Outbox

# How long the conductor waits for a row before it looks for a stop request again, in seconds.
_POLL_S = 0.1


class SharedRollouts:
    """The conductor's `RolloutEngine`: its own rank writes a share, the followers the others."""

    serves_all_ranks = True

    def __init__(self, local: RolloutEngine, channel: Channel, inbox: Inbox) -> None:
        self.local, self.channel, self.inbox = local, channel, inbox

    def sync(self, version: int, check_stop: Callable[[], None]) -> None:
        """Every rank's engine takes over its own rank's weights, which are equal."""
        self.channel.send("sync", version)
        self.local.sync(version, check_stop)

    def mend(self, version: int, check_stop: Callable[[], None]) -> None:
        """Each rank's engine sees to itself."""

    def close(self) -> None:
        self.local.close()

    def generate(
        self,
        requests: Sequence[RolloutRequest],
        params: SamplingParams,
        on_finish: Callable[[int, Completion], None],
        on_token: Callable[[int], None] | None = None,
    ) -> None:
        """Draw one completion a request; `on_finish` and `on_token` run on this thread."""
        shares = share_requests(requests, self.channel.world.size)
        orders = [[(index, requests[index]) for index in share] for share in shares]
        number = self.inbox.begin()
        self.channel.send_each("generate", [(number, order, params) for order in orders])
        missing = sum(len(share) for share in shares[1:])

        def collect(timeout_s: float | None) -> bool:
            nonlocal missing
            arrived = self.inbox.take(timeout_s)
            if arrived is None:
                return False
            missing -= 1
            on_finish(*arrived)
            return True

        def between_tokens(alive: int) -> None:
            while missing and collect(None):
                pass
            if on_token is not None:
                on_token(alive + missing)

        try:
            own = shares[0]
            self.local.generate(
                [requests[index] for index in own],
                params,
                lambda n, completion: on_finish(own[n], completion),
                between_tokens,
            )
            while missing:
                if not collect(_POLL_S) and on_token is not None:
                    on_token(missing)
        except BaseException:
            self.inbox.stop_generation()
            raise


def write_share(
    local: RolloutEngine,
    outbox: Outbox,
    generation: int,
    orders: Sequence[tuple[int, RolloutRequest]],
    params: SamplingParams,
) -> None:
    """A follower's part of `SharedRollouts.generate`."""
    try:
        local.generate(
            [request for _, request in orders],
            params,
            lambda n, completion: outbox.put(generation, orders[n][0], completion),
            lambda alive: outbox.check(generation),
        )
    except Abandoned:
        pass


def share_requests(requests: Sequence[RolloutRequest], num_ranks: int) -> list[list[int]]:
    """Indices of each rank's requests: equal counts to within one, rows of a prompt together.

    Rows of one prompt share its prefill, so a prompt is split only where the counts ask for it.
    """
    by_prompt: dict[tuple[int, ...], list[int]] = {}
    for index, request in enumerate(requests):
        by_prompt.setdefault(request.prompt_ids, []).append(index)
    order = [index for rows in by_prompt.values() for index in rows]
    bounds = [len(order) * rank // num_ranks for rank in range(num_ranks + 1)]
    return [order[bounds[rank] : bounds[rank + 1]] for rank in range(num_ranks)]
