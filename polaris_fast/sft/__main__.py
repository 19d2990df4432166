"""`python -m polaris_fast.sft [--config FILE] [--dry-run] [--KEY VALUE ...]`."""

from __future__ import annotations

import sys

from ..cli import main
from ..leaving import leave

if __name__ == "__main__":
    leave(main(["sft", *sys.argv[1:]]))
