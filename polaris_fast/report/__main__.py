"""`python -m polaris_fast.report RUN [RUN ...]`: write a run's report, or compare several runs."""

from __future__ import annotations

import argparse
import sys

from ..types import UserError
from .compare import write_comparison
from .render import write_report


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code; a user's mistake is one line on stderr."""
    parser = argparse.ArgumentParser(prog="python -m polaris_fast.report", description=__doc__)
    parser.add_argument(
        "run", nargs="+", help="run folder, the one that holds metrics.jsonl; several are compared"
    )
    parser.add_argument(
        "--out", help="file of a comparison (default: comparison.html beside the first run)"
    )
    arguments = parser.parse_args(argv)
    try:
        if len(arguments.run) > 1:
            print(write_comparison(arguments.run, arguments.out))
        elif arguments.out is not None:
            raise UserError("--out: a single run's report goes into its folder; leave --out away")
        else:
            print(write_report(arguments.run[0]))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
