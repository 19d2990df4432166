"""Several runs on one page: the numbers marked, the settings that differ, the stories beside."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from polaris_fast.report.__main__ import main
from polaris_fast.report.compare import write_comparison
from polaris_fast.report.compare.runs import PALETTE, read_runs
from polaris_fast.report.compare.stories import same_prompts
from polaris_fast.report.compare.tables import clear_best, differing_settings, final_table
from polaris_fast.types import UserError
from tests.run_folder import build_run_folder
from tests.test_report import Page, edit_lines


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two runs of one configuration but for the weight of the human rows and the name."""
    base = tmp_path_factory.mktemp("runs")
    made = []
    for seed, (name, weight) in enumerate((("hri", 0.4), ("light", 0.1))):
        folder = build_run_folder(base / name, steps=12, seed=seed)
        config = folder / "config.yaml"
        text = config.read_text().replace("lantern-cpu", name)
        config.write_text(text.replace("weight: 0.4", f"weight: {weight}"))
        made.append(folder)
    return made


@pytest.fixture(scope="module")
def page(folders: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Page:
    path = write_comparison(folders, tmp_path_factory.mktemp("out") / "both.html")
    return Page(path.read_text(encoding="utf-8"))


def test_the_page_is_whole_and_needs_no_network(page: Page) -> None:
    assert "script" not in page.tags
    assert len(page.ids) == len(set(page.ids))
    assert all(link.startswith("#") and link[1:] in page.ids for link in page.links)


def test_each_metric_has_a_chart_with_both_runs(folders: list[Path], tmp_path: Path) -> None:
    html = write_comparison(folders, tmp_path / "c.html").read_text(encoding="utf-8")
    reward = re.search(r"<h3>Reward</h3>.*?</figure>", html, re.DOTALL)
    assert reward is not None
    for colour in PALETTE[:2]:
        assert f"var(--{colour})" in reward[0]
    assert re.findall(r"<span>(\w+)</span>", reward[0]) == ["hri", "light"]


def test_the_final_numbers_are_means_of_the_last_steps_and_of_held_out_stories(
    folders: list[Path],
) -> None:
    table = dict(final_table(read_runs(folders)))
    reward = table["Training prompts, mean of the last 5 steps"][0]
    rows = [json.loads(line) for line in (folders[0] / "metrics.jsonl").read_text().splitlines()]
    expected = np.mean([row["reward"] for row in rows[-5:]])
    shown = float(reward.cells[0].text.replace("\N{MINUS SIGN}", "-"))
    assert shown == pytest.approx(expected, abs=5e-4 + 5e-3 * abs(expected))
    assert table["Held-out prompts, at the end"][0].label == "Reward"


def test_a_number_is_marked_only_when_it_beats_every_other_beyond_noise() -> None:
    low, high = np.array([0.0, 0.1, 0.2, 0.1]), np.array([1.0, 1.1, 0.9, 1.0])
    assert clear_best([low, high], 1) == 1
    assert clear_best([low, high], -1) == 0
    assert clear_best([low, high, high + 0.01], 1) is None
    assert clear_best([low, high], 0) is None
    assert clear_best([low[:2], high[:2]], 1) is None


def test_the_same_prompts_are_held_against_each_other_one_by_one() -> None:
    ease = np.array([0.1, 0.9, 0.4, 0.6])
    assert clear_best([ease, ease + np.array([0.02, 0.03, 0.02, 0.03])], 1, paired=True) == 1
    assert clear_best([ease, ease + 0.02], 1) is None


def held_out_run(folder: Path, quality: float, uids: range, copies: int = 1) -> Path:
    """Stories of prompts of unequal ease, `copies` of each."""
    run = build_run_folder(folder, steps=2)
    result = json.loads((run / "eval-end.json").read_text())
    row = result["stories"][0]
    result["stories"] = [
        {**row, "uid": f"u{i}", "reward": {**row["reward"], "quality": quality + i % 3}}
        for i in uids
        for _ in range(copies)
    ]
    (run / "eval-end.json").write_text(json.dumps(result))
    return run


def held_out_cells(folders: list[Path]) -> list[tuple[str, bool]]:
    lines = dict(final_table(read_runs(folders)))["Held-out prompts, at the end"]
    cells = next(line.cells for line in lines if line.label == "Quality")
    return [(cell.text, cell.best) for cell in cells]


def test_no_winner_is_marked_over_different_held_out_prompts(tmp_path: Path) -> None:
    base = held_out_run(tmp_path / "base", 0.0, range(6))
    same = held_out_run(tmp_path / "same", 5.0, range(6))
    other = held_out_run(tmp_path / "other", 5.0, range(6, 12))
    assert [best for _, best in held_out_cells([base, same])] == [False, True]
    assert [best for _, best in held_out_cells([base, other])] == [False, False]
    notice = "different held-out prompts"
    assert notice in write_comparison([base, other], tmp_path / "c.html").read_text()
    assert notice not in write_comparison([base, same], tmp_path / "c.html").read_text()


def test_many_stories_of_few_prompts_are_few_samples(tmp_path: Path) -> None:
    base = held_out_run(tmp_path / "base", 0.0, range(2), copies=8)
    same = held_out_run(tmp_path / "same", 5.0, range(2), copies=8)
    assert [best for _, best in held_out_cells([base, same])] == [False, False]


def test_a_prompt_that_one_run_has_no_score_for_is_left_out_for_all(tmp_path: Path) -> None:
    base = held_out_run(tmp_path / "base", 0.0, range(6))
    same = held_out_run(tmp_path / "same", 5.0, range(6))
    result = json.loads((same / "eval-end.json").read_text())
    result["stories"][2].update(outcome="failed", reward=None)  # quality 7
    (same / "eval-end.json").write_text(json.dumps(result))
    assert held_out_cells([base, same]) == [("0.800", False), ("5.80", True)]


def test_only_settings_that_differ_are_listed(folders: list[Path]) -> None:
    assert differing_settings(read_runs(folders)) == [("hri.weight", ["0.4", "0.1"])]


def test_stories_for_one_prompt_stand_together_and_the_widest_spread_comes_first(
    folders: list[Path],
) -> None:
    pairs = same_prompts(read_runs(folders))
    assert pairs.source == "held-out prompts, at the end"
    spreads = []
    for same in pairs.found:
        assert len({told.row["uid"] for told in same.told}) == 1
        totals = [told.row["reward"]["total"] for told in same.told]
        spreads.append(max(totals) - min(totals))
    assert len(spreads) > 1
    assert spreads == sorted(spreads, reverse=True)


def test_runs_without_evaluations_are_compared_on_their_last_step(tmp_path: Path) -> None:
    folders = [
        build_run_folder(tmp_path / n, steps=3, seed=i, evals=False) for i, n in enumerate("ab")
    ]
    pairs = same_prompts(read_runs(folders))
    assert pairs.source.startswith("training prompts")
    assert pairs.found


def test_different_judges_are_called_no_fair_comparison(
    folders: list[Path], tmp_path: Path
) -> None:
    other = build_run_folder(tmp_path / "other", steps=3)
    config = other / "config.yaml"
    config.write_text(config.read_text().replace("local-heuristic", "another"))
    html = write_comparison([folders[0], other], tmp_path / "c.html").read_text()
    assert "different judges" in html
    assert "different numbers of steps: hri 12" in html


def test_runs_of_one_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    folders = [build_run_folder(tmp_path / n / "latest", steps=2) for n in "ab"]
    assert [named.name for named in read_runs(folders)] == ["a/latest", "b/latest"]


def test_a_metric_that_one_run_lacks_is_drawn_for_the_others(tmp_path: Path) -> None:
    folders = [build_run_folder(tmp_path / n, steps=3, seed=i) for i, n in enumerate("ab")]
    edit_lines(folders[0] / "metrics.jsonl", lambda row: {**row, "entropy": None})
    html = write_comparison(folders, tmp_path / "c.html").read_text(encoding="utf-8")
    entropy = re.search(r"<h3>Entropy[^<]*</h3>.*?</figure>", html, re.DOTALL)
    assert entropy is not None
    assert re.findall(r"<span>([^<]+)</span>", entropy[0]) == ["b"]


def test_stories_and_names_cannot_inject_markup(tmp_path: Path) -> None:
    folders = [build_run_folder(tmp_path / n, steps=2, seed=i) for i, n in enumerate("ab")]
    (folders[0] / "config.yaml").write_text("run_name: <b>bold</b>\n")
    html = write_comparison(folders, tmp_path / "c.html").read_text(encoding="utf-8")
    assert "<b>bold" not in html
    assert "&lt;b&gt;bold" in html


def test_the_command_compares_and_names_what_is_wrong(
    folders: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "page.html"
    assert main([*map(str, folders), "--out", str(out)]) == 0
    assert capsys.readouterr().out.strip() == str(out)
    assert main([str(folders[0]), str(folders[0])]) == 2
    assert "given twice" in capsys.readouterr().err
    assert main([str(folders[0]), "--out", str(out)]) == 2
    assert "leave --out away" in capsys.readouterr().err
    with pytest.raises(UserError, match="no such folder"):
        write_comparison(folders, tmp_path / "missing" / "c.html")
    with pytest.raises(UserError, match="holds 6"):
        read_runs([folders[0]] * 7)
