"""All files through the workers into the stage, a bounded number of portions at a time."""

from __future__ import annotations

import multiprocessing
import signal
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from .bins import bin_of
from .document import Drop
from .duplicates import Candidates
from .progress import ProgressView
from .settings import Settings
from .stage import Stage
from .summary import Line, Summary
from .work import Outcome, Portion, Rules, portions, work

SMALL_BYTES = 4 * 2**20  # less is read sooner than processes start
AHEAD = 3  # portions under way for each worker


def read_all(
    settings: Settings,
    files: list[tuple[Path, str]],
    stage: Stage,
    candidates: Candidates,
    summary: Summary,
    view: ProgressView,
) -> None:
    """Fill the stage, the index of candidates, and the lines and drops of the summary.

    The order of stories is that of the files, whatever the workers' order was.
    """
    sizes = {path: _size(path) for path, _ in files}
    view.stage("reading", sum(sizes.values()))
    rules = Rules(settings.min_words, settings.max_words, settings.one_story_per_file)
    small = sum(sizes.values()) < SMALL_BYTES or settings.workers == 1
    results = _alone(files, rules) if small else _together(files, rules, settings.workers)
    share = _Shares(sizes)
    for portion, outcome in results:
        summary.drops += outcome.drops
        summary.leaking_prompts += outcome.leaking_prompts
        summary.sized_prompts += outcome.sized_prompts
        for finished in outcome.stories:
            story, number = finished.story, len(summary.lines)
            stage.put(number, story, finished.grams)
            candidates.add(finished.signature)
            summary.lines.append(
                Line(
                    number=number,
                    uid=story.uid,
                    title=story.title,
                    author=story.author,
                    source=story.source,
                    words=story.words,
                    bin=bin_of(story.words),
                    where=story.where,
                    rights=story.rights,
                    folder=story.folder,
                )
            )
        view.advance(share.of(portion), f"{len(summary.lines):,} stories")


def _size(path: Path) -> int:
    """Bytes; 0 for a file that is gone, which its reader will tell."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


class _Shares:
    """Bytes of its file that a portion stands for."""

    def __init__(self, sizes: dict[Path, int]) -> None:
        self._sizes = sizes

    def of(self, portion: Portion) -> float:
        if not portion.first_row:
            return self._sizes[portion.path]
        if portion.rows and isinstance(portion.rows[0], bytes):
            return sum(map(len, portion.rows))
        return 0.0  # compressed rows: the bar moves with the next file


def _alone(files: list[tuple[Path, str]], rules: Rules) -> Iterator[tuple[Portion, Outcome]]:
    for portion in portions(files):
        if isinstance(portion, Drop):
            yield Portion(Path(portion.where), "", 1), Outcome(drops=[portion])
        else:
            yield portion, work(portion, rules)


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Ctrl-C waits until the end of the block; processes started in it are deaf to it for good."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _together(
    files: list[tuple[Path, str]], rules: Rules, workers: int
) -> Iterator[tuple[Portion, Outcome]]:
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context)
    waiting: deque[tuple[Portion, Future[Outcome]]] = deque()
    try:
        for portion in portions(files):
            if isinstance(portion, Drop):
                done: Future[Outcome] = Future()
                done.set_result(Outcome(drops=[portion]))
                waiting.append((Portion(Path(portion.where), "", 1), done))
                continue
            with _interrupts_held():  # a new worker inherits it, and never hears of Ctrl-C
                future = pool.submit(work, portion, rules)
            waiting.append((portion, future))
            while len(waiting) > AHEAD * workers:
                first, future = waiting.popleft()
                yield first, future.result()
        while waiting:
            first, future = waiting.popleft()
            yield first, future.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
