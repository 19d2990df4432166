"""The same question asked twice at once is one piece of work, whoever is cancelled."""

from __future__ import annotations

import asyncio

import pytest

from polaris_fast.judge.journal import InFlight


class Work:
    """Counts its starts; ends when the test says so."""

    def __init__(self) -> None:
        self.starts, self.cancelled = 0, 0
        self.gate = asyncio.Event()

    async def __call__(self) -> int:
        self.starts += 1
        number = self.starts
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return number


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_all_who_ask_get_the_one_result() -> None:
    shared, work = InFlight[int](), Work()
    tasks = [asyncio.create_task(shared.share("k", work)) for _ in range(5)]
    other = asyncio.create_task(shared.share("other", work))
    await settle()
    assert (work.starts, len(shared), "k" in shared) == (2, 2, True)
    work.gate.set()
    assert await asyncio.gather(*tasks) == [1] * 5
    assert await other == 2
    assert len(shared) == 0
    assert await shared.share("k", work) == 3  # a later question is a new one


async def test_one_that_gives_up_leaves_the_work_to_the_others() -> None:
    shared, work = InFlight[int](), Work()
    first = asyncio.create_task(shared.share("k", work))
    second = asyncio.create_task(shared.share("k", work))
    await settle()
    first.cancel()
    await settle()
    assert first.cancelled() and work.cancelled == 0
    work.gate.set()
    assert await second == 1


async def test_the_last_to_give_up_ends_the_work() -> None:
    shared, work = InFlight[int](), Work()
    tasks = [asyncio.create_task(shared.share("k", work)) for _ in range(2)]
    await settle()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert (work.starts, work.cancelled, len(shared)) == (1, 1, 0)
    work.gate.set()
    assert await shared.share("k", work) == 2


async def test_a_failure_reaches_all_and_is_not_kept() -> None:
    shared = InFlight[int]()

    async def fail() -> int:
        await asyncio.sleep(0)
        raise ValueError("no")

    results = await asyncio.gather(
        *(shared.share("k", fail) for _ in range(3)), return_exceptions=True
    )
    assert [str(result) for result in results] == ["no"] * 3
    with pytest.raises(ValueError, match="no"):
        await shared.share("k", fail)
    assert len(shared) == 0
