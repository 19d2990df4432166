"""Batches written ahead: how old their weights may be, what a resumed run takes over, who stops."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest

from benchmarks.lagging_engine import LaggingEngine, lagging_rollouts
from polaris_fast.batch import Batch
from polaris_fast.in_flight import read_rows
from polaris_fast.stopping import StopRequested
from polaris_fast.trainer import Trainer
from polaris_fast.types import UserError
from polaris_fast.writing_ahead import WritingAhead

from .runs import exact, metrics_of, train

AHEAD: dict[str, Any] = {"rollout__engine": "vllm", "is_correction": "token_truncate"}


class Servers:
    """The weights that batches are drawn by."""

    def __init__(self) -> None:
        self.version, self.mended = -1, 0

    def sync(self, version: int, check_stop: Callable[[], None]) -> None:
        self.version = version

    def mend(self, version: int, check_stop: Callable[[], None]) -> None:
        self.mended += 1


class Writer:
    """Notes the version at the start and the end of each batch; may be held or fail."""

    def __init__(self, servers: Servers) -> None:
        self.servers, self.drawn = servers, {}  # type: ignore[var-annotated]
        self.go = threading.Semaphore(0)
        self.fault: Exception | None = None

    def begin(self, step: int, human_weight: float) -> Batch:
        return SimpleNamespace(step=step, rows=[])  # type: ignore[return-value]

    def write(self, batch: Batch, records: Any, on_token: Callable[[int], None]) -> None:
        first = self.servers.version
        while not self.go.acquire(timeout=0.005):
            on_token(1)
        if self.fault is not None:
            raise self.fault
        self.drawn[batch.step] = (first, self.servers.version)


def ahead_over(
    max_staleness: int, *, in_step: bool, total: int = 6, check_stop: Any = lambda: None
) -> tuple[WritingAhead, Writer, Servers]:
    servers = Servers()
    writer = Writer(servers)
    ahead = WritingAhead(
        writer,  # type: ignore[arg-type]
        servers,  # type: ignore[arg-type]
        lambda step: ([], 0.0),
        first_step=0,
        total_steps=total,
        max_staleness=max_staleness,
        in_step=in_step,
        check_stop=check_stop,
    )
    return ahead, writer, servers


@pytest.mark.parametrize("max_staleness", [1, 2, 3])
def test_in_step_every_batch_is_drawn_by_the_weights_of_n_steps_before(max_staleness: int) -> None:
    ahead, writer, _ = ahead_over(max_staleness, in_step=True)
    writer.go.release(100)
    with ahead:
        for step in range(6):
            ahead.sync(step)
            assert ahead.take(step).step == step
    lagging = {step: (max(0, step - max_staleness),) * 2 for step in range(6)}
    assert writer.drawn == lagging


@pytest.mark.parametrize("max_staleness", [1, 2])
def test_weights_change_in_flight_and_never_get_too_old(max_staleness: int) -> None:
    ahead, writer, _ = ahead_over(max_staleness, in_step=False)
    with ahead:
        writer.go.release(1)
        for step in range(6):
            ahead.sync(step)  # while the next batch is held: it ends by these weights
            ahead.take(step)
            writer.go.release(1)
    oldest = {step: max(0, step - max_staleness) for step in range(6)}
    assert all(first >= oldest[step] for step, (first, _) in writer.drawn.items())
    assert any(first < last for first, last in writer.drawn.values())


def test_nothing_is_written_beyond_the_last_step_or_before_the_first_weights() -> None:
    ahead, writer, _ = ahead_over(3, in_step=True, total=2)
    writer.go.release(100)
    with ahead:
        time.sleep(0.03)
        assert writer.drawn == {}
        ahead.sync(0)
        ahead.take(1)
    assert sorted(writer.drawn) == [0, 1]


def test_a_fault_of_the_writer_is_raised_where_its_batch_is_awaited() -> None:
    ahead, writer, _ = ahead_over(1, in_step=True)
    writer.fault = UserError("no server is left")
    writer.go.release(1)
    with pytest.raises(UserError, match="no server is left"), ahead:
        ahead.sync(0)
        ahead.take(0)


def test_a_wait_looks_for_stops_and_for_lost_servers() -> None:
    class Stop(Exception):
        pass

    def check_stop() -> None:
        if servers.mended > 1:
            raise Stop

    ahead, _, servers = ahead_over(1, in_step=True, check_stop=check_stop)
    with pytest.raises(Stop), ahead:
        ahead.sync(0)
        ahead.take(0)  # held for ever
    assert not ahead._thread.is_alive()


# whole runs -----------------------------------------------------------------------------------


@pytest.fixture
def engines() -> Iterator[list[LaggingEngine]]:
    with lagging_rollouts() as made:
        yield made


@pytest.mark.usefixtures("engines")
def test_a_run_tells_how_old_its_tokens_are(tmp_path: Path) -> None:
    run, max_staleness = tmp_path / "run", 2
    settings = AHEAD | {"rollout__max_staleness": max_staleness, "max_steps": 4, "is_floor": 0.5}
    assert train(run, **settings) == 0
    lines = metrics_of(run)
    lags = [min(step, max_staleness) for step in range(4)]
    assert [line["staleness/mean"] for line in lines] == lags
    assert [line["staleness/max"] for line in lines] == lags
    assert all(line[f"staleness/share_{lag}"] == 1.0 for line, lag in zip(lines, lags, strict=True))
    assert lines[0]["sampling/mismatch_kl"] < 1e-6 < lines[-1]["sampling/mismatch_kl"]
    assert all(0 <= line["is_weight/high_mean"] < 0.5 for line in lines)
    assert lines[0]["is_weight/high_mean"] == lines[0]["is_weight/low_mean"] == 0
    story = json.loads((run / "stories" / "step-000004.jsonl").read_text().splitlines()[0])
    assert story["versions"] == [[3 - max_staleness, 0, story["num_tokens"]]]


@pytest.mark.usefixtures("engines")
@pytest.mark.parametrize("max_staleness", [1, 2])
def test_a_resumed_run_repeats_the_whole_one_and_judges_nothing_twice(
    tmp_path: Path, max_staleness: int
) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    settings = AHEAD | {"rollout__max_staleness": max_staleness, "hri__mode": "off"}
    assert train(whole, max_steps=4, **settings) == 0
    with stop_after(2):
        assert train(cut, max_steps=4, **settings) == 130
    ahead = read_rows(cut / "checkpoint-2")
    assert {name.split("/")[0] for name in ahead} >= {str(2 + n) for n in range(max_staleness)}
    assert train(cut, max_steps=4, resume_from_checkpoint=cut, **settings) == 0
    assert exact(cut) == exact(whole)
    hits = sum(line.get("judge/journal_hits", 0) for line in metrics_of(cut)[2:])
    assert hits >= len(ahead)


def stop_after(step: int) -> Any:
    """Ctrl-C in the middle of the step after this one."""
    real = Trainer._run_step

    def run_step(self: Trainer, number: int) -> Any:
        if number == step:
            assert self.ahead is not None
            self.ahead.take(step)
            raise StopRequested("SIGINT")
        return real(self, number)

    return mock.patch.object(Trainer, "_run_step", run_step)


@pytest.mark.usefixtures("engines")
@pytest.mark.parametrize("max_staleness", [1, 2])
def test_a_stop_while_a_batch_is_written_resumes_exactly(
    tmp_path: Path, max_staleness: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Between a step's end and its weights' way to the servers: the old ones write on."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    settings = AHEAD | {"rollout__max_staleness": max_staleness, "max_steps": 4}
    assert train(whole, **settings) == 0
    with stop_while_writing(by_weights_of=1):
        assert train(cut, **settings) == 130
    assert "only the weights of before may write" in capsys.readouterr().err
    assert not list(cut.glob("checkpoint-[34]"))
    ahead = read_rows(cut / "checkpoint-2")
    batches = {int(name.split("/")[0]) for name in ahead}
    assert batches == set(range(2, 2 + max_staleness))
    assert train(cut, resume_from_checkpoint=cut, **settings) == 0
    assert exact(cut) == exact(whole)


@pytest.mark.usefixtures("engines")
def test_what_was_trained_is_kept_where_the_rows_of_before_cannot_be_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, settings = tmp_path / "run", AHEAD | {"rollout__max_staleness": 1, "max_steps": 4}
    with stop_while_writing(by_weights_of=1, fault=UserError("no server is left")):
        assert train(run, **settings) == 130
    assert "(no server is left); a resumed run writes them" in capsys.readouterr().err
    assert (run / "checkpoint-2").is_dir()


@contextmanager
def stop_while_writing(by_weights_of: int, fault: Exception | None = None) -> Iterator[None]:
    """Ctrl-C after the next step, when the first row of these weights' last batch has begun."""
    asked = threading.Event()
    write, finish = LaggingEngine.generate, Trainer._finish_step

    def generate(
        self: LaggingEngine, requests: Any, params: Any, on_finish: Any, on_token: Any = None
    ) -> None:
        hold = [self.version == by_weights_of]

        def wait(alive: int) -> None:
            if hold.pop() if hold else False:
                asked.wait(60)
                time.sleep(0.5)  # the trainer has seen the request and is leaving
                if fault is not None:
                    raise fault
            if on_token is not None:
                on_token(alive)

        write(self, requests, params, on_finish, wait)

    def finish_step(self: Trainer, result: Any) -> None:
        finish(self, result)
        if self.state.step == by_weights_of + 1:
            self.flag._on_signal(signal.SIGINT, None)
            asked.set()

    with (
        mock.patch.object(LaggingEngine, "generate", generate),
        mock.patch.object(Trainer, "_finish_step", finish_step),
    ):
        yield


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"rollout__engine": "hf"}, "rollout.engine hf writes with the weights that train"),
        ({"zero_spread_resample_rounds": 1}, "set zero_spread_resample_rounds (1) to 0"),
        ({"eval_steps": 2}, "cannot write held-out stories in between; set eval_steps (2) to 0"),
        ({"is_correction": "none"}, "rows of older weights need a correction"),
        ({"is_correction": "sequence_truncate"}, "set it to geometric_truncate"),
        (
            {
                "rollout__vllm__placement": "colocated",
                "rollout__vllm__gpu_memory_utilization": 0.3,
            },
            "colocated servers sleep while their GPU trains",
        ),
    ],
)
def test_what_cannot_be_written_ahead_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], settings: dict[str, Any], words: str
) -> None:
    assert train(tmp_path / "run", **(AHEAD | {"rollout__max_staleness": 1} | settings)) == 2
    assert words in capsys.readouterr().err
