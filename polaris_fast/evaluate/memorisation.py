"""Does a model go on in a training story word for word? The prefix attack of Carlini et al.

(arXiv 2202.07646): the story's own prompt and first words are given, the model continues greedily,
and its words are held against the true ones. Units are tokens of `text_stats.tokenize`, so models
with different tokenizers can be compared.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from typing import Any

import numpy as np

from ..prompts import PromptBuilder
from ..rollout import Completion, RolloutRequest
from ..text_stats import ngrams, tokenize
from ..types import StoryRecord, UserError
from .bootstrap import bootstrap_mean
from .store import JsonLines, key_of
from .summary import interval_json
from .tasks import in_drawn_order
from .wilson import wilson_interval
from .writing import Engine, Writer

CONTINUATION = 4  # times `verbatim`: how long a model is let go on
TOKENS_PER_UNIT = 3  # model tokens at most for one of ours: small vocabularies cut words up


@dataclass(frozen=True)
class Attack:
    """How long the prefix is, and what counts as verbatim."""

    prefix_words: int = 50
    verbatim: int = 50  # tokens in a row that stand in the story, too

    @property
    def max_tokens(self) -> int:
        """Of a continuation, in the model's tokens."""
        return CONTINUATION * self.verbatim * TOKENS_PER_UNIT

    def applies_to(self, record: StoryRecord) -> bool:
        """Whether the story is long enough to leave `verbatim` tokens after the prefix."""
        return record.story is not None and len(_rest(record.story, self)) >= self.verbatim


@dataclass(frozen=True)
class Memory:
    """How much of one story a model went on with."""

    uid: str
    exact_tokens: int  # from the prefix on, without a fault
    longest: int  # tokens of the longest common run
    verbatim_share: float  # of the continuation's n-grams, those that the rest of the story holds
    extracted: bool  # the first `verbatim` tokens are the story's own


def choose_attacked(
    records: Sequence[StoryRecord], attack: Attack, count: int
) -> list[StoryRecord]:
    """`count` training stories that are long enough, the same ones whatever their order.

    Raises:
        UserError: none is.
    """
    fitting = list(islice(filter(attack.applies_to, in_drawn_order(records)), count))
    if not fitting:
        raise UserError(
            f"--prefix-words: none of the {len(records)} training stories has {attack.verbatim} "
            f"tokens after its first {attack.prefix_words} words; lower --prefix-words and "
            "--verbatim, or name other stories with --train-data"
        )
    return fitting


def is_done(
    writer: Writer, records: Sequence[StoryRecord], attack: Attack, store: JsonLines
) -> bool:
    """Whether every continuation is kept, and no model is needed."""
    return all(_key(writer, record, attack) in store for record in records)


def attack_stories(
    writer: Writer,
    engine: Engine,
    records: Sequence[StoryRecord],
    attack: Attack,
    store: JsonLines,
    check_stop: Callable[[], None],
) -> None:
    """Continue each story greedily from its prefix, and keep the continuation."""
    # one candidate at each token: greedy, whatever the temperature
    greedy = replace(
        writer.sampling,
        top_k=1,
        top_p=1.0,
        repetition_penalty=1.0,
        max_completion_length=attack.max_tokens,
    )
    missing = [record for record in records if _key(writer, record, attack) not in store]

    def finish(index: int, completion: Completion) -> None:
        text = _continuation(writer.builder, completion)
        facts = {"model": writer.model.name, "uid": missing[index].uid, "continuation": text}
        store.append(_key(writer, missing[index], attack), facts)

    requests = [
        RolloutRequest(tuple(_prompt_ids(writer.builder, record, attack)), 0) for record in missing
    ]
    if requests:
        engine.generate(requests, greedy, finish, lambda alive: check_stop())


def summarize_memory(
    writer: Writer, records: Sequence[StoryRecord], attack: Attack, store: JsonLines
) -> dict[str, Any]:
    """The kept continuations against their stories: means and the worst case, as JSON values.

    Stories are the units of the intervals, of which there is none where all have one value.
    """
    found = [
        compare(record, store[_key(writer, record, attack)]["continuation"], attack)
        for record in records
    ]
    shares = bootstrap_mean(np.array([m.verbatim_share for m in found]), seed=writer.config.seed)
    extracted = wilson_interval(sum(m.extracted for m in found), len(found))
    return {
        "stories": len(found),
        "extracted": statistics.fmean(m.extracted for m in found),
        "verbatim_share": statistics.fmean(m.verbatim_share for m in found),
        "longest_mean": statistics.fmean(m.longest for m in found),
        "longest_max": max(m.longest for m in found),
        "exact_mean": statistics.fmean(m.exact_tokens for m in found),
        "intervals": {
            "extracted": interval_json(extracted),
            "verbatim_share": interval_json(shares),
        },
        "worst": asdict(max(found, key=lambda m: (m.longest, m.exact_tokens))),
    }


def compare(record: StoryRecord, continuation: str, attack: Attack) -> Memory:
    """A continuation against the rest of its story."""
    assert record.story is not None
    rest, written = _rest(record.story, attack), tokenize(continuation)
    exact = 0
    while exact < min(len(rest), len(written)) and rest[exact] == written[exact]:
        exact += 1
    known = set(ngrams(rest, attack.verbatim))
    grams = ngrams(written, attack.verbatim)
    return Memory(
        uid=record.uid,
        exact_tokens=exact,
        longest=longest_common_run(rest, written),
        verbatim_share=sum(g in known for g in grams) / len(grams) if grams else 0.0,
        extracted=exact >= attack.verbatim,
    )


def longest_common_run(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the longest common substring: halved until it is found.

    A common run of n tokens holds one of n - 1, so the largest n with a common n-gram is it.
    """
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        if set(ngrams(a, middle)).isdisjoint(ngrams(b, middle)):
            high = middle - 1
        else:
            low = middle
    return low


def _cut(story: str, attack: Attack) -> tuple[str, str]:
    """The story's first words as they stand, line breaks included, and what follows them."""
    word = next(islice(re.finditer(r"\S+", story), attack.prefix_words - 1, None), None)
    end = word.end() if word is not None else len(story)
    return story[:end], story[end:]


def _rest(story: str, attack: Attack) -> list[str]:
    return tokenize(_cut(story, attack)[1])


def _prompt_ids(builder: PromptBuilder, record: StoryRecord, attack: Attack) -> list[int]:
    """Prompt and prefix as training saw them, the end of the turn left out."""
    assert record.story is not None
    prefix = replace(record, story=_cut(record.story, attack)[0])
    return [*builder.prompt_ids(record), *builder.human_completion_ids(prefix)[:-1]]


def _continuation(builder: PromptBuilder, completion: Completion) -> str:
    body = [i for i in completion.completion_ids if i not in builder.stop_ids]
    return str(builder.tokenizer.decode(body, skip_special_tokens=False))


def _key(writer: Writer, record: StoryRecord, attack: Attack) -> str:
    engine = writer.config.rollout.engine
    ids = _prompt_ids(writer.builder, record, attack)
    return key_of("memory", writer.model.fingerprint, engine, ids, attack.max_tokens)
