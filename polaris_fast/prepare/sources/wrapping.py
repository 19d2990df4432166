"""Lines of a fixed width back to paragraphs, without touching verse and letterheads."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence

MIN_WIDTH, MAX_WIDTH = 50, 100  # characters of hard-wrapped prose
_HYPHENATED = re.compile(r"[^\W\d_]-$")


def unwrap(paragraphs: Sequence[Sequence[str]]) -> list[str]:
    """The text of each paragraph, given its lines.

    Lines are joined where the whole text is set to one width and the paragraph fills it; elsewhere
    a line break was meant.
    """
    width = _width(paragraphs)
    return [_join(lines) if _fills(lines, width) else _keep(lines) for lines in paragraphs]


def _width(paragraphs: Sequence[Sequence[str]]) -> int:
    """The width that lines with a following line are set to; 0 for a text that is not wrapped."""
    inner = sorted(len(line) for lines in paragraphs for line in lines[:-1])
    if not inner:
        return 0
    width = inner[int(0.95 * (len(inner) - 1))]
    return width if MIN_WIDTH <= width <= MAX_WIDTH else 0


def _fills(lines: Sequence[str], width: int) -> bool:
    """Whether each line but the last is so long that the next word did not fit in."""
    if not width or len(lines) < 2:
        return False
    full = sum(
        len(line) + 1 + len((following.split() or [""])[0]) > 0.85 * width
        for line, following in itertools.pairwise(lines)
    )
    return full >= 0.8 * (len(lines) - 1)


def _join(lines: Sequence[str]) -> str:
    text = lines[0].strip()
    for raw in lines[1:]:
        line = raw.strip()
        if _HYPHENATED.search(text) and line[:1].islower():
            text = text[:-1] + line
        else:
            text = f"{text} {line}"
    return text


def _keep(lines: Sequence[str]) -> str:
    return "\n".join(line.strip() for line in lines)
