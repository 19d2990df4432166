"""`python -m polaris_fast.judge`: what each command prints, writes and returns."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import scripted_endpoint as play
from benchmarks.scripted_endpoint import KEY_VARIABLE, Script, ScriptedProcess, ScriptedServer
from benchmarks.scripted_endpoint.script import Latency
from polaris_fast.judge.__main__ import main
from polaris_fast.judge.commands.settings import split_settings
from polaris_fast.judge.commands.texts import read_texts
from polaris_fast.types import UserError

SCRIPT = Script(seed=7)
QUICK = ["--judge.api_key_env", KEY_VARIABLE, "--judge.timeout_s", "5", "--judge.max_attempts", "1"]


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def stories(tmp_path: Path) -> Path:
    """A folder with two texts and two lines."""
    folder = tmp_path / "stories"
    folder.mkdir()
    (folder / "bell.txt").write_text("The bell rang over the harbour.\n")
    (folder / "dog.md").write_text("A dog waited at the gate.")
    lines = [
        {"uid": "fox", "prompt": "A fox.", "story": "A fox went out."},
        {"story": "The end."},
    ]
    (folder / "more.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    return folder


def judge(base_url: str, *words: str) -> int:
    return main([*words, "--judge.base_url", base_url, *QUICK])


# command line ----------------------------------------------------------------------------------


def test_settings_are_taken_out_wherever_they_stand():
    words = ["score", "--judge.model", "m", "a.txt", "--judge.temperature=0", "--json"]
    rest, settings = split_settings([*words, "--judge.some-flag"])
    assert rest == ["score", "a.txt", "--json"]
    assert settings == {"judge.model": "m", "judge.temperature": "0", "judge.some_flag": "true"}
    with pytest.raises(UserError, match="key is missing"):
        split_settings(["--judge.", "x"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["score", "no-such.txt"], "no-such.txt: no such file"),
        (["score", "x.txt", "--judge.modle", "m"], "did you mean 'judge.model'"),
        (["score", "x.txt", "--samples", "0"], "--samples: must be at least 1"),
        (["score", "x.pdf"], "x.pdf: want .txt"),
        (["score", "x.txt", "--judge.base_url", "ftp://x"], "judge.base_url: 'ftp://x'"),
        (["replay", "no-such-run"], "no such run folder"),
    ],
)
def test_mistakes_are_one_line_with_status_2(words, message, capsys):
    Path("x.txt").write_text("A story.")
    Path("x.pdf").write_text("A story.")
    assert main(words) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


# reading ---------------------------------------------------------------------------------------


def test_every_kind_of_file_is_read(stories):
    texts = read_texts([str(stories)], prompt="By default.")
    assert [(t.name, t.prompt) for t in texts] == [
        ("bell.txt", "By default."),
        ("dog.md", "By default."),
        ("more.jsonl:fox", "A fox."),
        ("more.jsonl:2", "By default."),
    ]
    assert texts[0].story == "The bell rang over the harbour."


def test_a_byte_order_mark_is_no_part_of_a_text(stories):
    for name in ("bell.txt", "more.jsonl"):
        (stories / name).write_bytes(b"\xef\xbb\xbf" + (stories / name).read_bytes())
    texts = read_texts([str(stories)])
    assert texts[0].story == "The bell rang over the harbour."
    assert [text.name for text in texts[2:]] == ["more.jsonl:fox", "more.jsonl:2"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "bad.jsonl:1: not valid JSON"),
        (b'{"story": "s"}\n[1]', "bad.jsonl:2: want an object"),
        (b'{"story": " "}', "bad.jsonl:1: the story is empty"),
        (b"\xff\xfe", "not UTF-8"),
    ],
)
def test_a_faulty_file_is_named_with_its_line(tmp_path, content, message):
    (tmp_path / "bad.jsonl").write_bytes(content)
    with pytest.raises(UserError, match=re.escape(message)):
        read_texts([str(tmp_path / "bad.jsonl")])


def test_standard_input_is_read_as_files_are(monkeypatch):
    def typed(content: bytes) -> None:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content), encoding="ascii"))

    typed("\ufeffDie Glocke läutete.\r\nEnde.\n".encode())
    assert read_texts(["-"])[0].story == "Die Glocke läutete.\nEnde."
    typed(b"caf\xe9")
    with pytest.raises(UserError, match=r"stdin: not UTF-8 \(byte 3\)"):
        read_texts(["-"])


def test_half_a_character_in_a_line_can_be_judged_and_printed(tmp_path, capsys):
    file = tmp_path / "half.jsonl"
    file.write_text('{"story": "A bell rang \\ud83d late.", "prompt": "\\ude00"}\n')
    assert main(["score", str(file)]) == 0
    (text,) = read_texts([str(file)])
    assert (text.story, text.prompt) == ("A bell rang \ufffd late.", "\ufffd")


# score -----------------------------------------------------------------------------------------


def test_score_prints_what_the_judge_says(stories, capsys):
    with ScriptedServer(SCRIPT) as server:
        assert judge(server.base_url, "score", str(stories), "--json") == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows] == ["bell.txt", "dog.md", "more.jsonl:fox", "more.jsonl:2"]
    for row, text in zip(rows, read_texts([str(stories)]), strict=True):
        assert row["quality"] == SCRIPT.truth(text.story).quality
        assert row["judge"] == "scripted-judge"
    assert rows[2]["prompt"] == "A fox."


def test_score_prints_a_table(stories, capsys):
    with ScriptedServer(SCRIPT) as server:
        assert judge(server.base_url, "score", str(stories / "bell.txt")) == 0
    table = capsys.readouterr().out
    assert f"{SCRIPT.truth('The bell rang over the harbour.').quality:.3f}" in table
    assert "scripted-judge" in table


def test_a_table_shows_names_and_reasons_as_they_are(tmp_path, capsys):
    story = tmp_path / "[red]:bell:.txt"
    story.write_text("A bell.")
    refusals = [play.refusal("no [/inst] :bell:")] * 2
    with ScriptedServer(refusals) as server:
        assert judge(server.base_url, "score", str(story), "--judge.max_attempts", "2") == 1
    table = capsys.readouterr().out
    assert story.name in table
    assert "not scored: no [/inst] :bell:" in table


def test_a_story_without_a_score_is_status_1_and_no_number(stories, capsys):
    def script(story: str):
        return [play.missing_dimension()] if "dog" in story else [play.ok(40)]

    with ScriptedServer(script) as server:
        assert judge(server.base_url, "score", str(stories), "--json") == 1
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["dog.md"]["quality"] is None
    assert "P3" in rows["dog.md"]["reason"]
    assert rows["bell.txt"]["quality"] == 0.4


def test_the_local_judge_is_asked_without_settings_and_says_what_it_is(stories, capsys):
    assert main(["score", str(stories)]) == 0
    shown = capsys.readouterr()
    assert "local-heuristic" in shown.out
    assert "no judge of quality" in shown.err.lower() or "heuristic" in shown.err.lower()


def test_the_key_is_in_no_output(stories, capsys, monkeypatch):
    monkeypatch.setenv(KEY_VARIABLE, "sk-very-secret")
    refuse = play.status(401, error={"message": "bad key sk-very-secret", "code": "invalid"})
    with ScriptedServer([refuse] * 9, models=refuse) as server:
        assert judge(server.base_url, "score", str(stories)) == 2
    shown = capsys.readouterr()
    assert "sk-very-secret" not in shown.out + shown.err


def test_an_interrupt_ends_cleanly_and_says_how_far_it_came(stories):
    with ScriptedProcess(Script(latency=Latency(30.0))) as server:
        command = [sys.executable, "-m", "polaris_fast.judge", "score", str(stories)]
        root = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join([root, os.path.join(root, "kernels")])
        child = subprocess.Popen(
            [*command, "--judge.base_url", server.base_url],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": path},
        )
        while not server.ledger().calls:
            assert child.poll() is None, child.stderr.read()
            time.sleep(0.02)
        child.send_signal(signal.SIGINT)
        out, error = child.communicate(timeout=20)
    assert child.returncode == 130
    assert out == ""
    assert "0 of 4 stories" in error
    assert "Traceback" not in error


# replay ----------------------------------------------------------------------------------------


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A run of two steps, two groups each: three stories of the model and a human one."""
    folder = tmp_path / "run"
    (folder / "stories").mkdir(parents=True)
    (folder / "config.yaml").write_text("judge:\n  model: first-judge\n")
    for step in (1, 2):
        rows = [_row(step, group, slot) for group in range(2) for slot in range(4)]
        rows.append(_row(step, 1, 4) | {"quality": None, "outcome": "failed"})
        rows.append(_row(step, 1, 5) | {"story": " ", "quality": 0.0})
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / "stories" / f"step-{step:06d}.jsonl").write_text(lines)
    return folder


def _row(step: int, group: int, slot: int) -> dict:
    story = f"Story {slot} of group {group} in step {step}."
    return {
        "row_id": f"{step - 1}/{group}/{slot}",
        "group": group,
        "kind": "human" if slot == 3 else "policy",
        "prompt": f"Prompt {group}.",
        "story": story,
        "quality": SCRIPT.truth(story).quality + 0.1,
    }


def test_replay_of_the_same_judge_finds_a_shift_and_nothing_else(run_dir, capsys):
    with ScriptedServer(SCRIPT) as server:
        assert judge(server.base_url, "replay", str(run_dir), "--json") == 0
    tree = json.loads(capsys.readouterr().out)
    assert (tree["old_judge"], tree["new_judge"]) == ("first-judge", "scripted-judge")
    found = tree["agreement"]
    assert (found["num_stories"], found["num_groups"]) == (12, 4)  # the model's own
    assert found["mean_shift"] == pytest.approx(-0.1)
    assert found["flipped_pairs"] == found["flipped_signs"] == 0.0
    assert len(tree["stories"]) == 16


def test_replay_with_another_judge_draws_where_they_differ(run_dir, capsys):
    with ScriptedServer(Script(seed=8)) as server:
        assert judge(server.base_url, "replay", str(run_dir)) == 0
    table = capsys.readouterr().out
    assert "turned orders" in table
    page = (run_dir / "replay.html").read_text()
    assert page.count("<svg") == 2
    assert "Story 0 of group" in page
    assert "http" not in re.sub(r'xmlns(:\w+)?="[^"]*"', "", page)  # self-contained


def test_replay_of_chosen_steps(run_dir, capsys):
    with ScriptedServer(SCRIPT) as server:
        words = ["replay", str(run_dir), "--steps", "2:", "--html", "chart.html", "--json"]
        assert judge(server.base_url, *words) == 0
    tree = json.loads(capsys.readouterr().out)
    assert {story["step"] for story in tree["stories"]} == {2}
    assert Path("chart.html").is_file()
    assert main(["replay", str(run_dir), "--steps", "7:9"]) == 2
    assert "no scored story in the steps 7:9" in capsys.readouterr().err


def test_replay_leaves_out_what_the_new_judge_cannot_score(run_dir, capsys):
    def script(story: str):
        return [play.missing_dimension()] if "Story 0" in story else [play.ok(40)]

    with ScriptedServer(script) as server:
        assert judge(server.base_url, "replay", str(run_dir), "--json") == 1
    tree = json.loads(capsys.readouterr().out)
    assert tree["not_scored"] == 4
    assert tree["agreement"]["num_stories"] == 8
