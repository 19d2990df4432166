"""Space set aside on the journal's disk, given up when the disk is full."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path
from typing import IO

from .errors import refused

SIZE_BYTES = 8 * 2**20  # some hundred answers under way, their log pages included

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Reserve:
    """A file without a name beside the journal: the system frees it with the process."""

    def __init__(self, journal: Path, size_bytes: int = SIZE_BYTES) -> None:
        """Create the folder, and allocate.

        Raises:
            JournalError: the folder cannot be written, or has no room for the reserve.
        """
        folder = journal.parent
        self._file: IO[bytes] | None = None
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = tempfile.TemporaryFile(dir=folder)
            _allocate(self._file, size_bytes)
        except OSError as error:
            self.release()
            what = f"nothing can be written in {folder} ({error.strerror or error})"
            if error.errno in _NO_ROOM:
                what = f"{folder} has no room for {size_bytes // 2**20} MiB ({error.strerror})"
            remedy = (
                "free some space or make the folder writable, give another path with "
                "judge.journal, or judge.journal=off to keep none"
            )
            raise refused(journal, what, remedy) from error

    def release(self) -> bool:
        """Give the space back; whether there was any."""
        if self._file is None:
            return False
        self._file.close()
        self._file = None
        return True


def _allocate(file: IO[bytes], size_bytes: int) -> None:
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, size_bytes)
        return
    file.write(os.urandom(size_bytes))  # zeros could be compressed to nothing
    file.flush()
    os.fsync(file.fileno())  # where space is given out no earlier
