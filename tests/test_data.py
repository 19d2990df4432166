"""Records: every source, and every way a line can be wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from polaris_fast.config import DataConfig
from polaris_fast.data import PromptOrder, load_records, load_samples, split_records
from polaris_fast.types import UserError

STORY = "The old man rowed to the island. Nobody had asked him to.\n\nHe came back with Mara."


def _jsonl(path: Path, *lines: object) -> DataConfig:
    path.write_text("\n".join(x if isinstance(x, str) else json.dumps(x) for x in lines))
    return DataConfig(path=str(path))


def test_jsonl_fields_arrive_and_unknown_ones_become_columns(tmp_path: Path) -> None:
    line = {"uid": "a", "prompt": "p", "target_word_count": 9, "story": STORY, "mood": "calm"}
    (record,) = load_records(_jsonl(tmp_path / "d.jsonl", line))
    assert (record.uid, record.target_word_count, record.columns) == ("a", 9, {"mood": "calm"})


def test_a_missing_target_is_the_storys_own_word_count(tmp_path: Path) -> None:
    (record,) = load_records(_jsonl(tmp_path / "d.jsonl", {"prompt": "p", "story": STORY}))
    assert record.target_word_count == len(STORY.split())


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{not json", r"d\.jsonl:2: not valid JSON"),
        ({"story": STORY}, r"d\.jsonl:2: prompt: Field required"),
        ({"prompt": "p", "story": "   "}, r"d\.jsonl:2: story: no text"),
        ({"prompt": "p"}, r"d\.jsonl:2: target_word_count: missing"),
        ({"prompt": "p", "story": STORY, "target_word_count": 0}, r":2: target_word_count:"),
        ("[1, 2]", r"d\.jsonl:2: record:"),
    ],
)
def test_a_bad_line_is_named_by_file_and_number(tmp_path: Path, line: object, message: str) -> None:
    config = _jsonl(tmp_path / "d.jsonl", {"prompt": "p", "story": STORY}, line)
    with pytest.raises(UserError, match=message):
        load_records(config)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("held.jsonl", "{not json", r"held\.jsonl:1: not valid JSON"),
        ("held.jsonl", '{"story": "x"}', r"held\.jsonl:1: prompt: Field required"),
        ("held.jsonl", "", "holds no records"),
        ("held.txt", " ", "story without text"),
        ("held.parquet", "none", "is not readable parquet"),
        ("held.csv", "a,b", "cannot read"),
    ],
)
def test_faults_of_the_held_out_records_name_their_own_key(
    tmp_path: Path, name: str, text: str, message: str
) -> None:
    (tmp_path / name).write_text(text)
    config = DataConfig(eval_path=str(tmp_path / name))
    with pytest.raises(UserError, match=rf"^data\.eval_path: .*{message}"):
        split_records(config, load_samples("micro"))
    with pytest.raises(UserError, match=r"^data\.eval_path: no such file"):
        split_records(DataConfig(eval_path=str(tmp_path / "none")), load_samples("micro"))


def test_duplicate_uids_are_refused(tmp_path: Path) -> None:
    line = {"uid": "same", "prompt": "p", "story": STORY}
    with pytest.raises(UserError, match="uid 'same' appears more than once"):
        load_records(_jsonl(tmp_path / "d.jsonl", line, line))


def test_parquet_gives_the_same_records_as_jsonl(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet as parquet

    lines = [
        {"uid": f"u{i}", "prompt": "p", "target_word_count": 9, "story": STORY} for i in (1, 2)
    ]
    parquet.write_table(pyarrow.Table.from_pylist(lines), tmp_path / "d.parquet")
    from_parquet = load_records(DataConfig(path=str(tmp_path / "d.parquet")))
    assert from_parquet == load_records(_jsonl(tmp_path / "d.jsonl", *lines))


def test_a_folder_of_text_files_gets_prompts_that_quote_no_sentence(tmp_path: Path) -> None:
    (tmp_path / "the-long-way_home.txt").write_text(STORY)
    (tmp_path / "two.md").write_text(f"# A Debt Repaid\n\n{STORY}")
    records = load_records(DataConfig(path=str(tmp_path)))
    assert [r.uid for r in records] == ["the-long-way_home", "two"]
    assert '"The long way home"' in records[0].prompt
    assert '"A Debt Repaid"' in records[1].prompt
    assert records[1].story == STORY
    for record in records:
        assert "Mara" in record.prompt
        assert record.target_word_count == len(STORY.split())
        assert not any(s.strip() in record.prompt for s in STORY.split(".") if s.strip())


def test_an_empty_text_file_and_an_empty_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no \.txt or \.md file"):
        load_records(DataConfig(path=str(tmp_path)))
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(UserError, match=r"empty\.txt: story without text"):
        load_records(DataConfig(path=str(tmp_path)))


def test_a_missing_path_and_a_wrong_kind_of_file_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file or folder"):
        load_records(DataConfig(path=str(tmp_path / "nothing")))
    (tmp_path / "x.csv").write_text("a,b")
    with pytest.raises(UserError, match=r"cannot read .*\(\.csv\)"):
        load_records(DataConfig(path=str(tmp_path / "x.csv")))


def test_the_samples_are_what_the_readme_says() -> None:
    micro, stories = load_samples("micro"), load_samples("stories")
    assert len(micro) >= 48 and all(20 <= r.target_word_count <= 80 for r in micro)
    assert len(stories) >= 24 and all(120 <= r.target_word_count <= 400 for r in stories)
    for record in micro + stories:
        assert record.story and record.target_word_count == len(record.story.split())
    assert len({r.uid for r in micro + stories}) == len(micro) + len(stories)


def test_length_filters_and_held_out_records_do_not_depend_on_order() -> None:
    config = DataConfig(max_target_words=60, eval_fraction=0.25)
    records = load_records(config)
    assert all(r.target_word_count <= 60 for r in records)
    train, held = split_records(config, records)
    again_train, again_held = split_records(config, records[::-1])
    assert {r.uid for r in held} == {r.uid for r in again_held}
    assert {r.uid for r in train}.isdisjoint(r.uid for r in held)
    assert len(train) == len(again_train) == len(records) - len(held)
    assert len(held) == int(0.25 * len(records))


def test_a_held_out_story_is_not_trained_on_under_another_prompt_or_uid(tmp_path: Path) -> None:
    held = {"uid": "a", "prompt": "Tell of Mara.", "story": STORY}
    train = [
        {"uid": "a", "prompt": "Another prompt.", "story": STORY},
        {"uid": "b", "prompt": "A third.", "story": STORY.replace("\n\n", " ")},
        {"uid": "c", "prompt": "Tell of Mara.", "story": "Another story of hers."},
        {"uid": "d", "prompt": "Tell of Mara.", "target_word_count": 9},
        {"uid": "e", "prompt": "Tell of Bo.", "target_word_count": 9},
    ]
    alone = {"uid": "f", "prompt": "Tell of Bo.", "target_word_count": 20}
    config = _jsonl(tmp_path / "train.jsonl", *train)
    eval_path = _jsonl(tmp_path / "test.jsonl", held, alone).path
    config = config.model_copy(update={"eval_path": eval_path})
    kept, _ = split_records(config, load_records(config))
    assert [r.uid for r in kept] == ["c", "d"]


def test_a_byte_order_mark_is_no_part_of_a_story_or_its_prompt(tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text(f"The Island\n\n{STORY}", encoding="utf-8-sig")
    (tmp_path / "two.txt").write_text(STORY, encoding="utf-8-sig")
    for record in load_records(DataConfig(path=str(tmp_path))):
        assert record.story == STORY and "\ufeff" not in record.prompt


def test_prompt_order_is_a_shuffle_of_every_epoch_and_a_function_of_position() -> None:
    order, again = PromptOrder(7, seed=3), PromptOrder(7, seed=3)
    first = [order[i] for i in range(21)]
    assert [again[i] for i in reversed(range(21))] == first[::-1]
    for epoch in range(3):
        assert sorted(first[7 * epoch : 7 * epoch + 7]) == list(range(7))
    assert first[:7] != first[7:14]
    assert first != [PromptOrder(7, seed=4)[i] for i in range(21)]


def test_a_small_folder_still_holds_one_record_out() -> None:
    records = load_samples("micro")[:3]
    train, held = split_records(DataConfig(eval_fraction=0.2), records)
    assert (len(train), len(held)) == (2, 1)
    assert split_records(DataConfig(), records) == (records, [])
