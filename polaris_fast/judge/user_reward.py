"""A user's own reward in place of the judge: `f(prompts, completions, **columns)`.

    with UserReward("my_rewards:brevity") as scorer:
        outcome = scorer.submit(JudgeJob("3/0/2", prompt, story)).result()

The callable, plain or async, gets one-element lists and returns a list with one number, which
becomes `Scored.quality`, or None for "no score". It is called by keyword, with only those columns
it names if it takes no `**columns`. A plain one runs in one thread beside the training thread,
one call at a time; an async one up to `MAX_CONCURRENCY` at a time on a loop of its own.

    None, not finite, an exception   Failed, class `user_none`, `user_not_finite`, `user_error`
    not a list of one number         Failed, class `user_shape`; the reason names reward.function
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import math
import numbers
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ..types import Failed, Outcome, Scored, UserError
from .jobs import JudgeJob
from .task_set import TaskScorer

RewardFunction = Callable[..., Any]

MAX_CONCURRENCY = 32


class UserReward(TaskScorer):
    """Scores stories with a user's callable; the same interface as `JudgePool`."""

    def __init__(self, spec: str) -> None:
        """Raises UserError when `spec` cannot be loaded, see `load_callable`."""
        super().__init__("user-reward")
        self._spec = spec
        self._function = load_callable(spec)
        self._is_async = inspect.iscoroutinefunction(self._function) or (
            inspect.iscoroutinefunction(getattr(self._function, "__call__", None))  # noqa: B004
        )
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="user-reward-call")
        self._slots: asyncio.Semaphore | None = None

    def close(self) -> None:
        """Stop; calls that have not begun end as Failed, class `cancelled`."""
        super().close()
        self._executor.shutdown(wait=False, cancel_futures=True)

    async def begin(self) -> None:
        """Bound what runs at a time."""
        self._slots = asyncio.Semaphore(MAX_CONCURRENCY)

    async def score(self, job: JudgeJob) -> Outcome:
        """Call the function on one story; `job.samples` is ignored, it is asked once."""
        arguments = call_arguments(self._function, job)
        assert self._slots is not None
        try:
            if self._is_async:
                async with self._slots:
                    values = await self._function(**arguments)
            else:
                loop = asyncio.get_running_loop()
                values = await loop.run_in_executor(
                    self._executor, lambda: self._function(**arguments)
                )
        except (Exception, SystemExit) as error:  # whatever a user's code raises fails a row only
            return Failed(f"{self._spec} raised {type(error).__name__}: {error}", "user_error")
        return self._read(values)

    def _read(self, values: Any) -> Outcome:
        if hasattr(values, "tolist"):  # a tensor or an array
            values = values.tolist()
        if isinstance(values, str) or not isinstance(values, Sequence) or len(values) != 1:
            return self._wrong(f"a list with one value a completion, here 1; got {values!r:.200}")
        value = values[0]
        if value is None:
            return Failed(f"{self._spec} returned None", "user_none")
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            return self._wrong(f"floats or None; got {value!r:.200}")
        if not math.isfinite(value):
            return Failed(f"{self._spec} returned {float(value)}", "user_not_finite")
        return Scored(float(value), judge=self._spec)

    def _wrong(self, rule: str) -> Failed:
        return Failed(f"reward.function: {self._spec!r} must return {rule}", "user_shape")


def load_callable(spec: str) -> RewardFunction:
    """Import `package.module:callable`; modules in the working directory are found too.

    Raises:
        UserError: names `reward.function`, the value and the remedy.
    """
    module_name, colon, path = spec.partition(":")
    if not (colon and module_name and path):
        raise _unloadable(spec, "it has no 'package.module:callable' form")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)  # last: a file here must not hide an installed package
        importlib.invalidate_caches()
    try:
        found: Any = importlib.import_module(module_name)
    except Exception as error:
        raise _unloadable(
            spec, f"importing {module_name} raised {type(error).__name__}: {error}"
        ) from error
    for name in path.split("."):
        if not hasattr(found, name):
            raise _unloadable(spec, f"{module_name} has no {path!r}")
        found = getattr(found, name)
    if not callable(found):
        raise _unloadable(spec, f"it is a {type(found).__name__}, not a callable")
    try:
        inspect.signature(found).bind_partial(prompts=[], completions=[])  # columns: at the call
    except TypeError as error:
        raise _unloadable(
            spec, f"it cannot be called as f(prompts, completions): {error}"
        ) from None
    except ValueError:  # built-ins without a signature: found out at the first call
        pass
    function: RewardFunction = found
    return function


def call_arguments(function: RewardFunction, job: JudgeJob) -> dict[str, list[Any]]:
    """Keyword arguments for one story: one-element lists, only those the function takes."""
    columns = {"prompts": [job.prompt], "completions": [job.story]}
    everything = {name: [value] for name, value in job.columns.items()} | columns
    try:
        parameters = inspect.signature(function).parameters
    except ValueError:
        return everything
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return everything
    return {name: value for name, value in everything.items() if name in {*parameters, *columns}}


def _unloadable(spec: str, why: str) -> UserError:
    return UserError(
        f"reward.function: cannot load {spec!r}: {why}; give 'package.module:callable', with the "
        "module installed or in the working directory, or null to use the judge"
    )
