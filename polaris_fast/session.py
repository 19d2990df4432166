"""From a configuration to an exit status: ranks, the terminal, Ctrl-C, and mistakes told in a line.

What is conducted is a run of any kind: GRPO (`trainer`) or supervised (`sft`).
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Protocol

from .checkpoint import is_disk_fault
from .config import Config
from .model.load import quiet_transformers
from .model.parity import PackingLeak
from .progress import Progress, make_view
from .ranks import join_world
from .ranks.conductor import Conductor
from .ranks.follower import follow
from .ranks.parts import build_parts
from .stopping import StopFlag
from .types import UserError


class Run(Protocol):
    """A run that rank 0 conducts."""

    def run(self) -> str:
        """To its end; returns "finished" or "interrupted"."""
        ...

    def closing_words(self) -> str:
        """What a person should know and do next."""
        ...


MakeRun = Callable[[Config, Progress, StopFlag, Conductor], Run]


def conduct(config: Config, make_run: MakeRun) -> int:
    """Run a configuration to its end; returns the exit status (0 done, 2 user error, 130 stop).

    Args:
        make_run: checks everything cheap and raises UserError before anything is written.
    """
    with join_world() as world:
        if not world.is_conductor:
            return follow(world, build_parts)
        with Conductor(world) as conductor:
            return _conduct(config, make_run, conductor)


def _conduct(config: Config, make_run: MakeRun, conductor: Conductor) -> int:
    quiet_transformers()
    view = make_view(config.progress)
    flag = StopFlag()
    try:
        with flag.installed(), view:
            run = make_run(config, view, flag, conductor)
            status = run.run()
    except (UserError, PackingLeak) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Exception as error:
        if not is_disk_fault(error):
            raise
        print(
            f"error: output_dir: the disk is full or not writable ({error}); free some space or "
            "give another output_dir, then go on with resume_from_checkpoint",
            file=sys.stderr,
        )
        return 2
    print(run.closing_words())
    return 0 if status == "finished" else 130
