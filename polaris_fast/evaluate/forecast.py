"""What an evaluation will write, ask and cost; printed by `--dry-run` and before a long one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb

from ..config import Config
from ..judge.endpoint import BYTES_PER_TOKEN, FIRST_ANSWER_TOKENS
from ..judge.pricing import cost_usd, prices_of
from ..judge.rubric import rubric_text
from .options import Options
from .store import JsonLines
from .tasks import Task
from .writing import Writer, stored_story

SHORT_RUBRIC_TOKENS = 350.0  # of a question besides the Story Quality rubric
SHORT_ANSWER_TOKENS = 150.0
BYTES_PER_WORD = 5.7  # of English, its space included


@dataclass(frozen=True)
class ModelForecast:
    """One model's share."""

    name: str
    num_stories: int
    num_kept: int  # written before
    num_tokens: int  # still to be written, thinking left out
    limit: int  # completion tokens at most


@dataclass(frozen=True)
class Forecast:
    """Everything that is planned."""

    models: list[ModelForecast]
    num_calls: int  # to the judge, those whose answers are kept included
    prompt_tokens: int
    answer_tokens: int
    cost_usd: float | None  # None: a judge without known prices

    def lines(self, config: Config) -> list[str]:
        """For people."""
        lines = [
            f"{m.name}: {m.num_stories} stories, {m.num_kept} of them written before; about "
            f"{m.num_tokens:,} tokens to write, at most {m.limit:,} a story"
            for m in self.models
        ]
        if not self.num_calls:
            return [*lines, "no judge"]
        judge = "the local heuristic judge" if config.judge.base_url is None else config.judge.model
        cost = "free" if config.judge.base_url is None else "cost unknown: set judge.price_input"
        if self.cost_usd is not None:
            cost = f"about {self.cost_usd:,.2f} USD"
        return [
            *lines,
            f"{judge}: at most {self.num_calls:,} calls, {self.prompt_tokens:,} tokens in and "
            f"{self.answer_tokens:,} out; {cost} (answers that are kept are not asked for again)",
        ]


def make_forecast(
    options: Options,
    config: Config,
    writers: Sequence[Writer],
    tasks: Sequence[Task],
    store: JsonLines,
) -> Forecast:
    """Count stories, tokens and calls; nothing is loaded or asked."""
    models = [_of_model(writer, tasks, store) for writer in writers]
    story = sum(t.record.target_word_count for t in tasks) * BYTES_PER_WORD / BYTES_PER_TOKEN
    rubric = len(rubric_text().encode()) / BYTES_PER_TOKEN
    num_models, num_tasks = len(models), len(tasks)
    calls = prompt = answer = 0.0
    if options.judge:
        n = num_models * options.judge_samples
        calls += n * num_tasks
        prompt += n * (num_tasks * rubric + story)
        answer += n * num_tasks * FIRST_ANSWER_TOKENS
    local = config.judge.base_url is None
    extra = []  # (calls a task, stories a call)
    if options.dimensions and not local:
        extra.append((num_models, 1))
    if options.pairwise and not local:
        extra.append((2 * comb(num_models, 2), 2))
    for each, stories in extra:
        calls += each * num_tasks
        prompt += each * (num_tasks * SHORT_RUBRIC_TOKENS + stories * story)
        answer += each * num_tasks * SHORT_ANSWER_TOKENS
    return Forecast(
        models=models,
        num_calls=int(calls),
        prompt_tokens=int(prompt),
        answer_tokens=int(answer),
        cost_usd=None
        if local
        else cost_usd(
            prices_of(config.judge),
            prompt_tokens=int(prompt),
            cached_tokens=0,
            completion_tokens=int(answer),
        ),
    )


def _of_model(writer: Writer, tasks: Sequence[Task], store: JsonLines) -> ModelForecast:
    missing = [task for task in tasks if stored_story(writer, task, store) is None]
    words = sum(task.record.target_word_count for task in missing)
    return ModelForecast(
        name=writer.model.name,
        num_stories=len(tasks),
        num_kept=len(tasks) - len(missing),
        num_tokens=int(words * writer.tokens_per_word),
        limit=writer.sampling.max_completion_length,
    )
