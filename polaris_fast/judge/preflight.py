"""Before a run: is the judge there, does it take our requests, can it hold our stories?

What would fail for every row is found here, in a second and for a fraction of a cent, and named
with its setting. Throttling is no reason to stop: the pool waits for it anyway.
"""

from __future__ import annotations

import asyncio
import logging

from ..config import JudgeConfig
from ..types import UserError
from .client import JudgeClient
from .endpoint import Endpoint, num_bytes
from .faults import FaultKind, JudgeFault
from .flow.panel import Tier
from .reach import check_reachable, user_error
from .rubric import rubric_text

log = logging.getLogger(__name__)

TEST_MESSAGES = [{"role": "user", "content": "A test of the connection. Answer with {} as JSON."}]
TEST_TOKENS = 64  # cap on the test's answer: whether it is a whole one does not matter
TRIES = 3
BYTES_PER_TOKEN = 4.0  # of the rubric, plain English
STORY_SLACK = 1.15  # the judge's tokenizer is not the policy's
FRAME_TOKENS = 1024  # prompt, boundary lines, chat template
# Words of a refusal -> setting, what to try.
_REMEDIES = (
    (("max_completion_tokens", "max_tokens"), "max_tokens_parameter", "{other_cap}"),
    (("response_format", "json_schema", "json_object"), "response_format", "json_object or none"),
    (("temperature",), "temperature", "null, and none is sent"),
    (("top_p",), "top_p", "null, and none is sent"),
    (("model",), "model", "a name that the endpoint knows"),
)
_SHORT_CAP_WORDS = ("could not finish", "output limit was reached")


async def check_judge(
    endpoint: Endpoint, *, wait_s: float = 0.5, longest_story_tokens: int | None = None
) -> None:
    """All checks of one judge; the local one is only looked for.

    Args:
        wait_s: between tries that met a failing server.
        longest_story_tokens: of the stories to come; None: unknown, not checked.

    Raises:
        UserError: names the setting, its value and the remedy.
    """
    config, client = endpoint.config, endpoint.client
    section = "judge" if endpoint.tier is Tier.MAIN else "judge.fallback"
    models = await check_reachable(client, config, section=section, wait_s=wait_s)
    if endpoint.is_local:
        return
    endpoint.context_length = config.context_length or models.get(config.model)
    if longest_story_tokens is not None:
        check_context(config, endpoint.context_length, longest_story_tokens, section=section)
    if config.check_at_start:
        await _check_request(endpoint, section, wait_s)


def check_context(
    config: JudgeConfig, context: int | None, longest_story_tokens: int, *, section: str = "judge"
) -> None:
    """Rubric, story and answer must fit into the model's context; unknown contexts pass.

    Raises:
        UserError: they do not.
    """
    if context is None:
        return
    rubric_tokens = int(len(rubric_text().encode()) / BYTES_PER_TOKEN)
    story_tokens = int(STORY_SLACK * longest_story_tokens)
    need = rubric_tokens + FRAME_TOKENS + story_tokens + config.max_output_tokens
    if need > context:
        raise UserError(
            f"{section}.model: {config.model!r} holds {context} tokens, but a judgement may need "
            f"{need}: rubric {rubric_tokens}, story {story_tokens}, frame {FRAME_TOKENS}, answer "
            f"{config.max_output_tokens}; take a model with a longer context, lower "
            "max_completion_length or judge.max_output_tokens, or correct judge.context_length"
        )


async def _check_request(endpoint: Endpoint, section: str, wait_s: float) -> None:
    """One short request with every parameter of the real ones."""
    config, client = endpoint.config, endpoint.client
    for attempt in range(1, TRIES + 1):
        try:
            answer = await client.ask(
                TEST_MESSAGES, timeout_s=config.timeout_s, max_tokens=TEST_TOKENS
            )
        except JudgeFault as fault:
            taken = fault.kind in (FaultKind.THROTTLE, FaultKind.REFUSAL) or _only_the_cap(fault)
            if taken:
                log.warning("%s: %s", client.display_url, fault.detail)
                return
            if fault.kind is not FaultKind.TRANSIENT or attempt == TRIES:
                raise _explain(client, config, fault, section) from None
            await asyncio.sleep(wait_s * attempt)
        else:
            cost = endpoint.cost_usd(answer, num_bytes(TEST_MESSAGES))
            endpoint.admission.cost.spent_usd += cost or 0.0
            return


def _only_the_cap(fault: JudgeFault) -> bool:
    """Some endpoints call it an error when a reasoning model spends the cap on thinking."""
    return any(words in fault.detail.lower() for words in _SHORT_CAP_WORDS)


def _explain(
    client: JudgeClient, config: JudgeConfig, fault: JudgeFault, section: str
) -> UserError:
    if fault.kind is not FaultKind.REQUEST:
        return user_error(client, config, fault, section)
    text = fault.detail.lower()
    other_cap = {"max_tokens": "max_completion_tokens"}.get(
        config.max_tokens_parameter, "max_tokens"
    )
    for words, setting, remedy in _REMEDIES:
        if any(word in text for word in words):
            value = getattr(config, setting)
            return UserError(
                f"{section}.{setting}: the judge at {client.display_url} does not take {value!r} "
                f"({fault.detail}); set it to {remedy.format(other_cap=other_cap)}"
            )
    return UserError(
        f"{section}: the judge at {client.display_url} refuses our requests ({fault.detail}); "
        f"check the settings under {section}, or set {section}.base_url to null"
    )
