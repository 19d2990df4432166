"""What every view has: the interface, the numbers behind it, and how numbers are written."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, Self

if TYPE_CHECKING:
    from ..judge.health import JudgeHealth
    from .judge import JudgeWatch


class Shown(NamedTuple):
    """One row of the table: the metric, its name for people, whether more is better."""

    key: str
    label: str
    better: int  # 1 higher, -1 lower, 0 neither


SHOWN = (
    Shown("sft/loss", "loss", -1),
    Shown("sft/eval_loss", "held-out loss", -1),
    Shown("reward", "reward", 1),
    Shown("length/abs_log_ratio", "length |ln|", -1),
    Shown("reward/quality", "quality", 1),
    Shown("entropy", "entropy", 0),
    Shown("kl", "KL", 0),
    Shown("hri/gap", "human gap", 0),
    Shown("perf/tokens_per_s", "tokens/s", 0),
)
TOTALS = (
    ("rows/failed", "failed rows"),
    ("judge/failed", "failed judgements"),
    ("judge/retries", "retries"),
    ("guard/skipped", "skipped updates"),
)


class Progress(Protocol):
    """What the trainer tells about the run; see `make_view`."""

    def start(
        self,
        title: str,
        facts: Mapping[str, str],
        total_steps: int,
        history: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        """Begin; `facts` are shown under the title, `history` are steps before a resume."""

    def phase(self, name: str, total: int | None = None) -> None:
        """Enter a phase of `total` items; earlier phases of the step stay until the step ends."""

    def advance(self, n: int = 1, *, phase: str | None = None, **info: Any) -> None:
        """`n` items more, in the latest phase or a named one; `info` is shown beside the bar."""

    def step(self, step: int, metrics: Mapping[str, Any]) -> None:
        """A step ended with these metrics; its phases are over."""

    def watch_judge(self, health: Callable[[], JudgeHealth]) -> None:
        """Show this judge's troubles from now on; `health` is called from any thread."""

    def tick(self) -> None:
        """Called often while something is waited for: time to look after the judge."""

    def note(self, text: str) -> None:
        """A line that stays."""

    def warn(self, text: str) -> None:
        """A line that stays and asks for attention."""

    def stop(self) -> None:
        """Give the terminal back; calling it again does nothing."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...


@dataclass
class Phase:
    name: str
    total: int | None
    started: float
    done: int = 0
    info: dict[str, Any] = field(default_factory=dict)
    ended: float | None = None  # when the last item was done

    def count(self) -> str:
        return f"{self.done}/{self.total}" if self.total is not None else f"{self.done or ''}"

    def details(self) -> str:
        return "  ".join(f"{k.replace('_', ' ')} {number(v)}" for k, v in self.info.items())


class Run:
    """The numbers behind a view; every access holds `lock`."""

    def __init__(self, now: Callable[[], float]) -> None:
        self.now = now
        self.lock = threading.RLock()
        self.title = ""
        self.facts: dict[str, str] = {}
        self.total_steps = 0
        self.current = 0
        self.rows: list[Mapping[str, Any]] = []
        self.phases: dict[str, Phase] = {}
        self.begun = now()
        self._last_step: float | None = None
        self._durations: list[float] = []

    def start(
        self, title: str, facts: Mapping[str, str], total: int, history: Iterable[Mapping[str, Any]]
    ) -> None:
        self.title, self.facts, self.total_steps = title, dict(facts), total
        self.rows = [dict(row) for row in history]
        self.current = int(self.rows[-1].get("step", len(self.rows))) if self.rows else 0
        self.begun = self.now()

    def phase(self, name: str, total: int | None) -> Phase:
        uncounted = [p.name for p in self.phases.values() if p.total is None]
        for old in (name, *uncounted):  # entered again: it moves to the end; uncounted: it is over
            self.phases.pop(old, None)
        self.phases[name] = Phase(name, total, self.now())
        return self.phases[name]

    def advance(self, n: int, name: str | None, info: Mapping[str, Any]) -> Phase:
        if name is None:
            name = next(reversed(self.phases), "working")
        if name not in self.phases:
            self.phase(name, None)
        phase = self.phases[name]
        phase.done += n
        phase.info.update(info)
        if phase.total is not None and phase.done >= phase.total and phase.ended is None:
            phase.ended = self.now()
        return phase

    def step(self, step: int, metrics: Mapping[str, Any]) -> None:
        now = self.now()
        took = now - self._last_step if self._last_step is not None else metrics.get("perf/step_s")
        if isinstance(took, int | float):
            self._durations.append(took)
        self._last_step = now
        self.current = step
        self.rows.append(dict(metrics))
        self.phases.clear()

    def values(self, key: str) -> list[float]:
        found = (row.get(key) for row in self.rows)
        return [float(value) for value in found if isinstance(value, int | float)]

    def eta_s(self) -> float | None:
        """Steps left times the median of the last ten; unknown before the first."""
        if not self._durations:
            return None
        return max(0, self.total_steps - self.current) * median(self._durations[-10:])

    def elapsed_s(self) -> float:
        return self.now() - self.begun


class View:
    """What the three views share: the context manager and the state."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._run = Run(now)
        self._judge: JudgeWatch | None = None

    def watch_judge(self, health: Callable[[], JudgeHealth]) -> None:
        """Show this judge's troubles from now on."""
        from .judge import JudgeWatch

        self._judge = JudgeWatch(health, self._run.now)

    def stop(self) -> None:
        """Nothing to give back."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def number(value: Any) -> str:
    """Three useful digits: 1,234  56.7  0.123."""
    if not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"


def clock(seconds: float) -> str:
    """1:02:03 or 2:03."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
