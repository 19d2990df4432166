"""The folder that stands for a book: chapters saved as files of their own name none."""

from __future__ import annotations

from pathlib import PurePath

from ..headings import is_chapter, is_numbered, is_part


def folder_of(name: str, title: str = "") -> str:
    """The folder of a file that names no book; "" for one that does, or lies right in a source.

    Args:
        name: path below the source folder.
        title: of a book, by an author: a title alone may be a chapter's, and "Chapter Two" is one.
    """
    if title and not (is_chapter(title) or is_part(title) or is_numbered(title)):
        return ""
    folder = PurePath(name).parent.as_posix()
    return "" if folder == "." else folder
