"""The end of a process: a rank leaves without tearing the interpreter down.

gloo's worker threads may still hold the last collective's tensors when the interpreter ends; one
that then waits for Python's lock is unwound through C++, which aborts the whole process (SIGABRT,
"terminate called without an active exception") after a run that had done everything. DeepSpeed
keeps the process group in a module, so destroying it does not join those threads.
"""

from __future__ import annotations

import logging
import os
import sys
from typing import NoReturn


def leave(status: int) -> NoReturn:
    """End this process with `status`, at once if a launcher started it as a rank.

    Everything that must be closed is closed by its own `with` block before.
    """
    if "WORLD_SIZE" in os.environ:
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)
