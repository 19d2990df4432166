"""Stories on the disk: text files, JSONL, folders of them, or standard input."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...types import UserError

TEXT_SUFFIXES = (".txt", ".md")
SUFFIXES = (*TEXT_SUFFIXES, ".jsonl")


@dataclass(frozen=True)
class Text:
    """One story to be scored."""

    name: str  # file name, with line number or uid in a JSONL file
    prompt: str  # "" when there is none
    story: str


def read_texts(paths: Sequence[str], prompt: str = "") -> list[Text]:
    """Every story in these files, in order.

    A `.txt` or `.md` file is one story; a line of a `.jsonl` file is an object with `story` and,
    if it has them, `prompt` and `uid`; a folder stands for its files; `-` is one story on stdin.

    Args:
        paths: files, folders or `-`.
        prompt: of the stories that bring none.

    Raises:
        UserError: a path that is missing, of another kind, unreadable or without a story.
    """
    return [text for path in paths for text in _read(path, prompt)]


def _read(path: str, prompt: str) -> Iterator[Text]:
    if path == "-":
        yield _text("stdin", prompt, _decoded("stdin", sys.stdin.buffer.read()))
        return
    for file in _files(Path(path)):
        content = _content(file)
        if file.suffix == ".jsonl":
            yield from _lines(file, content, prompt)
        else:
            yield _text(file.name, prompt, content)


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        found = sorted(p for p in path.iterdir() if p.suffix in SUFFIXES and p.is_file())
        if not found:
            raise UserError(f"{path}: the folder holds no {', '.join(SUFFIXES)} file")
        return found
    if not path.is_file():
        raise UserError(f"{path}: no such file or folder")
    if path.suffix not in SUFFIXES:
        raise UserError(f"{path}: want {', '.join(SUFFIXES)}, or - for a story on standard input")
    return [path]


def _content(file: Path) -> str:
    try:
        return _decoded(str(file), file.read_bytes())
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror})") from error


def _decoded(name: str, content: bytes) -> str:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{name}: not UTF-8 (byte {error.start}); convert it first") from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _lines(file: Path, content: str, prompt: str) -> Iterator[Text]:
    for number, line in enumerate(content.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{file.name}:{number}"
        try:
            tree = json.loads(line)
        except ValueError as error:
            raise UserError(f"{where}: not valid JSON ({error})") from error
        story = tree.get("story") if isinstance(tree, dict) else None
        if not isinstance(story, str):
            raise UserError(f"{where}: want an object with the text under `story`")
        name = f"{file.name}:{tree.get('uid') or tree.get('row_id') or number}"
        yield _text(name, str(tree.get("prompt") or prompt), story)


def _text(name: str, prompt: str, story: str) -> Text:
    if not story.strip():
        raise UserError(f"{name}: the story is empty")
    return Text(name, _whole(prompt), _whole(story.strip()))


def _whole(text: str) -> str:
    """JSON can spell half a character, which nothing can print or send: U+FFFD instead."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
