"""Means, slopes and gains of made-up scores, and the tables that show them."""

from __future__ import annotations

import io
import re
import shutil
import subprocess
from typing import Any

import pytest
from rich.console import Console

from polaris_fast.evaluate.buckets import PAPER_EDGES, Buckets
from polaris_fast.evaluate.measures import MEASURES
from polaris_fast.evaluate.page import write_page
from polaris_fast.evaluate.reference import reference
from polaris_fast.evaluate.summary import Measured, summarize_models, to_json
from polaris_fast.evaluate.table import interval_text, print_result
from polaris_fast.evaluate.writing import Written

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
# Two windows on the page, and a line with the width of each beside that of its contents.
WINDOWS = """<iframe src="evaluation.html" width="390"></iframe>
<iframe src="evaluation.html" width="1280"></iframe><pre></pre><script>
onload = () => document.querySelector("pre").textContent = Array.from(frames).map(
  f => f.document.documentElement).map(e => `${e.clientWidth}/${e.scrollWidth}`).join(" ")
</script>"""
TARGETS = (2000, 6000, 10000)


def story(
    uid: str, target: int, sample: int, quality: float | None, text: str = "It was."
) -> Measured:
    written = Written(f"{uid}/{target}/{sample}", uid, "A prompt.", target, sample, "", text, False, 9)  # fmt: skip # noqa: E501
    values = {"words": 0.9 * target, "length_ratio": 0.9, "abs_log_ratio": 0.105}
    return Measured(written, values | ({} if quality is None else {"quality": quality}))


def stories(start: float, fall: float, num_prompts: int = 6) -> list[Measured]:
    """Quality `start` in the first bucket, `fall` less in each further one; prompts differ by 1."""
    return [
        story(f"p{i}-{target}", target, sample, start - fall * place + i % 3 - 1)
        for i in range(num_prompts)
        for place, target in enumerate(TARGETS)
        for sample in range(2)
    ]


def result(**found: list[Measured]) -> dict[str, Any]:
    summaries = summarize_models(found, Buckets(PAPER_EDGES), seed=0)
    models = [
        {
            "name": name,
            "num_stories": len(found[name]),
            "num_unjudged": 0,
            "num_empty": sum(not one.written.story for one in found[name]),
            "measures": {key: to_json(one) for key, one in measures.items()},
        }
        for name, measures in summaries.items()
    ]
    settings = {"num_prompts": 18, "samples": 2, "data": "d", "temperature": 1, "top_p": 1, "engine": "hf", "judge": "j", "judge_is_local": False, "seed": 0, "word_counter": "word_chars", "held_out": True}  # fmt: skip # noqa: E501
    return {
        "settings": settings,
        "models": models,
        "buckets": ["1-4K", "4-8K", "8-12K"],
        "paper_buckets": True,
        "pairwise": {},
        "memorisation": {},
        "notes": ["a note"],
        "reference": reference(),
    }


def test_buckets_slope_and_gain_by_hand():
    found = summarize_models(
        {"base": stories(50, 10), "new": stories(56, 4)}, Buckets(PAPER_EDGES), seed=0
    )
    base, new = found["base"]["quality"], found["new"]["quality"]
    assert [i.estimate for i in base.buckets.values()] == pytest.approx([50, 40, 30])
    assert base.all.estimate == pytest.approx(40) and base.all.num_prompts == 18
    assert base.slope is not None and base.slope.estimate == pytest.approx(-10)
    assert base.gain is None and new.gain is not None
    # 6, 12 and 18 more in the three buckets
    assert new.gain.estimate == pytest.approx(12) and 6 < new.gain.low < 12 < new.gain.high < 18
    assert new.slope.estimate == pytest.approx(-4)
    assert new.slope.low > base.slope.high


def test_an_empty_bucket_in_the_middle_is_counted_in_the_slope():
    found = [one for one in stories(50, 10) if one.written.target != 6000]
    quality = summarize_models({"m": found}, Buckets(PAPER_EDGES), seed=0)["m"]["quality"]
    assert list(quality.buckets) == ["1-4K", "8-12K"]
    assert quality.slope is not None and quality.slope.estimate == pytest.approx(-10)


def test_a_prompt_counts_once_however_many_stories_were_judged():
    found = [story("a", 2000, 0, 10.0), story("a", 2000, 1, 20.0), story("b", 2000, 0, 30.0)]
    found.append(story("b", 2000, 1, None))  # no judgement is no number
    quality = summarize_models({"m": found}, Buckets(PAPER_EDGES), seed=0)["m"]["quality"]
    assert quality.all.estimate == pytest.approx((15 + 30) / 2)


def test_a_measure_that_nobody_has_is_absent():
    found = summarize_models({"m": [story("a", 2000, 0, None)]}, Buckets(PAPER_EDGES), seed=0)
    assert "quality" not in found["m"] and "length_ratio" in found["m"]


def test_the_table_shows_the_papers_rows_below_ours():
    out = io.StringIO()
    print_result(result(base=stories(50, 10), new=stories(56, 4)), Console(file=out, width=100))
    lines = out.getvalue().splitlines()
    ours = next(line for line in lines if line.strip().startswith("base"))
    assert ours.split() == ["base", "50.0", "40.0", "30.0", "40.0", "-10.0", "-"]
    paper = next(line for line in lines if "POLARIS-9B" in line and "HRI" not in line)
    assert paper.split() == ["POLARIS-9B", "57.4", "48.2", "44.1", "52.1", "-3.0"]
    assert "arXiv 2606.04095" in out.getvalue() and "note: a note" in out.getvalue()


def test_no_table_is_cut_on_a_terminal_of_80():
    out = io.StringIO()
    print_result(result(base=stories(50, 10), a_long_name_of_one=stories(56, 4)), Console(file=out, width=80))  # fmt: skip # noqa: E501
    assert "\u2026" not in out.getvalue()
    assert out.getvalue().count("]") == out.getvalue().count("[") > 8


def test_empty_stories_and_missing_prompts_are_told_beside_story_quality(tmp_path):
    silent = [
        story(one.written.uid, one.written.target, one.written.sample, None, "") if i < 4 else one
        for i, one in enumerate(stories(56, 4))
    ]
    found = {"base": stories(50, 10), "new": silent}
    out = io.StringIO()
    print_result(result(**found), Console(file=out, width=80))
    shown = out.getvalue()
    assert "36 of 36 written" in shown and "32 of 36 written" in shown
    assert "18 prompts" in shown and "16 prompts" in shown and "\u2026" not in shown
    page = write_page(tmp_path, result(**found), found).read_text()
    assert "36 stories, 4 of them empty" in page and "<small>32 of 36 written</small>" in page
    assert "; 32 of 36 written with new" in page
    out = io.StringIO()
    print_result(result(base=stories(50, 10), new=stories(56, 4)), Console(file=out, width=80))
    assert "36 written" not in out.getvalue() and "18 prompts" not in out.getvalue()


def test_a_models_name_is_no_markup():
    names = ["run[seed=1]", "a[/b]", "[red]"]
    whole = result(**{name: stories(50 + 6 * i, 10 - 6 * i) for i, name in enumerate(names[:2])})
    interval = {"estimate": 1000.0, "low": None, "high": None, "num_prompts": 3}
    whole["pairwise"] = {"elo": dict.fromkeys(names, interval), "pairs": []}
    memory = {"stories": 1, "longest_max": 1, "longest_mean": 1.0, "exact_mean": 1.0}
    shares = {"intervals": {"extracted": interval, "verbatim_share": interval}}
    whole["memorisation"] = dict.fromkeys(names, memory | shares)
    out = io.StringIO()
    print_result(whole, Console(file=out, width=100))
    shown = out.getvalue()
    assert shown.count("run[seed=1]") >= 7 and shown.count("a[/b]") >= 7
    assert shown.count("[red]") == 2


def test_the_page_names_what_was_gained(tmp_path):
    found = {"base": stories(50, 10), "new": stories(56, 4)}
    page = write_page(tmp_path, result(**found), found).read_text()
    assert "words: runs of word characters" in page
    assert "Story Quality: 40.0 with base, 52.0 with new (gain +12.0 [" in page
    assert "POLARIS-9B without HRI" in page and "a note" in page


def test_the_page_has_every_measure_by_length(tmp_path):
    found = {"base": stories(50, 10), "new": stories(56, 4)}
    page = write_page(tmp_path, result(**found), found).read_text()
    by_length = page[page.index("Every measure by words asked for: new") :]
    row = by_length[by_length.index("<th>Story Quality</th>") :].partition("</tr>")[0]
    assert re.findall(r"<td>(\S+) \[", row) == ["56.0", "52.0", "48.0", "-4.0"]
    assert "<th>Words</th><td>1800" in by_length


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium")
def test_the_page_fits_a_phone_and_a_desk(tmp_path):
    found = {"base": stories(50, 10), "a_long_name_of_a_checkpoint": stories(56, 4)}
    write_page(tmp_path, result(**found), found)
    windows = tmp_path / "windows.html"
    windows.write_text(WINDOWS)
    command = [CHROMIUM, "--headless", "--no-sandbox", "--allow-file-access-from-files"]
    command += ["--virtual-time-budget=9000", "--dump-dom", windows.as_uri()]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=100).stdout
    widths = re.findall(r"(\d+)/(\d+)", shown.rpartition("<pre>")[2])
    assert len(widths) == 2 and int(widths[0][0]) < 400 < 1200 < int(widths[1][0])
    assert all(window == contents for window, contents in widths)


@pytest.mark.parametrize(
    ("key", "interval", "signed", "text"),
    [
        ("quality", {"estimate": 52.14, "low": 48.0, "high": 56.26}, False, "52.1 [48.0, 56.3]"),
        ("quality", {"estimate": 3.0, "low": -1.0, "high": 7.0}, True, "+3.0 [-1.0, 7.0]"),
        ("within_20", {"estimate": 0.4, "low": 0.31, "high": 0.5}, False, "40 % [31, 50]"),
        ("quality", {"estimate": 1.0, "low": None, "high": None}, False, "1.0"),
        ("quality", None, False, "-"),
        (
            "length_ratio",
            {"estimate": -0.001, "low": -0.02, "high": 0.001},
            True,
            "0.00 [-0.02, 0.00]",
        ),
    ],
)
def test_intervals_in_words(key, interval, signed, text):
    assert interval_text(interval, MEASURES[key], signed=signed) == text
