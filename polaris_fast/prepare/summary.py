"""What was made of what: the numbers behind the data card, the page and the last lines."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from .bins import ALL_BINS
from .document import Drop
from .duplicates import Twin
from .names import name_keys
from .split import Split

if TYPE_CHECKING:
    from .prompts.endpoint import Spent
    from .prompts.writer import Written

SAMPLES = 6
MAX_KINDS = 8  # of files that are not read; the rest is counted


def counted(number: int, noun: str, plural: str = "") -> str:
    """`1 file`, `1,250 files`."""
    return f"{number:,} " + (noun if number == 1 else plural or f"{noun}s")


@dataclass(frozen=True, slots=True)
class Line:
    """A kept story without its text."""

    number: int
    uid: str
    title: str
    author: str
    source: str
    words: int
    bin: str
    where: str
    rights: str
    folder: str = ""
    is_test: bool = False

    @property
    def is_nameless(self) -> bool:
        """Whether nothing says who wrote it or in which book it stands but its file's own name."""
        file = Path(self.where)
        unnamed = self.source in (file.name, file.stem) and not self.folder
        return unnamed and not name_keys(self.author)


@dataclass(frozen=True, slots=True)
class Duplicate:
    """A story that was left out for another one."""

    dropped: str  # 'title, file'
    kept: str
    words: int
    twin: Twin


@dataclass(frozen=True, slots=True)
class Sample:
    """A record to look at."""

    title: str
    author: str
    words: int
    prompt: str
    prompt_from: str
    opening: str


@dataclass(slots=True)
class Summary:
    """All of it."""

    lines: list[Line] = field(default_factory=list)
    drops: list[Drop] = field(default_factory=list)
    duplicates: list[Duplicate] = field(default_factory=list)
    split: Split | None = None
    num_files: int = 0
    other_files: Counter[str] = field(default_factory=Counter)  # not read, by suffix
    leaking_prompts: int = 0
    sized_prompts: int = 0
    prompts_from: Counter[str] = field(default_factory=Counter)
    num_reasoned: int = 0
    written: Written | None = None
    spent: Spent | None = None
    samples: list[Sample] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def num_nameless(self) -> int:
        """Stories that nothing but a text in common can tie to others of their book."""
        return sum(line.is_nameless for line in self.lines)

    @property
    def num_test(self) -> int:
        """Stories in the test file."""
        return sum(line.is_test for line in self.lines)

    def other_kinds(self) -> str:
        """`3 .pdf, 1 .mobi and 2 more files`; "" when every file was read."""
        most = sorted(self.other_files.items(), key=lambda item: (-item[1], item[0]))[:MAX_KINDS]
        rest = self.other_files.total() - sum(n for _, n in most)
        more = f" and {counted(rest, 'more file')}" if rest else ""
        return ", ".join(f"{n:,} {kind}" for kind, n in most) + more

    def drop_counts(self) -> dict[str, int]:
        """Texts left out, by kind, most frequent first."""
        counts = Counter(drop.kind for drop in self.drops)
        counts["near-duplicate"] += len(self.duplicates)
        return {kind: n for kind, n in counts.most_common() if n}

    def bins(self) -> dict[str, tuple[int, int]]:
        """(training, test) stories of each length bin that has any, shortest first."""
        counts = Counter((line.bin, line.is_test) for line in self.lines)
        return {
            name: (counts[name, False], counts[name, True])
            for name in ALL_BINS
            if counts[name, False] or counts[name, True]
        }
