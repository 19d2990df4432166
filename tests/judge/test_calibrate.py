"""`calibrate`: known noise comes out, nothing is paid without a yes, the floor is kept."""

from __future__ import annotations

import hashlib
import io
import json
import random
import re
from pathlib import Path

import pytest
import yaml

from benchmarks.scripted_endpoint import KEY_VARIABLE, ScriptedServer, answer_tree, ok
from polaris_fast.config_file import load_config
from polaris_fast.judge.__main__ import main
from polaris_fast.judge.calibrate import agreement_of, measure
from polaris_fast.judge.commands.noise_floor import write_noise_floor
from polaris_fast.types import Scored, UserError

KEY = "sk-secret-0123456789abcdef"
SIGMA_STORY, SIGMA_JUDGE = 12.0, 6.0  # points
QUICK = ["--judge.api_key_env", KEY_VARIABLE, "--judge.journal", "off", "--judge.check_at_start"]
QUICK += ["false"]


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def stories(tmp_path: Path) -> str:
    """60 stories, one prompt."""
    path = tmp_path / "stories.jsonl"
    lines = [{"prompt": "p", "story": f"Story {i} of a bell."} for i in range(60)]
    path.write_text("\n".join(map(json.dumps, lines)))
    return str(path)


def noisy(story: str):
    """Answers about the story's own mean, the same for each run of the test."""
    source = random.Random(hashlib.sha256(story.encode()).digest())
    mean = 50 + source.gauss(0, SIGMA_STORY)
    return [ok(min(100.0, max(0.0, mean + source.gauss(0, SIGMA_JUDGE)))) for _ in range(50)]


def calibrate(base_url: str | None, *words: str) -> int:
    where = [] if base_url is None else ["--judge.base_url", base_url, *QUICK]
    return main(["calibrate", *words, *where])


def test_a_scripted_judges_noise_is_found(stories, capsys):
    with ScriptedServer(noisy) as server:
        status = calibrate(
            server.base_url, stories, "--stories", "60", "--samples", "3", "--json", "--yes"
        )
        assert len(server.requests) == 180
    assert status == 0
    (judge,) = json.loads(capsys.readouterr().out)["judges"]
    quality = judge["scores"]["quality"]
    assert quality["num_stories"] == 60
    for name, truth in (("sigma_story", SIGMA_STORY), ("sigma_judge", SIGMA_JUDGE)):
        found = quality[name]
        assert found["low"] < truth / 100 < found["high"]
        assert found["high"] < 2 * found["low"]  # the interval says something
    assert quality["reliability"]["low"] < 144 / 180 < quality["reliability"]["high"]
    assert set(judge["scores"]) == {"quality", *answer_tree()} - {"overall", "summary"}


def test_the_local_judge_has_no_noise_and_asks_nobody(capsys):
    assert calibrate(None, "--stories", "6", "--samples", "2", "--judge.journal", "off") == 0
    printed = capsys.readouterr()
    assert "local-heuristic" in printed.out
    assert re.search(
        r"^ *quality +\S+ \(.*\) +0\.0 \(0\.0-0\.0\) +1\.00 \(1\.00-1\.00\) +1", printed.out, re.M
    )
    assert max(map(len, printed.out.splitlines())) <= 80
    assert "no judge of quality" in printed.err


def test_nothing_is_sent_without_a_yes(stories, capsys, monkeypatch):
    with ScriptedServer(default=ok()) as server:
        assert calibrate(server.base_url, stories) == 2
        assert "--yes" in capsys.readouterr().err
        terminal = io.StringIO("no\n")
        terminal.isatty = lambda: True
        monkeypatch.setattr("sys.stdin", terminal)
        assert calibrate(server.base_url, stories, "--stories", "5", "--judge.model", "m") == 2
        asked = capsys.readouterr().err
        assert not server.requests
    assert "up to 20 calls" in asked
    assert "price unknown" in asked
    assert "nothing was sent" in asked


def test_the_estimate_names_the_price(stories, capsys):
    prices = ["--judge.price_input", "2", "--judge.price_output", "10"]
    with ScriptedServer(noisy) as server:
        calibrate(server.base_url, stories, "--stories", "4", "--yes", "--samples", "2", *prices)
    assert "about $0." in capsys.readouterr().err


def test_a_second_judge_is_compared(stories, capsys):
    with ScriptedServer(noisy) as first, ScriptedServer(noisy) as second:
        other = {"base_url": second.base_url, "model": "other", "check_at_start": False}
        other |= {"journal": "off", "api_key_env": KEY_VARIABLE}
        Path("other.yaml").write_text(yaml.safe_dump({"judge": other}))
        words = [stories, "--stories", "20", "--samples", "2", "--yes", "--against", "other.yaml"]
        assert calibrate(first.base_url, *words) == 0
    assert "other: Spearman's rho 1.00" in " ".join(capsys.readouterr().out.split())


def test_judgements_that_fail_are_missing_and_told(stories, capsys):
    script = lambda story: noisy(story)[: 1 if "Story 3 " in story else 50]
    with ScriptedServer(script, default=ok(float("nan"))) as server:
        status = calibrate(
            server.base_url, stories, "--stories", "8", "--samples", "3", "--json", "--yes",
            "--judge.max_attempts", "1",
        )  # fmt: skip
    assert status == 1
    (judge,) = json.loads(capsys.readouterr().out)["judges"]
    assert judge["scores"]["quality"]["num_stories"] == 8


def test_too_few_stories_say_so(tmp_path, capsys):
    (tmp_path / "one.txt").write_text("A bell.")
    assert calibrate(None, "one.txt", "--judge.journal", "off") == 2
    assert "want at least two stories" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--samples", "1"], "--samples: must be at least 2"),
        (["--stories", "1"], "--stories: must be at least 2"),
        (["--reliability", "1"], "--reliability: must be between 0 and 1"),
        (["--against", "nowhere.yaml"], "no such file"),
    ],
)
def test_wrong_settings_name_themselves(words, said, capsys):
    assert calibrate(None, *words) == 2
    assert said in capsys.readouterr().err


def make_run(name: str, base_url: str, model: str = "own") -> str:
    """A run's folder with four stories and the judge that they were trained with."""
    folder = Path("runs", name)
    (folder / "stories").mkdir(parents=True)
    rows = [
        {"kind": "policy", "row_id": f"0/0/{i}", "prompt": "p", "story": f"Story {i} of a bell."}
        for i in range(4)
    ]
    (folder / "stories" / "step-000001.jsonl").write_text("\n".join(map(json.dumps, rows)))
    judge = {"base_url": base_url, "model": model, "api_key_env": KEY_VARIABLE}
    judge |= {"check_at_start": False, "journal": "off"}
    (folder / "config.yaml").write_text(yaml.safe_dump({"judge": judge}))
    return str(folder)


def test_of_a_run_its_own_judge_is_measured_unless_another_is_named(capsys):
    with ScriptedServer(noisy) as own, ScriptedServer(noisy) as other:
        words = [make_run("a", own.base_url), "--samples", "2", "--yes"]
        assert calibrate(None, *words) == 0
        assert [r.body["model"] for r in own.requests] == ["own"] * 8
        assert calibrate(None, *words, "--judge.model", "new", "--write", "mine.yaml") == 0
        assert [r.body["model"] for r in own.requests[8:]] == ["new"] * 8
        assert not other.requests
        assert calibrate(other.base_url, *words) == 0
        Path("b.yaml").write_text(Path("runs/a/config.yaml").read_text())
        write = ["--judge.base_url", other.base_url, *QUICK]
        assert main(["calibrate", *words, "--config", "b.yaml", *write]) == 0
        assert len(own.requests) == len(other.requests) == 16
    assert load_config("mine.yaml").judge.noise_std is not None


def test_of_several_runs_nobody_knows_whose_judge_is_meant(capsys):
    runs = [make_run(name, "http://127.0.0.1:9/v1") for name in "ab"]
    assert calibrate(None, *runs, "--yes") == 2
    assert "--config" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--write", "mine.yaml"], "--write mine.yaml: the local judge is deterministic"),
        (["--write", "polaris_9b"], "--write polaris_9b: the name of a configuration that comes"),
    ],
)
def test_a_noise_that_training_would_not_use_is_not_written(words, said, capsys):
    assert calibrate(None, *words) == 2
    assert said in capsys.readouterr().err
    assert not Path(words[1]).exists()


def test_the_key_is_never_printed(stories, capfd, caplog, monkeypatch):
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    with ScriptedServer(noisy) as server:
        words = [stories, "--stories", "4", "--samples", "2", "--yes", "--write", "mine.yaml"]
        assert calibrate(server.base_url, *words) == 0
        assert server.requests[0].headers["Authorization"] == f"Bearer {KEY}"
    printed = capfd.readouterr()
    assert KEY not in printed.out + printed.err + caplog.text + Path("mine.yaml").read_text()


# the numbers -----------------------------------------------------------------------------------


def scored(*qualities: float) -> list[Scored]:
    return [Scored(quality) for quality in qualities]


def test_stories_of_one_prompt_are_compared_with_each_other_where_there_are_any():
    judgements = [scored(0.1, 0.3), scored(0.4, 0.6), scored(5.1, 5.3), scored(5.4, 5.6)]
    apart = measure("j", judgements, ["a", "b", "c", "d"]).quality
    nested = measure("j", judgements, ["a", "a", "b", "b"]).quality
    assert nested.story_variance == pytest.approx(0.035)
    assert apart.story_variance > 5


def test_agreement_needs_stories_that_both_scored():
    assert agreement_of([scored(0.1), []], [[], scored(0.2)], ["a", "b"]) is None
    found = agreement_of([scored(0.1), scored(0.5)], [scored(0.2), scored(0.6)], ["a", "b"])
    assert found is not None
    assert found.mean_shift == pytest.approx(0.1)


# the file --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (None, "judge:\n  noise_std: 0.0312\n"),
        ("seed: 1", "seed: 1\njudge:\n  noise_std: 0.0312\n"),
        (
            "judge:  # mine\n  timeout_s: 9\n  # why\n\n  noise_std: 0.5  # old\nseed: 1\n",
            "judge:  # mine\n  noise_std: 0.0312\n  timeout_s: 9\n  # why\n\nseed: 1\n",
        ),
        ("judge:\n", "judge:\n  noise_std: 0.0312\n"),
        (
            "judge:\n  fallback:\n    model: m\n    base_url: http://h/v1",
            "judge:\n  noise_std: 0.0312\n  fallback:\n    model: m\n    base_url: http://h/v1",
        ),
    ],
)
def test_the_floor_is_written_and_the_rest_stays(tmp_path, before, after):
    path = tmp_path / "run.yaml"
    if before is not None:
        path.write_text(before)
    assert "0.0312" in write_noise_floor(path, 0.03123)
    assert path.read_text() == after
    assert load_config(path).judge.noise_std == 0.0312


@pytest.mark.parametrize("before", ["judge: {model: m}\n", "judge: [", "- 1\n", "judge:\n\tx: 1\n"])
def test_a_file_that_cannot_be_edited_is_left_as_it_is(tmp_path, before):
    path = tmp_path / "run.yaml"
    path.write_text(before)
    with pytest.raises(UserError, match=r"run\.yaml"):
        write_noise_floor(path, 0.03)
    assert path.read_text() == before
