"""The report is one readable, safe, deterministic page, whatever the run left behind."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from polaris_fast.report import write_report
from polaris_fast.report.attention import judge_caption, notices
from polaris_fast.report.folder import read_run
from polaris_fast.report.prompts import prompt_values, two_standard_errors
from polaris_fast.report.stories import length_error, pick_steps, split_text
from polaris_fast.report.verdict import both_ends, judge_run
from polaris_fast.run_folder import forget_after
from polaris_fast.types import UserError
from tests.run_folder import build_run_folder


class Page(HTMLParser):
    """Collects ids, links, tags and the text between them; fails on wrongly nested tags."""

    VOID = frozenset({"meta", "br", "link", "path", "use", "rect", "circle"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        values = dict(attrs)
        self.ids += [values["id"] or ""] if "id" in values else []
        self.links += [
            values[name] or "" for name in ("href", "src", "xlink:href") if name in values
        ]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_run_folder(tmp_path_factory.mktemp("run") / "lantern")


@pytest.fixture(scope="module")
def page(run_dir: Path) -> Page:
    return Page(write_report(run_dir).read_text(encoding="utf-8"))


def edit_lines(path: Path, change: Any) -> None:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(change(row)) + "\n" for row in rows))


def test_the_page_needs_no_network_and_no_script(run_dir: Path, page: Page) -> None:
    html = (run_dir / "report.html").read_text(encoding="utf-8")
    assert "script" not in page.tags and "img" not in page.tags and "link" not in page.tags
    assert all(link.startswith("#") for link in page.links)
    assert "@import" not in html and not re.search(r"url\((?!#)", html)
    assert "prefers-color-scheme: dark" in html


def test_ids_are_unique_and_every_reference_has_its_target(run_dir: Path, page: Page) -> None:
    html = (run_dir / "report.html").read_text(encoding="utf-8")
    assert len(page.ids) == len(set(page.ids))
    wanted = {link[1:] for link in page.links} | set(re.findall(r"url\(#([^)]+)\)", html))
    assert wanted <= set(page.ids)


def test_every_chart_is_there_and_follows_the_theme(run_dir: Path, page: Page) -> None:
    html = (run_dir / "report.html").read_text(encoding="utf-8")
    for title in (
        "Reward",
        "What the reward is made of",
        "Length error",
        "Length ratio",
        "Entropy",
        "KL",
        "Gradient norm",
        "Human minus model",
        "Weight and wins",
        "Time per step",
        "Tokens per second",
        "Held out, at the end",
    ):
        assert title in page.text, title
    charts = re.findall(r"<svg.*?</svg>", html, flags=re.DOTALL)
    assert len(charts) == page.tags.count("svg") > 15
    hard_coded = {c for chart in charts for c in re.findall(r"#[0-9a-f]{6}\b", chart)}
    assert hard_coded == set()  # a colour outside the palette would not turn dark
    assert "matplotlib" not in html.lower() and "dejavu" not in html.lower()


def test_the_same_run_gives_the_same_page(run_dir: Path) -> None:
    first = write_report(run_dir).read_bytes()
    assert write_report(run_dir).read_bytes() == first
    assert str(run_dir.parent).encode() not in first


def test_stories_prompts_and_config_cannot_inject_markup(tmp_path: Path) -> None:
    attack = '</div><script>alert("x")</script><img src=x onerror=alert(1)>{{ 7 * 7 }}'
    run = build_run_folder(tmp_path / "run", steps=2)
    for path in (run / "stories").iterdir():
        edit_lines(path, lambda row: {**row, "story": attack, "prompt": attack, "uid": attack})
    (run / "config.yaml").write_text(json.dumps({"run_name": attack, "device": attack}))
    summary = {"status": attack, "steps": 2, "reason": attack}
    (run / "summary.json").write_text(json.dumps(summary))
    edit_lines(run / "metrics.jsonl", lambda row: {**row, f"judge/{attack}": 1})
    page = Page(write_report(run).read_text(encoding="utf-8"))
    assert "script" not in page.tags and "img" not in page.tags
    assert page.text.count(attack) >= 12


def test_verdict_compares_both_ends_and_held_out_prompts(run_dir: Path, page: Page) -> None:
    verdict = judge_run(read_run(run_dir))
    reward, length, quality = verdict.findings
    values = read_run(run_dir).series("reward")
    assert reward.train is not None and length.held_out is not None
    assert reward.train.before == pytest.approx(values[:5].mean())
    assert reward.train.after == pytest.approx(values[-5:].mean())
    assert (reward.trend, length.trend, quality.trend) == ("better", "better", "better")
    assert length.held_out.before > length.held_out.after
    assert re.search(
        r"From the first 5 steps to the last 5, reward rose by 0\.\d\d, length", page.text
    )
    assert "8 prompts the model never trained on" in page.text


def test_an_empty_story_is_in_the_length_error_as_in_the_metrics(tmp_path: Path) -> None:
    run = build_run_folder(tmp_path / "run", steps=2)
    result = json.loads((run / "eval-end.json").read_text())
    result["stories"][0]["reward"]["words"] = 0
    (run / "eval-end.json").write_text(json.dumps(result))
    errors = [length_error(row) for row in result["stories"]]
    assert errors[0] == pytest.approx(math.log(result["stories"][0]["target_word_count"]))
    assert f"32 stories: mean |ln| {sum(errors) / 32:.2f}" in write_report(run).read_text()
    values = prompt_values(result["stories"], "length/abs_log_ratio")
    assert values["sample-000", 20] == pytest.approx(sum(errors[:4]) / 4)


def test_held_out_noise_is_of_prompts_and_from_prompt_to_prompt() -> None:
    before = np.array([0.1, 0.5, 0.9, 0.3])  # prompts of unequal ease
    noise = two_standard_errors(before, before + 0.1, paired=True)
    assert noise == pytest.approx(0.0)
    apart = two_standard_errors(before, before + 0.1, paired=False)
    assert apart == pytest.approx(2 * math.sqrt(2 * before.var(ddof=1) / 4))
    assert two_standard_errors(before[:2], before[:2], paired=True) is None


def test_a_copy_of_an_evaluation_is_left_out_and_kept(tmp_path: Path) -> None:
    run = build_run_folder(tmp_path / "run", steps=2)
    for name in ("step-10", "step-10 (copy)", "step-9"):
        shutil.copyfile(run / "eval-end.json", run / f"eval-{name}.json")
    assert list(read_run(run).evals) == ["start", "step-9", "step-10", "end"]
    shutil.copyfile(run / "stories" / "step-000001.jsonl", run / "stories" / "step-1 (copy).jsonl")
    forget_after(run, 9)
    assert sorted(p.stem for p in run.glob("eval-step*")) == ["eval-step-10 (copy)", "eval-step-9"]
    assert (run / "stories" / "step-1 (copy).jsonl").exists()


def test_a_change_within_noise_is_called_noise_and_a_single_step_is_not_compared() -> None:
    noisy = both_ends(np.array([0.0, 1.0, 0.5, 0.2, 0.9, 0.6]), 3)
    clear = both_ends(np.array([0.0, 0.1, 0.05, 0.9, 1.0, 0.95]), 3)
    pair = both_ends(np.array([0.0, 1.0]), 1)
    assert noisy and noisy.trend(1) == "same"
    assert clear and clear.trend(1) == "better" and clear.trend(-1) == "worse"
    assert pair and pair.trend(1) == "unknown"
    assert both_ends(np.array([0.0]), 0) is None
    assert both_ends(np.array([math.nan, 1.0]), 1) is None


def test_best_median_and_worst_stand_beside_the_human_story(run_dir: Path) -> None:
    run = read_run(run_dir)
    first, last = pick_steps(run)
    assert (first.step, last.step) == (1, 60)
    for group in (first, last):
        assert [pick.rank for pick in group.picks] == ["best", "median", "worst"]
        totals = [pick.row["reward"]["total"] for pick in group.picks]
        assert totals == sorted(totals, reverse=True)
        for pick in group.picks:
            assert pick.row["kind"] == "policy" and pick.human is not None
            assert pick.human["kind"] == "human" and pick.human["uid"] == pick.row["uid"]
    assert not any(row["kind"] == "human" for row in run.stories(1))  # found in a later step
    own = {row["group"]: row["story"] for row in run.stories(60) if row["kind"] == "human"}
    assert all(p.human and p.human["story"] == own[p.row["group"]] for p in last.picks)


def test_texts_that_utf8_cannot_say_do_not_stop_the_report(tmp_path: Path) -> None:
    run = build_run_folder(tmp_path / "run", steps=1, evals=False)
    for path in (run / "stories").iterdir():
        edit_lines(path, lambda row: {**row, "story": "half \ud83d pair \x00 \u202e back"})
    assert "half ? pair" in write_report(run).read_text(encoding="utf-8")


def test_a_long_story_opens_on_a_click_and_loses_nothing() -> None:
    text = "\n\n".join(" ".join(f"w{p}_{i}" for i in range(50)) for p in range(6))
    cut = split_text(text, words=90)
    assert len(cut.opening.split()) == 90 and cut.rest_words == 210
    assert (cut.opening + " " + cut.rest).split() == text.split()
    assert "\n\n" in cut.opening
    assert split_text("short story", words=90).rest == ""


def test_the_local_judge_is_called_no_judge_of_quality(run_dir: Path, tmp_path: Path) -> None:
    assert "no judge of quality" in (judge_caption(read_run(run_dir)) or "")
    (tmp_path / "config.yaml").write_text("judge: {base_url: 'http://host/v1'}\n")
    assert judge_caption(read_run(tmp_path)) is None
    (tmp_path / "config.yaml").write_text("reward: {function: 'mine:score'}\n")
    assert "mine:score" in (judge_caption(read_run(tmp_path)) or "")


def test_losses_of_the_run_are_told(run_dir: Path) -> None:
    told = [notice.text for notice in notices(read_run(run_dir))]
    assert told == [
        "1 update skipped by the guard (step 31).",
        "4 rows had no judgement (timeout 4) and did not train.",
        "6 groups dropped: all rewards in the group were equal.",
    ]


def test_signs_of_reward_hacking_are_told(tmp_path: Path) -> None:
    run = build_run_folder(tmp_path / "run", steps=20, story_steps=(), evals=False)
    edit_lines(
        run / "metrics.jsonl",
        lambda row: {
            **row,
            "reward/quality": 0.5 - row["step"] / 40,
            "reward/self_repetition": row["step"] / 40,
            "completions/clipped_ratio": 0.25,
        },
    )
    told = " ".join(notice.text for notice in notices(read_run(run)))
    assert "Reward rose while quality fell" in told
    assert "Self-repetition rose" in told
    assert "25 % of the last stories were cut off" in told


def test_alarms_that_sounded_are_told_with_their_step(tmp_path: Path) -> None:
    run = build_run_folder(tmp_path / "run", steps=20, story_steps=(), evals=False)
    piles = lambda row: {**row, "signs/figurative_density": 9.0 if row["step"] > 12 else 2.0}
    edit_lines(run / "metrics.jsonl", piles)
    told = [notice.text for notice in notices(read_run(run))]
    assert (
        "Alarm at step 17: metaphor piles: 9.0 figures of speech per 1,000 words, at the start "
        "2.0, for 5 steps now."
    ) in told
    config = run / "config.yaml"
    config.write_text(config.read_text() + "alarms: {action: 'off'}\n")
    assert not any("Alarm" in notice.text for notice in notices(read_run(run)))


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_short_runs_have_a_report(tmp_path: Path, steps: int) -> None:
    run = build_run_folder(tmp_path / "run", steps=steps, kl=False, evals=False, status=None)
    page = Page(write_report(run).read_text(encoding="utf-8"))
    assert "still going on, or it was killed" in page.text
    assert ("too short to compare" in page.text) == (steps == 1)


def test_any_file_may_be_missing_torn_or_empty(run_dir: Path, tmp_path: Path) -> None:
    for index, victim in enumerate(
        ("config.yaml", "metrics.jsonl", "eval-end.json", "summary.json", "warm_start.jsonl")
    ):
        for content in (None, "", '{"half": '):
            run = tmp_path / f"{index}-{content}"
            shutil.copytree(run_dir, run, ignore=shutil.ignore_patterns("stories", "report.html"))
            (run / "stories").mkdir()
            (run / "stories" / "step-000001.jsonl").write_text('{"kind": "policy"}\n{"kin')
            (run / victim).unlink()
            if content is not None:
                (run / victim).write_text(content)
            read_run(run)
    page = Page(write_report(run).read_text(encoding="utf-8"))
    assert "Gradient norm" in page.text
    (run / "summary.json").write_text("{")
    assert "summary.json could not be read" in Page(write_report(run).read_text()).text


def test_absent_and_null_metrics_leave_their_chart_out(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(
        '{"step": 1, "reward": null, "entropy": 2.0}\n{"step": 2, "kl": null}\n'
    )
    page = Page(write_report(tmp_path).read_text(encoding="utf-8"))
    assert "Entropy" in page.text and page.tags.count("svg") == 1


def test_a_folder_that_is_no_run_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no run"):
        write_report(tmp_path)
    with pytest.raises(UserError, match="no such run folder"):
        write_report(tmp_path / "nowhere")


def test_the_command_prints_the_path_and_importing_it_does_not_load_matplotlib(
    run_dir: Path,
) -> None:
    command = [sys.executable, "-m", "polaris_fast.report"]
    done = subprocess.run([*command, str(run_dir)], capture_output=True, text=True)
    assert done.stdout.strip() == str(run_dir / "report.html") and done.returncode == 0
    wrong = subprocess.run([*command, str(run_dir / "x")], capture_output=True, text=True)
    assert wrong.returncode == 2 and wrong.stderr.startswith("error: report: no such run folder")
    check = "import sys, polaris_fast.report; print('matplotlib' in sys.modules)"
    lean = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True)
    assert lean.stdout.strip() == "False"
