"""One evaluation at a time writes into a folder: two would pay twice and mix their lines."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..types import UserError

LOCK_FILE = ".lock"


@contextmanager
def sole_writer(out: Path) -> Iterator[None]:
    """Hold the folder; the lock goes with the process, a killed one's too.

    Raises:
        UserError: another evaluation holds it, or it cannot be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        file = (out / LOCK_FILE).open("ab")
    except OSError as error:
        raise UserError(
            f"--out: {out} cannot be written ({error.strerror}); give another folder"
        ) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"--out: another evaluation is writing to {out}; wait for its end, or give "
                "another folder"
            ) from None
        except OSError:  # a file system without locks
            pass
        yield
