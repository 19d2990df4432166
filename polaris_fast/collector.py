"""Python's collector of cycles, kept from stopping the judge and the training at once.

A full collection looks at every object and holds all threads meanwhile: 0.27 s with torch,
transformers and a tiny model loaded, in whichever step it falls. What set-up made stays for the
whole run, so it need not be looked at again.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def setup_spared() -> Iterator[None]:
    """Full collections pass over what exists now; what is dropped later is freed as ever."""
    gc.collect()  # or garbage in cycles would be spared, too
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
