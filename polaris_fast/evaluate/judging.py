"""The judge's part: Story Quality while stories are written, then S_Q and pairs of stories."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from itertools import islice
from types import TracebackType
from typing import Self

from ..judge import JudgeJob, JudgePool
from ..judge.rubric import POINTS_PER_QUALITY
from ..types import Failed, Outcome, Scored, UserError
from .asking import Asker
from .dimensions import dimensions_question, quality_score
from .pairwise import Match, Result, compare_scores, judge_match, make_matches
from .setup import Setup
from .writing import Written

_POLL_S = 0.2
EMPTY = Scored(0.0, judge="empty story", flags=("empty",))  # nothing to read, and nothing failed


class StoryJudge:
    """Story Quality of every story; use as a context manager around the writing.

    The judge is reached, and its settings are tried, on entering.
    """

    def __init__(self, setup: Setup, check_stop: Callable[[], None]) -> None:
        self._setup, self._check_stop = setup, check_stop
        self._samples = setup.options.judge_samples
        self._pool = JudgePool(
            setup.config.judge,
            run_dir=setup.out,
            longest_story_tokens=_longest_story(setup),
        )
        self._futures: dict[tuple[str, str], Future[Outcome]] = {}

    def __enter__(self) -> Self:
        self._pool.__enter__()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._pool.__exit__(exc_type, exc, traceback)

    @property
    def spent_usd(self) -> float:
        """What judgements have cost so far."""
        return self._pool.health().spent_usd

    def submit(self, model: str, written: Written) -> None:
        """Send a story; returns at once."""
        key = (model, written.item)
        if not written.story.strip():
            future: Future[Outcome] = Future()
            future.set_result(EMPTY)
        else:
            job_id = f"evaluate/{model}/{written.item}"
            job = JudgeJob(job_id, written.prompt, written.story, self._samples, group=job_id)
            future = self._pool.submit(job)
        self._futures[key] = future

    def outcomes(self, on_outcome: Callable[[], None]) -> dict[tuple[str, str], Outcome]:
        """(model, item) -> outcome, once all are there.

        Raises:
            UserError: nothing more is judged: the money, the judge or the journal is gone.
        """
        waiting = set(self._futures.values())
        while waiting:
            self._check_stop()
            done, waiting = wait(waiting, _POLL_S, FIRST_COMPLETED)
            for future in done:
                on_outcome()
                outcome = future.result()
                if isinstance(outcome, Failed) and outcome.final:
                    raise UserError(
                        f"{outcome.reason}. Nothing more is judged; what was judged is kept, and "
                        "the same command goes on from there"
                    )
        return {key: future.result() for key, future in self._futures.items()}


def _longest_story(setup: Setup) -> int:
    """Tokens of a story that overshoots the longest target by half: what a judge must hold."""
    target = max(task.record.target_word_count for task in setup.tasks)
    return int(1.5 * target * max(writer.tokens_per_word for writer in setup.writers))


def quality_points(outcome: Outcome) -> float | None:
    """Story Quality in points, in [-159, 108]; None without a judgement, and for an empty story.

    An empty story has no place on a scale of what is good and bad in a text: 0 would be better than
    a bad story, and the scale's floor would outweigh every other. It is counted beside the mean.
    """
    if not isinstance(outcome, Scored) or outcome == EMPTY:
        return None
    return POINTS_PER_QUALITY * outcome.quality


def judge_dimensions(
    stories: Mapping[str, Sequence[Written]], asker: Asker, **hooks: Callable[[], None]
) -> tuple[dict[tuple[str, str], float], list[Failed]]:
    """(model, item) -> S_Q, and what could not be had; a story without text has 0 without a call.

    Args:
        hooks: `on_answer` and `check_stop` of `Asker.ask_all`.
    """
    places = [(name, w) for name, found in stories.items() for w in found if w.story.strip()]
    questions = [dimensions_question("S_Q", w.prompt, w.story) for _, w in places]
    answers = asker.ask_all(questions, **hooks)
    found = {
        (name, w.item): 0.0
        for name, all_of in stories.items()
        for w in all_of
        if not w.story.strip()
    }
    found |= {
        (name, written.item): quality_score(answer)
        for (name, written), answer in zip(places, answers, strict=True)
        if not isinstance(answer, Failed)
    }
    return found, [answer for answer in answers if isinstance(answer, Failed)]


def judge_pairs(
    stories: Mapping[str, Sequence[Written]], asker: Asker, **hooks: Callable[[], None]
) -> tuple[list[Result], list[Failed]]:
    """Results of the matches with both answers, and what could not be had."""
    matches = make_matches(stories)
    asked = [match.questions() for match in matches]
    answers = asker.ask_all([question for pair in asked for question in pair], **hooks)
    left = iter(answers)
    results = [
        judge_match(match, list(islice(left, len(pair))))
        for match, pair in zip(matches, asked, strict=True)
    ]
    failed = [answer for answer in answers if isinstance(answer, Failed)]
    return [result for result in results if result is not None], failed


def pairs_by_score(
    stories: Mapping[str, Sequence[Written]], outcomes: Mapping[tuple[str, str], Outcome]
) -> list[Result]:
    """Results of all matches by pointwise scores, for a judge that cannot compare."""

    def points(match: Match) -> tuple[float | None, float | None]:
        a, b = outcomes[match.a, match.written_a.item], outcomes[match.b, match.written_b.item]
        return quality_points(a), quality_points(b)

    found = []
    for match in make_matches(stories):
        a, b = points(match)
        if match.settled is not None:
            found.append(match.settled)
        elif a is not None and b is not None:
            found.append(compare_scores(match, a, b))
    return found
