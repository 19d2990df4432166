"""`python -m polaris_fast.train [--config FILE] [--dry-run] [--KEY VALUE ...]`."""

from __future__ import annotations

import sys

from .cli import main
from .leaving import leave

if __name__ == "__main__":
    leave(main(["train", *sys.argv[1:]]))
