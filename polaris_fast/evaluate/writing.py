"""Stories by one model and one engine; what was written before is taken from the disk.

with open_engine(model, config, out) as engine:
    write_stories(...)       # each story is kept the moment it ends
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch

from ..config import Config
from ..device import choose_device
from ..model.load import load_causal_lm
from ..prompts import PromptBuilder
from ..rollout import Completion, RolloutRequest, SamplingParams
from ..rollout.hf import HFEngine
from ..text_stats import count_words
from .models import ModelRef
from .store import JsonLines, key_of
from .tasks import Task

ROOM = 2.0  # tokens a story may take, as a multiple of what its target takes on average
SLACK = 64  # tokens more, for the shortest stories
NO_LIMIT = 1 << 20
FALLBACK_TOKENS_PER_WORD = 1.4  # of English, where the data holds no story to count


class Engine(Protocol):
    """What writes: the `generate` of a `RolloutEngine`."""

    def generate(
        self,
        requests: Sequence[RolloutRequest],
        params: SamplingParams,
        on_finish: Callable[[int, Completion], None],
        on_token: Callable[[int], None] | None = None,
    ) -> None:
        """See `RolloutEngine.generate`."""
        ...


@dataclass(frozen=True)
class Written:
    """A finished story."""

    item: str  # see `Task.item`
    uid: str
    prompt: str  # without its length sentence
    target: int
    sample: int
    thinking: str
    story: str
    truncated: bool
    num_tokens: int


@dataclass(frozen=True)
class Writer:
    """How one model is asked: its prompts, its limits, its sampling."""

    model: ModelRef
    config: Config  # limits resolved for this model's tokenizer
    builder: PromptBuilder
    tokens_per_word: float

    @property
    def sampling(self) -> SamplingParams:
        """The distribution of the evaluation."""
        sampling = SamplingParams.from_config(self.config, self.builder.stop_ids)
        if self.config.eval_temperature is not None:
            sampling = replace(sampling, temperature=self.config.eval_temperature)
        return sampling

    def key(self, task: Task) -> str:
        """Name of a story: whatever would change its text changes the name."""
        sampling = asdict(self.sampling) | {"stop_ids": sorted(self.sampling.stop_ids)}
        del sampling["max_completion_length"]  # see `stored_story`
        prompt_ids = self.builder.prompt_ids(task.record)
        engine = self.config.rollout.engine
        return key_of(self.model.fingerprint, engine, prompt_ids, task.seed, sampling)


def make_writer(
    model: ModelRef,
    tokenizer: Any,
    config: Config,
    tasks: Sequence[Task],
    *,
    stop_ids: frozenset[int],
    limit: int | None,
    extra_tokens: int = 0,
) -> Writer:
    """Settle the limits: prompts are what they are, and the longest story asked for has room.

    Args:
        config: the evaluation's settings.
        stop_ids: tokens that the model's own generation config ends on.
        limit: completion tokens at most, thinking included; None: by the longest target, with as
            much again for the thinking, and no less than `max_completion_length`.
        extra_tokens: that a prompt may have besides those of the tasks, for a launched server.
    """
    rate = _tokens_per_word(tokenizer, tasks)
    if limit is None:
        room = int(ROOM * rate * max(t.record.target_word_count for t in tasks)) + SLACK
        thinking = room if config.data.thinking else 0
        limit = max(config.max_completion_length or 0, room + thinking)
    settled = config.model_copy(
        update={"max_prompt_length": NO_LIMIT, "max_completion_length": limit}
    )
    builder = PromptBuilder(tokenizer, settled, stop_ids)
    longest = max(len(builder.prompt_ids(t.record)) for t in tasks)
    served = settled.model_copy(update={"max_prompt_length": longest + extra_tokens})
    return Writer(model, served, builder, rate)


def write_stories(
    writer: Writer,
    engine: Engine,
    tasks: Sequence[Task],
    store: JsonLines,
    *,
    on_story: Callable[[Written], None],
    check_stop: Callable[[], None],
) -> None:
    """Write the tasks that the store does not hold.

    Args:
        on_story: called with each story as soon as it is kept.
        check_stop: called often; raises to stop.
    """

    def finish(index: int, completion: Completion) -> None:
        on_story(_keep(writer, tasks[index], completion, store))

    requests = [RolloutRequest(tuple(writer.builder.prompt_ids(t.record)), t.seed) for t in tasks]
    engine.generate(requests, writer.sampling, finish, lambda alive: check_stop())


def stored_story(writer: Writer, task: Task, store: JsonLines) -> Written | None:
    """The story of a task if it was written before.

    One that ended by itself within the present limit is as good as one written under it; one that
    was cut off is so under the same limit only.
    """
    key, limit = writer.key(task), writer.sampling.max_completion_length
    if key not in store:
        return None
    entry = store[key]
    if entry["limit"] != limit and (entry["truncated"] or entry["num_tokens"] > limit):
        return None
    names = ("prompt", "thinking", "story", "truncated", "num_tokens")
    return Written(
        item=task.item,
        uid=task.record.uid,
        target=task.record.target_word_count,
        sample=task.sample,
        **{name: entry[name] for name in names},
    )


@contextmanager
def open_engine(
    model: ModelRef, config: Config, out: Path, check_stop: Callable[[], None]
) -> Iterator[Engine]:
    """The engine of `rollout.engine` with this model's weights; freed at the end.

    Args:
        config: the writer's, limits resolved.
        out: where logs of launched servers go.

    Raises:
        UserError: the model cannot be loaded, or vLLM does not start.
    """
    device = choose_device(config)
    if config.rollout.engine == "vllm":
        from .served import serve_model

        backend = "nccl" if device.type == "cuda" else "gloo"
        with serve_model(model.path, config, out, backend, check_stop) as served:
            yield served
        return
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    lm = load_causal_lm(model.path, dtype=dtype, device=device)
    try:
        yield HFEngine(lm, config.rollout.max_batch_size)
    finally:
        del lm
        if device.type == "cuda":
            torch.cuda.empty_cache()


def _keep(writer: Writer, task: Task, completion: Completion, store: JsonLines) -> Written:
    thinking, story = writer.builder.decode(completion.completion_ids)
    record = task.record
    written = Written(
        item=task.item,
        uid=record.uid,
        prompt=record.prompt,
        target=record.target_word_count,
        sample=task.sample,
        thinking=thinking,
        story=story,
        truncated=completion.finish_reason == "length",
        num_tokens=len(completion.completion_ids),
    )
    limit = writer.sampling.max_completion_length
    facts = {"model": writer.model.name, "limit": limit, **asdict(written)}
    store.append(writer.key(task), facts)
    return written


def _tokens_per_word(tokenizer: Any, tasks: Sequence[Task]) -> float:
    """Of the data's own stories in this model's tokens."""
    stories = list({t.record.uid: t.record.story for t in tasks if t.record.story}.values())[:50]
    words = sum(count_words(story) for story in stories)
    if not words:
        return FALLBACK_TOKENS_PER_WORD
    return sum(len(tokenizer(s, add_special_tokens=False)["input_ids"]) for s in stories) / words
