"""`python -m polaris_fast.plan --config polaris_9b --gpus 4xA100-80G`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from ..types import UserError


def main(argv: Sequence[str] | None = None) -> int:
    """Plan a run; returns the exit status: 0, 1 when it does not fit, 2 for a mistake."""
    known, rest = _parser().parse_known_args(sys.argv[1:] if argv is None else argv)
    try:
        return _plan(known, rest)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _plan(known: argparse.Namespace, rest: Sequence[str]) -> int:
    from ..cli import parse_overrides
    from ..config_file import load_config
    from ..model.load import quiet_transformers
    from .assumptions import Assumptions
    from .build import make_plan
    from .hardware import parse_gpus, this_machine
    from .table import as_json, render

    config = load_config(known.config, parse_overrides(rest))
    machine = this_machine() if known.gpus is None else parse_gpus(known.gpus)
    assumed = Assumptions().with_changes(known.assume)
    quiet_transformers()
    plan = make_plan(config, machine, assumed=assumed, lengths_file=known.lengths)
    if known.svg is not None:
        from .plot import write_plot

        write_plot(plan, known.svg)
    if known.json:
        print(json.dumps(as_json(plan), indent=2))
    else:
        print(render(plan, colour=sys.stdout.isatty()), end="")
    return 0 if plan.memory.fits else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="polaris plan",
        description="Predict memory, time and cost of a run before it starts: nothing is loaded "
        "or downloaded. Any configuration key may follow as --key value.",
        allow_abbrev=False,
    )
    parser.add_argument("--config", help="YAML file or the name of a shipped configuration")
    parser.add_argument("--gpus", help="such as 4xA100-80G, or cpu; this machine's if left out")
    parser.add_argument("--lengths", help="JSON list of recorded completion lengths, in tokens")
    parser.add_argument(
        "--assume", action="append", default=[], metavar="NAME=VALUE",
        help="replace an assumption of the report; may be given again",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON")
    parser.add_argument("--svg", help="write the memory of each phase as a picture")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
