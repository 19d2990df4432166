"""The last lines of a training run: where things are and what to do next."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path


def closing_words(run_dir: Path, report: Path, step: int, status: str) -> str:
    """Report, checkpoint, and the command that goes on from here.

    Args:
        step: optimizer steps done.
        status: "finished" or "interrupted".
    """
    run, python = shlex.quote(short_path(run_dir)), shlex.quote(short_path(sys.executable))
    lines = [f"report      {short_path(report)}"]
    last = run_dir / f"checkpoint-{step}"
    if last.is_dir():
        lines.append(f"checkpoint  {short_path(last)}")
    if status != "interrupted":
        lines.append(
            f'write       {python} -m polaris_fast generate --model {run} --prompt "..." --words 60'
        )
    elif last.is_dir():
        lines.append(f"continue    {python} -m polaris_fast.train --resume_from_checkpoint {run}")
    else:
        lines.append("no step was finished: start the run anew")
    return "\n".join(lines)


def short_path(path: str | Path) -> str:
    """Relative to the working folder where the path lies in it."""
    absolute = Path(os.path.abspath(path))
    here = Path.cwd()
    return str(absolute.relative_to(here) if absolute.is_relative_to(here) else absolute)
