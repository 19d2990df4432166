"""`python -m polaris_fast.evaluate --model M [--model M2 ...] --data D`."""

from __future__ import annotations

import os

from .command import main

if __name__ == "__main__":
    # tokenizers warn about forks otherwise
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    raise SystemExit(main())
