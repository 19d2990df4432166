"""What a reader should know before believing the curves: faults, losses, reward hacking."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from pydantic import ValidationError

from ..alarms import AlarmWatch
from ..config import AlarmConfig
from .folder import RunFolder
from .verdict import both_ends, judge_run

MAX_TRUNCATED = 0.10  # share of stories cut by the token limit that is worth a word
MAX_REPETITION_RISE = 0.05
MAX_FAILED_TRIES = 0.15  # share of the requests to the judge


@dataclass(frozen=True)
class Notice:
    """One line; `level` is warn or note."""

    level: str
    text: str


def notices(run: RunFolder) -> list[Notice]:
    """Everything worth attention, gravest first."""
    found = [*_ending(run), *_losses(run), *_judging(run), *_alarms(run), *_hacking(run)]
    return sorted(found, key=lambda notice: notice.level != "warn")


def judge_caption(run: RunFolder) -> str | None:
    """What the quality numbers are when no language model gave them."""
    if run.setting("reward.function"):
        return (
            f"Rewards come from the user's function {run.setting('reward.function')}; "
            "no judge was asked."
        )
    was_judged = not run.rows or run.has("reward/quality")
    if run.config and was_judged and run.setting("judge.base_url") is None:
        return (
            "Quality here is a text-statistics heuristic (the local judge), which is no judge of "
            "quality: it stands in so that everything runs without a key. Read these curves as a "
            "check of the training loop, not as evidence about the stories. To measure stories, "
            "set judge.base_url."
        )
    return None


def _ending(run: RunFolder) -> list[Notice]:
    found = [
        Notice("warn", f"{name} could not be read and is left out.") for name in run.unreadable
    ]
    status = run.summary.get("status")
    if status is None:
        text = "No summary.json: the run is still going on, or it was killed."
        found.insert(0, Notice("warn", text))
    elif status != "finished":
        reason = run.summary.get("reason") or run.summary.get("error")
        text = f"The run ended as {status}" + (f": {reason}" if reason else ".")
        found.insert(0, Notice("warn", text))
    if not run.rows:
        found.append(Notice("warn", "No step was finished."))
    return found


def _losses(run: RunFolder) -> list[Notice]:
    found = []
    skipped = run.series("guard/skipped")
    if np.nansum(skipped) > 0:
        steps = ", ".join(f"{step:.0f}" for step in run.steps[np.nan_to_num(skipped) > 0][:12])
        text = f"{_count(skipped, 'update')} skipped by the guard (step {steps})."
        found.append(Notice("warn", text))
    failed = run.series("rows/failed")
    if np.nansum(failed) > 0:
        classes = sorted({k for row in run.rows for k in row if k.startswith("judge/failures/")})
        counts = {k.rpartition("/")[2]: np.nansum(run.series(k)) for k in classes}
        named = ", ".join(f"{name} {count:.0f}" for name, count in counts.items() if count)
        why = f" ({named})" if named else ""
        text = f"{_count(failed, 'row')} had no judgement{why} and did not train."
        found.append(Notice("warn", text))
    few = run.series("groups/dropped_too_few_scored")
    if np.nansum(few) > 0:
        text = f"{_count(few, 'group')} dropped: too few of their rows were scored."
        found.append(Notice("warn", text))
    flat = run.series("groups/dropped_zero_spread")
    if np.nansum(flat) > 0:
        text = f"{_count(flat, 'group')} dropped: all rewards in the group were equal."
        found.append(Notice("note", text))
    return found


def _judging(run: RunFolder) -> list[Notice]:
    """A judge that was down, or that made trouble although every story got its score."""
    found = []
    opened = run.series("judge/breaker_opened")
    if times := int(np.nanmax(opened, initial=0)):
        often = "once" if times == 1 else f"{times} times"
        found.append(Notice("warn", f"The judge was down {often}; the run waited for it."))
    names = sorted({k for row in run.rows for k in row if k.startswith("judge/faults/")})
    counts = {k.rpartition("/")[2]: int(np.nansum(run.series(k))) for k in names}
    calls, faults = np.nansum(run.series("judge/calls")), sum(counts.values())
    if calls and faults > MAX_FAILED_TRIES * calls:
        named = ", ".join(f"{n} {c}" for n, c in sorted(counts.items(), key=lambda i: -i[1]) if c)
        share = f"{100 * faults / calls:.0f} %"
        found.append(Notice("warn", f"{share} of the requests to the judge failed ({named})."))
    return found


def _alarms(run: RunFolder) -> list[Notice]:
    """What the run's own alarms said, heard again from its metrics."""
    try:
        config = AlarmConfig.model_validate(run.setting("alarms") or {})
    except ValidationError:  # a file edited by hand, or of another version
        config = AlarmConfig()
    if config.action == "off":
        return []
    watch = AlarmWatch(config)
    heard = [(row["step"], alarm.text) for row in run.rows for alarm in watch.look(row)]
    return [Notice("warn", f"Alarm at step {step}: {text}.") for step, text in heard]


def _hacking(run: RunFolder) -> list[Notice]:
    """Signs that the reward rises for the wrong reason."""
    verdict = judge_run(run)
    found = []
    truncated = both_ends(run.series("completions/clipped_ratio"), verdict.window)
    if truncated and truncated.after > MAX_TRUNCATED:
        share = f"{100 * truncated.after:.0f} %"
        text = f"{share} of the last stories were cut off by max_completion_length."
        found.append(Notice("warn", text))
    repetition = both_ends(run.series("reward/self_repetition"), verdict.window)
    if repetition and repetition.change > MAX_REPETITION_RISE:
        text = f"Self-repetition rose from {repetition.before:.2f} to {repetition.after:.2f}."
        found.append(Notice("warn", text))
    trends = {finding.measure.key: finding.trend for finding in verdict.findings}
    if trends.get("reward") == "better" and trends.get("reward/quality") == "worse":
        found.append(Notice("warn", "Reward rose while quality fell: look at the stories below."))
    return found


def _count(values: np.ndarray, noun: str) -> str:
    total = int(np.nansum(values))
    return f"{total} {noun}" + ("" if total == 1 else "s")
