"""`python -m polaris_fast.report RUN`: write the report of a run folder and print its path."""

from __future__ import annotations

import argparse
import sys

from ..types import UserError
from .render import write_report


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code; a user's mistake is one line on stderr."""
    parser = argparse.ArgumentParser(prog="python -m polaris_fast.report", description=__doc__)
    parser.add_argument("run", help="run folder, the one that holds metrics.jsonl")
    try:
        print(write_report(parser.parse_args(argv).run))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
