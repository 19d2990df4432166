"""`python -m polaris_fast.judge`: serve, score, replay, calibrate and journal."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence

from ..types import UserError
from .commands import calibrate, journal, replay, score, serve
from .commands.judging import Interrupted
from .commands.settings import PREFIX, split_settings

COMMANDS = (serve, score, replay, calibrate, journal)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a subcommand; returns the exit status (2: a mistake in the input, 130: Ctrl-C)."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    # A process started in the background by a shell inherits an ignored SIGINT.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        words, settings = split_settings(words)
        parser = _parser()
        options = parser.parse_args(words)
        if settings and not options.takes_settings:
            parser.error(f"{options.command} takes no {PREFIX}KEY arguments")
        options.settings = settings
        status: int = options.run(options)
        return status
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Interrupted as stop:
        print(f"stopped: {stop}", file=sys.stderr)
        return 130
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `| head` has seen enough; the flush at exit must not complain
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m polaris_fast.judge", description="Judges and what they said."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for command in COMMANDS:
        command.add_parser(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
