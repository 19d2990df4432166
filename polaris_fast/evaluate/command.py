"""`polaris evaluate`: conducts one evaluation from the command line to its page.

Stories and answers are kept as they come, so the same command after Ctrl-C, a crash or a changed
option does only what is missing.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ..model.load import quiet_transformers
from ..stopping import StopFlag, StopRequested
from ..types import Failed, Outcome, Rejected, Scored, UserError
from .asking import Asker
from .forecast import make_forecast
from .judging import StoryJudge, judge_dimensions, judge_pairs, pairs_by_score
from .lock import sole_writer
from .memorisation import attack_stories, is_done, summarize_memory
from .options import parse_options
from .page import write_page
from .pairwise import summarize
from .results import build_result, measure_all, write_result
from .setup import Setup, prepare
from .store import JsonLines
from .table import print_result
from .tasks import Task
from .writing import Engine, Writer, Written, open_engine, stored_story, write_stories

STORIES, ANSWERS, MEMORY = "stories.jsonl", "answers.jsonl", "memorisation.jsonl"

Outcomes = dict[tuple[str, str], Outcome]


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; the exit status: 0, 2 for a mistake in the input, 130 when stopped."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # they warn about forks otherwise
    flag = StopFlag()
    try:
        with flag.installed():
            options = parse_options(sys.argv[1:] if argv is None else argv)
            quiet_transformers()
            return Evaluation(prepare(options), flag.check).run()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except StopRequested as stop:
        print(
            f"stopped by {stop}: what was written and judged is kept, and the same command goes "
            "on from there",
            file=sys.stderr,
        )
        return 130


class Evaluation:
    """One evaluation; what it has done lies in the output folder."""

    def __init__(self, setup: Setup, check_stop: Callable[[], None]) -> None:
        self.setup, self.check_stop = setup, check_stop
        self.screen = Console(stderr=True)
        self.stories: dict[str, list[Written]] = {model.name: [] for model in setup.models}
        self.memory: dict[str, dict[str, Any]] = {}
        self.notes = list(setup.notes)

    def run(self) -> int:
        """Write, judge, measure, print; or say what would be done (`--dry-run`)."""
        if not self.setup.options.dry_run:
            with sole_writer(self.setup.out):
                return self._run()
        with JsonLines(self.setup.out / STORIES, read_only=True) as store:
            self._forecast(store)
        return 0

    def _run(self) -> int:
        setup, out = self.setup, self.setup.out
        with JsonLines(out / STORIES) as store:
            self._forecast(store)
            outcomes, s_q, pairwise = self._write_and_judge(store)
        self._phase("measuring")
        measured = measure_all(setup, self.stories, outcomes, s_q)
        result = build_result(
            setup,
            measured,
            outcomes,
            notes=self.notes,
            pairwise=pairwise,
            memorisation=self.memory,
        )
        path = write_result(out, result, measured)
        page = write_page(out, result, measured)
        print_result(result, Console())
        print(f"result  {path}\npage    {page}")
        return 0

    def _forecast(self, store: JsonLines) -> None:
        setup = self.setup
        forecast = make_forecast(setup.options, setup.config, setup.writers, setup.tasks, store)
        self._say(forecast.lines(setup.config))

    def _write_and_judge(
        self, store: JsonLines
    ) -> tuple[Outcomes, dict[tuple[str, str], float], dict[str, Any]]:
        """(outcomes, S_Q, pairwise): {} where they were not asked for."""
        options, config = self.setup.options, self.setup.config
        with ExitStack() as stack:
            judge = None
            if options.judge:  # reached before a model is loaded
                judge = stack.enter_context(StoryJudge(self.setup, self.check_stop))
            for writer in self.setup.writers:
                self._write(writer, store, judge)
            if judge is None:
                return {}, {}, {}
            outcomes = self._outcomes(judge)
            asks = config.judge.base_url is not None and (options.dimensions or options.pairwise)
            asker = None
            if asks:
                answers = stack.enter_context(JsonLines(self.setup.out / ANSWERS))
                asker = stack.enter_context(Asker(config.judge, answers, spent_usd=judge.spent_usd))
            return outcomes, self._s_q(asker), self._pairwise(asker, outcomes)

    def _write(self, writer: Writer, store: JsonLines, judge: StoryJudge | None) -> None:
        """One model's stories, and its continuations of training stories."""
        name, setup = writer.model.name, self.setup
        kept = {task.item: stored_story(writer, task, store) for task in setup.tasks}
        missing = [task for task in setup.tasks if kept[task.item] is None]

        def take(written: Written) -> None:
            kept[written.item] = written
            if judge is not None:
                judge.submit(name, written)

        for written in list(kept.values()):
            if written is not None:
                take(written)
        with JsonLines(setup.out / MEMORY, read_only=not setup.attacked) as memory:
            attack = setup.options.attack
            if missing or not is_done(writer, setup.attacked, attack, memory):
                self._phase(f"loading {name}")
                with open_engine(writer.model, writer.config, setup.out, self.check_stop) as engine:
                    self._write_missing(writer, engine, missing, store, take)
                    attack_stories(writer, engine, setup.attacked, attack, memory, self.check_stop)
            if setup.attacked:
                self.memory[name] = summarize_memory(writer, setup.attacked, attack, memory)
        self.stories[name] = [written for written in kept.values() if written is not None]

    def _write_missing(
        self,
        writer: Writer,
        engine: Engine,
        missing: Sequence[Task],
        store: JsonLines,
        take: Callable[[Written], None],
    ) -> None:
        with self._bar(f"writing with {writer.model.name}", len(missing)) as advance:

            def take_new(written: Written) -> None:
                take(written)
                advance()

            if missing:
                write_stories(
                    writer, engine, missing, store, on_story=take_new, check_stop=self.check_stop
                )

    def _outcomes(self, judge: StoryJudge) -> Outcomes:
        total = sum(len(found) for found in self.stories.values())
        with self._bar("judging", total) as advance:
            outcomes = judge.outcomes(advance)
        unscored = [o for o in outcomes.values() if not isinstance(o, Scored)]
        self._note_missing("Story Quality", unscored)
        return outcomes

    def _s_q(self, asker: Asker | None) -> dict[tuple[str, str], float]:
        if asker is None or not self.setup.options.dimensions:
            return {}
        total = sum(len(found) for found in self.stories.values())
        with self._bar("S_Q", total) as advance:
            found, failed = judge_dimensions(
                self.stories, asker, on_answer=advance, check_stop=self.check_stop
            )
        self._note_missing("S_Q", failed)
        return found

    def _pairwise(self, asker: Asker | None, outcomes: Outcomes) -> dict[str, Any]:
        if not self.setup.options.pairwise:
            return {}
        if asker is None:
            results = pairs_by_score(self.stories, outcomes)
        else:
            count = len(self.setup.models)
            total = count * (count - 1) * len(self.setup.tasks)
            with self._bar("comparing", total) as advance:
                results, failed = judge_pairs(
                    self.stories, asker, on_answer=advance, check_stop=self.check_stop
                )
            self._note_missing("pairwise", failed)
        return summarize(results, list(self.stories), seed=self.setup.config.seed)

    def _note_missing(self, what: str, failed: Sequence[Failed | Rejected]) -> None:
        """Answers that could not be had are no numbers, and are told."""
        if failed:
            self.notes.append(
                f"{what}: {len(failed)} answers could not be had and are left out; the first: "
                f"{failed[0].reason}"
            )

    # what a person sees, on stderr ---------------------------------------------------------------

    def _say(self, lines: Sequence[str]) -> None:
        for line in [*lines, *(f"note: {note}" for note in self.setup.notes)]:
            print(line, file=sys.stderr)

    def _phase(self, text: str) -> None:
        print(text, file=sys.stderr)

    @contextmanager
    def _bar(self, text: str, total: int) -> Iterator[Callable[[], None]]:
        """Yields what is called for each finished piece; plain lines where there is no terminal."""
        title = TextColumn("{task.description}", markup=False)  # holds a model's name
        columns = (title, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        if not self.screen.is_terminal:
            self._phase(f"{text}: {total}")
        bar = Progress(
            *columns, console=self.screen, transient=True, disable=not self.screen.is_terminal
        )
        with bar:
            task = bar.add_task(text, total=total)
            yield partial(bar.advance, task)
