"""`python -m polaris_fast.sft [--config FILE] [--dry-run] [--KEY VALUE ...]`."""

from __future__ import annotations

import sys

from ..cli import main

if __name__ == "__main__":
    sys.exit(main(["sft", *sys.argv[1:]]))
