"""Reading a zip file that a stranger made: in memory, within limits, by names inside it."""

from __future__ import annotations

import posixpath
import unicodedata
import zipfile
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import unquote

from ..document import SourceError

MIB = 2**20
MAX_MEMBERS = 20_000
MAX_MEMBER_BYTES = 64 * MIB  # of one text; the longest novels have 5
MAX_TOTAL_BYTES = 512 * MIB  # of all texts of one book
MAX_RATIO = 250  # unpacked to packed; prose comes to about 3
RATIO_FREE_BYTES = 4 * MIB


class Archive:
    """Members of a zip file; nothing is written to the disk. A context manager."""

    def __init__(self, path: Path) -> None:
        try:
            self._zip = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
            raise SourceError(f"no readable zip file ({error})") from error
        self._members = {info.filename: info for info in self._zip.infolist()}
        self._spellings = {_folded(name): name for name in self._members}
        self._read_bytes = 0
        if len(self._members) > MAX_MEMBERS:
            self._zip.close()
            raise SourceError(f"{len(self._members)} members, more than {MAX_MEMBERS}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._zip.close()

    def __contains__(self, name: str) -> bool:
        return name in self._members

    def resolve(self, base: str, href: str) -> tuple[str, str]:
        """(member name, fragment) of a link in member `base`; the name is "" for another place.

        A name that differs from a member's in case or composition alone is that member's.
        """
        name, fragment = _resolve(base, href)
        if name not in self._members:
            name = self._spellings.get(_folded(name), name)
        return name, fragment

    def read(self, name: str) -> bytes:
        """A member's bytes.

        Raises:
            SourceError: it is missing, damaged, or unpacks to more than the limits.
        """
        info = self._members.get(name)
        if info is None:
            raise SourceError(f"{name} is missing")
        suspicious = info.file_size > RATIO_FREE_BYTES and (
            info.file_size > MAX_RATIO * max(info.compress_size, 1)
        )
        too_much = self._read_bytes + info.file_size > MAX_TOTAL_BYTES
        if info.file_size > MAX_MEMBER_BYTES or suspicious or too_much:
            raise SourceError(
                f"{name} unpacks to {info.file_size / MIB:.0f} MiB from "
                f"{info.compress_size / MIB:.2f} MiB; that is beyond the limits of a book"
            )
        try:
            with self._zip.open(info) as file:
                raw = file.read(MAX_MEMBER_BYTES + 1)  # the stated size may be a lie
        except (zipfile.BadZipFile, RuntimeError, OSError, EOFError, NotImplementedError) as error:
            raise SourceError(f"{name} cannot be unpacked ({error})") from error
        except Exception as error:  # zlib.error and its like have no common base
            raise SourceError(f"{name} is damaged ({error})") from error
        if len(raw) > MAX_MEMBER_BYTES:
            raise SourceError(f"{name} is larger than it says")
        self._read_bytes += len(raw)
        return raw


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def _resolve(base: str, href: str) -> tuple[str, str]:
    path, _, fragment = href.partition("#")
    if "://" in path or path.startswith(("mailto:", "data:")):
        return "", fragment
    if not path:
        return base, unquote(fragment)
    name = posixpath.normpath(posixpath.join(posixpath.dirname(base), unquote(path)))
    return name.lstrip("/"), unquote(fragment)
