"""Bytes of a text file or a page to text."""

from __future__ import annotations

import codecs
import re
from pathlib import Path

from ..document import SourceError

MAX_BYTES = 256 * 2**20
MAX_ACCENTED = 1 / 3  # of the letters of a Western text; no language has half as many
MIN_ACCENTED = 40  # letters: a book's page with nothing but a name on it proves nothing
_MARKS = ((b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"), (b"<\0", "utf-16-le"),
          (b"\0<", "utf-16-be"))  # fmt: skip
# As browsers read them: the larger set of characters that goes by the smaller one's name.
_LARGER = {"ascii": "cp1252", "iso8859-1": "cp1252", "iso8859-9": "cp1254", "gb2312": "gb18030",
           "gbk": "gb18030", "shift_jis": "cp932", "euc_kr": "cp949"}  # fmt: skip
_WESTERN = "cp1252"
_PROBE = rb"<a> \n +AGE-"  # read as it stands by all that pages are written in, not by UTF-7
_NO_LETTERS = re.compile(r"[\W\d_]+")
_NOT_ACCENTED = re.compile(r"[^\u00c0-\u00ff]+")


def read_limited(path: Path) -> bytes:
    """The file's bytes. Raises SourceError when there are more than `MAX_BYTES`."""
    if path.stat().st_size > MAX_BYTES:
        raise SourceError(f"larger than {MAX_BYTES // 2**20} MiB")
    return path.read_bytes()


def decode_text(raw: bytes) -> str:
    """A text file: UTF-8, UTF-16 by its mark, or what Western texts have that are neither.

    Raises:
        SourceError: bytes that are no text, or text in an encoding that is not known.
    """
    text, western = decode(raw)
    if western:
        refuse_unknown(text)
    return text


def decode(raw: bytes, declared: str = "") -> tuple[str, bool]:
    """(text, whether it was read as windows-1252); a byte that stands for nothing is U+FFFD.

    The byte order mark decides, then what is declared where all of it fits, then UTF-8. A text with
    a few broken bytes is UTF-8 when more of what is beyond ASCII fits it than does not.

    Raises:
        SourceError: bytes that are no text.
    """
    for mark, encoding in _MARKS:
        if raw.startswith(mark):
            try:
                return raw.decode(encoding), False
            except UnicodeDecodeError as error:
                raise SourceError(f"broken UTF-16 ({error.reason})") from error
    if b"\0" in raw[:4096]:
        raise SourceError("binary data, not text")
    named = "" if raw.startswith(codecs.BOM_UTF8) else _known(declared)
    for encoding in filter(None, (named, "utf-8-sig")):
        try:
            return raw.decode(encoding), encoding == _WESTERN
        except UnicodeDecodeError:
            pass
    text = raw.decode("utf-8-sig", errors="replace")
    broken = text.count("\ufffd") - raw.count(b"\xef\xbf\xbd")
    fitting = len(text) - len(text.encode("ascii", errors="ignore")) - broken
    if fitting > broken:
        return text, False
    encoding = _WESTERN if named in ("", "utf-8") else named
    return raw.decode(encoding, errors="replace"), encoding == _WESTERN


def refuse_unknown(text: str) -> None:
    """Refuse what was read as windows-1252 and is not: Russian in windows-1251 becomes accents.

    Raises:
        SourceError: more accented letters than any Western language has.
    """
    letters = _NO_LETTERS.sub("", text)
    if len(_NOT_ACCENTED.sub("", letters)) > max(MIN_ACCENTED, MAX_ACCENTED * len(letters)):
        raise SourceError("encoding not known; convert it to UTF-8")


def _known(declared: str) -> str:
    """Python's name of a declared encoding; "" for one that it or a page cannot have."""
    try:
        name = codecs.lookup(declared).name
        if _PROBE.decode(name) != _PROBE.decode("ascii"):
            return ""  # a page that could be read this far is not UTF-16, whatever it says
    except (LookupError, ValueError):
        return ""
    return _LARGER.get(name, name)
