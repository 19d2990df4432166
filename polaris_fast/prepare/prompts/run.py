"""The endpoint's part of making a data set: the check before it, the estimate, and the writing."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import closing

from ...judge.client import JudgeClient
from ...judge.pricing import prices_of
from ..document import Story
from ..progress import ProgressView
from ..settings import EndpointSettings, Settings
from ..stage import Stage
from .endpoint import Endpoint, Spent, check_endpoint, judge_config
from .estimate import estimate
from .journal import PromptJournal
from .writer import PromptWriter, Written, write_all


def check(settings: EndpointSettings) -> None:
    """Raises UserError: the endpoint cannot be used. Costs nothing."""

    async def look() -> None:
        config = judge_config(settings)
        async with JudgeClient(config, settings.base_url) as client:
            await check_endpoint(client, config)

    asyncio.run(look())


def tell_estimate(
    settings: Settings,
    endpoint: EndpointSettings,
    stage: Stage,
    numbers: Sequence[int],
    view: ProgressView,
) -> None:
    """Say what the calls will probably cost."""
    stories = (story for _, story in stage.stories(numbers))
    expected = estimate(stories, reasoning=settings.reasoning)
    prices = prices_of(judge_config(endpoint))
    view.say(f"endpoint: {expected.line(prices)}, less what the journal holds")


def write_prompts(
    settings: Settings,
    endpoint: EndpointSettings,
    stage: Stage,
    numbers: Sequence[int],
    view: ProgressView,
) -> tuple[Written, Spent]:
    """Prompts, and plans if wanted, for the staged stories of these numbers.

    Raises:
        PromptsStopped: what was answered is in the journal.
    """
    config = judge_config(endpoint)
    view.stage("writing prompts", len(numbers))
    client = JudgeClient(config, endpoint.base_url)
    with closing(PromptJournal(settings.journal_path)) as journal:
        asker = Endpoint(
            config,
            client,
            journal,
            concurrency=endpoint.concurrency,
            max_cost_usd=endpoint.max_cost_usd,
        )
        writer = PromptWriter(asker, reasoning=settings.reasoning)

        def done(number: int, story: Story) -> None:
            stage.replace(number, story)
            spent = asker.spent
            view.advance(1, f"{spent.cost_usd:.2f} USD" if spent.price_known else "")

        async def run() -> None:
            async with client:
                await write_all(
                    writer, stage.stories(numbers), done, concurrency=endpoint.concurrency
                )

        asyncio.run(run())
    return writer.written, asker.spent
