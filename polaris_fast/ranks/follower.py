"""The loop of every rank but the first: do what the conductor says until it says `end`."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from contextlib import suppress

from ..collector import setup_spared
from ..model.parity import PackingLeak
from ..types import UserError
from .channel import Channel, RankLost
from .parts import Orders, Parts
from .rollouts import write_share
from .slots import first_pass, on_cpu
from .streams import Outbox
from .world import World

Build = Callable[[Orders, World], Parts]


def follow(world: World, build: Build) -> int:
    """Run a follower to its end; returns the exit status (0 done, 1 conductor lost, 2 user error).

    Args:
        world: this rank's place.
        build: makes the rank's engine and rollouts from the conductor's orders.
    """
    # A stop request is the conductor's to answer: it ends all ranks at a safe point.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    channel = Channel(world)
    try:
        name, arguments = channel.receive()
        if name == "end":
            return 0
        orders, address = arguments
        try:
            parts = build(orders, world)
        except (UserError, PackingLeak) as error:
            channel.gather(str(error))
            return 2
        channel.gather(None)
        outbox = Outbox(address)
        try:
            with setup_spared():
                while _obey(world, channel, parts, outbox):
                    pass
        except UserError as error:  # the conductor sees that this rank is gone
            print(f"error: rank {world.rank}: {error}", file=sys.stderr)
            return 2
        finally:
            if parts.rollouts is not None:
                parts.rollouts.close()
        outbox.close()
        return 0
    except RankLost:
        return 1  # the conductor says why, once


def _obey(world: World, channel: Channel, parts: Parts, outbox: Outbox) -> bool:
    """Carry out one command; False after the last."""
    name, arguments = channel.receive()
    slots = parts.slots
    if name == "end":
        return False
    if name in ("generate", "sync"):
        assert parts.rollouts is not None
        try:
            if name == "generate":
                write_share(parts.rollouts, outbox, *arguments)
            else:
                parts.rollouts.sync(arguments[0], lambda: None)
        except UserError as error:  # its server is lost; what it trained is still to be saved
            outbox.report(f"rank {world.rank}: {error}")
    elif name == "first_pass":
        first_pass(slots, *arguments)
    elif name == "take_sums":
        channel.gather(on_cpu(slots.take_sums()))
    elif name == "save":
        slots.save(*arguments)
        channel.gather(None)
    elif name == "update":
        with suppress(UserError):  # the conductor's guard refuses the same numbers, and speaks
            slots.update(*arguments)
    else:
        other: dict[str, Callable[..., None]] = {
            "again": slots.again,
            "skip_updates": slots.skip_updates,
            "end_step": slots.end_step,
        }
        other[name](*arguments)
    return True
