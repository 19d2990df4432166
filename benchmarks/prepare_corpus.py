"""Made-up books for `bench_prepare`: nonsense prose with the word statistics of a language.

python -m benchmarks.prepare_corpus FOLDER --stories 5000
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tests.prepare.books import Part, write_epub

NUM_WORDS = 20_000
LOW, HIGH = 1_000, 12_000  # words of a story, log-uniform
COPY_EVERY = 50
ANTHOLOGY = 20  # stories in a book
SYLLABLES = "ba re mi to lun der sha ki vo pel an tor is qua fen dra lo su wen gar".split()


@dataclass
class Made:
    """What is in the corpus."""

    originals: int = 0
    copies: int = 0
    words: int = 0


class Writer:
    """Stories by number: the same number gives the same story."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self._vocabulary = np.array(
            ["".join(rng.choice(SYLLABLES, size=rng.integers(1, 5))) for _ in range(NUM_WORDS)]
        )
        weights = 1 / np.arange(1, NUM_WORDS + 1)  # Zipf
        self._chances = weights / weights.sum()

    def story(self, number: int) -> str:
        """Paragraphs of sentences."""
        rng = np.random.default_rng([1, number])
        num = int(math.exp(rng.uniform(math.log(LOW * 1.05), math.log(HIGH * 0.95))))
        words = list(rng.choice(self._vocabulary, size=num, p=self._chances))
        sentences, at = [], 0
        for length in rng.integers(6, 22, size=num // 6):
            if at >= num:
                break
            sentences.append(" ".join(words[at : at + length]).capitalize() + ".")
            at += length
        step = 5
        paragraphs = [" ".join(sentences[i : i + step]) for i in range(0, len(sentences), step)]
        return "\n\n".join(paragraphs)


def write_corpus(folder: Path, num: int) -> Made:
    """Write about `num` stories into `folder`, half of them in EPUB anthologies."""
    folder.mkdir(parents=True)
    writer, made = Writer(), Made()
    shelf: list[Part] = []
    rows = (folder / "rows.jsonl").open("w")
    for number in range(num):
        copy = number % COPY_EVERY == COPY_EVERY - 1
        text = writer.story(number - COPY_EVERY // 2 if copy else number)
        if copy:  # without its last paragraph: shorter than the original
            text = "\n\n".join(text.split("\n\n")[:-1])
        made.copies += copy
        made.originals += not copy
        made.words += len(text.split())
        title, author = f"Tale Number {_letters(number)}", f"Author {_letters(number // 3)}"
        form = ("epub", "txt", "epub", "md", "epub", "html", "epub", "jsonl")[number % 8]
        if form == "epub":
            shelf.append(Part(title, text, byline=f"by {author}"))
        elif form == "txt":
            (folder / f"t{number}.txt").write_text(f"{title}\n\nby {author}\n\n{text}\n")
        elif form == "md":
            head = f"---\ntitle: {title}\nauthor: {author}\n---\n\n"
            (folder / f"m{number}.md").write_text(f"{head}# {title}\n\n{text}\n")
        elif form == "html":
            body = "".join(f"<p>{p}</p>" for p in text.split("\n\n"))
            head = f"<title>{title}</title><meta name='author' content='{author}'>"
            (folder / f"h{number}.html").write_text(f"{head}<h1>{title}</h1>{body}")
        else:
            row = {"title": title, "author": author, "story": text, "source": f"rows {number}"}
            rows.write(json.dumps(row) + "\n")
        if len(shelf) == ANTHOLOGY or (shelf and number == num - 1):
            write_epub(folder / f"shelf-{number}.epub", shelf, title=f"Shelf {number}")
            shelf = []
    rows.close()
    if shelf:
        write_epub(folder / "shelf-last.epub", shelf, title="The Last Shelf")
    return made


def _letters(number: int) -> str:
    """A number as a capitalised word."""
    text = ""
    while True:
        number, digit = divmod(number, 26)
        text = chr(ord("a") + digit) + text
        if not number:
            return text.capitalize() + "on"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--stories", type=int, default=5000)
    options = parser.parse_args()
    print(write_corpus(options.folder, options.stories))
