"""No component is ever on both sides, and what cannot be had is said."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polaris_fast.prepare.bins import ALL_BINS, bin_of
from polaris_fast.prepare.pipeline import prepare
from polaris_fast.prepare.progress import ProgressView
from polaris_fast.prepare.settings import Settings
from polaris_fast.prepare.split import Item, Quota, split_items

from .books import prose

NAMES = ("Ann Lee", "Bo Ek", "Cy Fox", "Di Gad", "Ed Hay", "")
items_strategy = st.lists(
    st.tuples(st.sampled_from(NAMES), st.sampled_from("vwxyz"), st.sampled_from(ALL_BINS)),
    min_size=1,
    max_size=40,
)


def make(rows: list[tuple[str, str, str]]) -> list[Item]:
    return [Item(i, f"uid{i}", a, s, b) for i, (a, s, b) in enumerate(rows)]


@settings(max_examples=150, deadline=None)
@given(items_strategy, st.sampled_from([("author", "source"), ("author",), ("source",), ()]))
def test_no_tie_crosses_the_split_whatever_the_order(rows, ties) -> None:
    items = make(rows)
    related = [(0, len(items) - 1)]
    split = split_items(items, ties, related, Quota(0.3))
    train = [i for i in items if i.number not in split.test]
    test = [i for i in items if i.number in split.test]
    assert not (0 in split.test) ^ (len(items) - 1 in split.test)
    if "author" in ties:
        assert {i.author for i in train if i.author}.isdisjoint(i.author for i in test)
    if "source" in ties:
        assert {i.source for i in train}.isdisjoint(i.source for i in test)
    assert len(test) < len(items)
    again = split_items(random.Random(1).sample(items, len(items)), ties, related, Quota(0.3))
    assert again.test == split.test


def test_one_common_author_ties_and_so_does_a_folder() -> None:
    names = ("Ann Lee & Bo Ek", "Lee, Ann, 1947-", "Bo Ek", "Cy Fox")
    by_author = make([(name, str(i), "1-4K") for i, name in enumerate(names)])
    split = split_items(by_author, ("author", "source"), [], Quota(0.3))
    assert (split.num_components, split.largest) == (2, 3)
    folders = ("novel", "novel", "", "")
    items = [Item(i, f"uid{i}", "", f"{i}.txt", "1-4K", f) for i, f in enumerate(folders)]
    assert split_items(items, ("source",), [], Quota(0.3)).num_components == 3
    assert split_items(items, ("author",), [], Quota(0.3)).num_components == 4


def test_chapters_in_a_folder_stay_on_one_side_and_nameless_files_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A novel in chapters, in three formats; beside it six files that name nothing."""
    books = tmp_path / "books"
    (books / "novel").mkdir(parents=True)
    for i in range(4):
        (books / "novel" / f"c{i}.txt").write_text(prose(i, 150))
        (books / "novel" / f"d{i}.md").write_text(f"---\ntitle: Fog {i}\n---\n{prose(10 + i, 150)}")
        page = f"<title>Rain {i}</title><p>{prose(20 + i, 150)}</p>"
        (books / "novel" / f"e{i}.html").write_text(page)
    for i in range(6):
        (books / f"t{i}.txt").write_text(prose(30 + i, 150))
    settings = Settings((books,), tmp_path / "data", min_words=50, quota=Quota(0.3))
    with ProgressView() as view:
        summary = prepare(settings, view)
    assert summary is not None and summary.split is not None
    assert (summary.split.num_components, summary.split.largest) == (7, 12)
    assert "6 stories with neither author nor book" in capsys.readouterr().err
    assert "neither author nor book: 6." in (tmp_path / "data" / "DATA_CARD.md").read_text()


def test_counts_a_bin_are_met_when_stories_are_free() -> None:
    rows = [(f"Author {chr(97 + i % 26)}{i}", f"s{i}", bin_of(1000 + 27 * i)) for i in range(400)]
    split = split_items(make(rows), ("author", "source"), [], Quota(counts=(90, 60, 30)))
    assert split.got == {"1-4K": 90, "4-8K": 60, "8-12K": 30} and not split.problem


def test_one_component_is_never_divided_and_the_remedy_is_named() -> None:
    items = make([(name, "one book", "1-4K") for name in NAMES[:5]])
    split = split_items(items, ("author", "source"), [], Quota(0.2))
    assert not split.test and "5 of 5 stories are tied by author and source" in split.problem
    assert "--split-by author" in split.problem
    assert split_items(items, ("author",), [], Quota(0.2)).test
    short = split_items(items, ("author",), [], Quota(counts=(2, 1, 0)))
    assert "short of 1 of 1 in 4-8K" in short.problem and len(short.test) == 2


def test_small_sets_give_the_smallest_component_when_it_leaves_most() -> None:
    items = make([("Ann Lee", "a", "1-4K")] * 4 + [("Bo Ek", "b", "1-4K")] * 2)
    assert split_items(items, ("author",), [], Quota(0.1)).test == {4, 5}


def test_bins_meet_at_their_edges() -> None:
    edges = {999: "under 1K", 1000: "1-4K", 3999: "1-4K", 4000: "4-8K", 8000: "8-12K",
             12000: "8-12K", 12001: "over 12K"}  # fmt: skip
    assert {words: bin_of(words) for words in edges} == edges


def test_stories_that_share_a_passage_are_on_one_side_though_the_shortest_is_left_out(
    tmp_path: Path,
) -> None:
    """Twelve of forty stories have it; the shortest, which ties them, is a copy of another."""
    passage = prose(1000, 200)
    for i in range(40):
        text = f"{prose(i, 900 + 10 * i)}\n\n{passage if i < 12 else prose(2000 + i, 200)}"
        (tmp_path / f"t{i:02}.txt").write_text(text)
    blocks = (tmp_path / "t05.txt").read_text().split("\n\n")
    (tmp_path / "t00.txt").write_text("\n\n".join(blocks[10:]))
    settings = Settings((tmp_path,), tmp_path / "data", min_words=50, one_story_per_file=True,
                        split_by=(), quota=Quota(0.3))  # fmt: skip
    with ProgressView() as view:
        summary = prepare(settings, view)
    assert summary is not None and [d.twin.dropped for d in summary.duplicates] == [0]
    assert summary.split is not None and summary.split.largest == 11
    assert len({line.is_test for line in summary.lines if line.number < 12}) == 1
