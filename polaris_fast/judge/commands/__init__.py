"""The subcommands of `python -m polaris_fast.judge`, one a module.

Each has `add_parser(subparsers)`, which sets the default `run`, and `run(options) -> int`, the exit
status. `options.settings` holds the `--judge.KEY value` arguments by dotted key; a command that
takes none says so with the default `takes_settings=False`.
"""

from __future__ import annotations
