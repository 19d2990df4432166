"""Bytes of a text file to text."""

from __future__ import annotations

from pathlib import Path

from ..document import SourceError

MAX_BYTES = 256 * 2**20


def read_limited(path: Path) -> bytes:
    """The file's bytes. Raises SourceError when there are more than `MAX_BYTES`."""
    if path.stat().st_size > MAX_BYTES:
        raise SourceError(f"larger than {MAX_BYTES // 2**20} MiB")
    return path.read_bytes()


def decode_text(raw: bytes) -> str:
    """UTF-8 or UTF-16 by its mark, else UTF-8, else what Western texts have that are not.

    Raises:
        SourceError: bytes that are no text.
    """
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        encoding = "utf-16"
    else:
        encoding = "utf-8-sig"
        if b"\0" in raw[:4096]:
            raise SourceError("binary data, not text")
    try:
        return raw.decode(encoding)
    except UnicodeDecodeError as error:
        if encoding == "utf-16":
            raise SourceError(f"broken UTF-16 ({error.reason})") from error
    return raw.decode("windows-1252", errors="replace")
