"""The live view redraws and gives the terminal back, plain lines suit a log, quiet is quiet."""

from __future__ import annotations

import io
import logging
import sys
import threading
from collections.abc import Callable

import pytest
from rich.console import Console

from polaris_fast.progress import LiveView, PlainView, Progress, QuietView, make_view
from polaris_fast.progress.live import sparkline

HIDE, SHOW = "\x1b[?25l", "\x1b[?25h"


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


class FakeTime:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Callable[[], Terminal]:
    """Puts a terminal of 100 columns behind stderr when called (pytest sets stderr per phase)."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("LINES", "40")

    def open_terminal() -> Terminal:
        screen = Terminal()
        monkeypatch.setattr(sys, "stderr", screen)
        return screen

    return open_terminal


def frame_text(view: LiveView) -> str:
    console = Console(file=io.StringIO(), width=100)
    with console.capture() as captured:
        console.print(view._frame())
    return captured.get()


def test_the_view_fits_the_output(
    terminal: Callable[[], Terminal], monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal()
    assert isinstance(make_view(True), LiveView)
    assert isinstance(make_view(True, io.StringIO()), PlainView)
    assert isinstance(make_view(False), QuietView)
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(make_view(True), PlainView)


def test_a_frame_shows_phases_metrics_and_time_left() -> None:
    time = FakeTime()
    view = LiveView(Console(file=io.StringIO(), width=100), now=time)
    view._run.start("polaris tiny", {"model": "embedded", "device": "cpu"}, 60, [])
    for step in range(1, 11):
        time.now += 4
        metrics = {"reward": step / 10, "length/abs_log_ratio": 1 / step, "kl": None}
        view.step(step, {**metrics, "rows/failed": 1})
    view.phase("writing stories", 48)
    view.advance(37)
    view.phase("judging", 48)
    view.advance(12, in_flight=8)
    view.advance(11, phase="writing stories")
    text = frame_text(view)
    for part in (
        "polaris tiny",
        "model embedded",
        "10/60",
        "3:20 left",
        "48/48",
        "12/48",
        "in flight 8",
        "length |ln|",
        "0.300",
        "failed rows 10",
    ):
        assert part in text, part
    assert "KL" not in text


def test_the_terminal_is_given_back_when_the_run_is_interrupted(
    terminal: Callable[[], Terminal],
) -> None:
    screen = terminal()
    with pytest.raises(KeyboardInterrupt), make_view(True) as view:
        view.start("run", {}, 3)
        assert sys.stderr is not screen
        raise KeyboardInterrupt
    assert sys.stderr is screen
    written = screen.getvalue()
    assert written.count(HIDE) == written.count(SHOW) == 1
    assert written.rindex(SHOW) > written.rindex(HIDE)
    view.stop()  # again: nothing
    assert screen.getvalue() == written


def test_log_handlers_and_progress_bars_of_others_are_printed_above(
    terminal: Callable[[], Terminal],
) -> None:
    screen = terminal()
    logger = logging.getLogger("polaris_test_noise")
    handler = logging.StreamHandler(screen)  # took hold of the stream before the view
    logger.addHandler(handler)
    try:
        with make_view(True) as view:
            view.start("run", {}, 3)
            logger.warning("a library speaks")
            print("\rLoading: 10%\rLoading: 100%", file=sys.stderr)
            print("no newline", end="", file=sys.stderr)
            view.note("[bold]not markup[/bold]")
            view.warn("careful")
        assert handler.stream is screen
    finally:
        logger.removeHandler(handler)
    written = screen.getvalue()
    for part in ("a library speaks", "Loading: 100%", "no newline", "[bold]not markup", "careful"):
        assert part in written, part
    assert "Loading: 10%" not in written


def test_every_view_takes_calls_from_several_threads(terminal: Callable[[], Terminal]) -> None:
    screen = terminal()
    views: list[Progress] = [make_view(True), PlainView(io.StringIO()), QuietView(io.StringIO())]
    for view in views:
        with view:
            view.start("run", {}, 1)
            view.phase("judging", 400)

            def work(view: Progress = view) -> None:
                for _ in range(100):
                    view.advance(1, phase="judging", in_flight=3)
                view.note("done")

            threads = [threading.Thread(target=work) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
    assert "400/400" in screen.getvalue()


def test_plain_lines_are_one_a_step_and_a_phase_line_only_after_silence() -> None:
    out, time = io.StringIO(), FakeTime()
    view = PlainView(out, now=time)
    view.start("polaris tiny", {"device": "cpu"}, 2)
    for step in (1, 2):
        view.phase("writing stories", 30)
        for _ in range(30):
            time.now += 1
            view.advance(loss=4.25)
        view.step(step, {"reward": 0.5, "kl": None, "guard/skipped": 1, "perf/step_s": 30.0})
    assert out.getvalue().splitlines() == [
        "polaris tiny",
        "  device: cpu",
        "writing stories 0/30",
        "writing stories 10/30  loss 4.250",
        "writing stories 20/30  loss 4.250",
        "writing stories 30/30  loss 4.250",
        "step 1/2  reward 0.500  skipped updates 1  left 0:30",
        "writing stories 10/30  loss 4.250",
        "writing stories 20/30  loss 4.250",
        "writing stories 30/30  loss 4.250",
        "step 2/2  reward 0.500  skipped updates 1  left 0:00",
    ]


def test_quiet_shows_warnings_only() -> None:
    out = io.StringIO()
    with QuietView(out) as view:
        view.start("run", {"a": "b"}, 3)
        view.phase("judging", 3)
        view.advance()
        view.step(1, {"reward": 1.0})
        view.note("a note")
        view.warn("a warning")
    assert out.getvalue() == "warning: a warning\n"


def test_a_view_that_nobody_reads_any_more_goes_quiet() -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    PlainView(Gone()).note("a note")
    QuietView(Gone()).warn("a warning")


def test_a_resumed_run_shows_its_history() -> None:
    view = LiveView(Console(file=io.StringIO(), width=100))
    rows = [{"step": step, "reward": float(step)} for step in range(1, 21)]
    view._run.start("run", {}, 40, rows)
    text = frame_text(view)
    assert "20/40" in text and "3.000" in text and "18.0" in text


def test_sparklines_span_their_range_and_keep_their_width() -> None:
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7], 8, plain=True) == "_.-~=+*#"
    assert sparkline(list(range(100)), 4) == "".join(
        chr(c) for c in (0x2581, 0x2583, 0x2586, 0x2588)
    )
    assert len(sparkline([2.0] * 50, 20)) == 20
    assert sparkline([], 5) == ""
