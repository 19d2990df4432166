"""`python -m polaris_fast.evaluate --model M [--model M2 ...] --data D`."""

from __future__ import annotations

from .command import main

if __name__ == "__main__":
    raise SystemExit(main())
