"""Pairs of stories in both orders, the judge's preference for a place, and strengths."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from rich.console import Console

from polaris_fast.evaluate.bradley_terry import ANCHOR, POINTS, elo_ratings, fit_strengths
from polaris_fast.evaluate.dimensions import DIMENSIONS
from polaris_fast.evaluate.judging import (
    EMPTY,
    judge_dimensions,
    judge_pairs,
    pairs_by_score,
    quality_points,
)
from polaris_fast.evaluate.pairwise import (
    Result,
    compare_scores,
    judge_match,
    make_matches,
    position_bias,
    summarize,
)
from polaris_fast.evaluate.table import pairwise_table
from polaris_fast.evaluate.writing import Written
from polaris_fast.types import Failed, Scored


def written(item: str, story: str = "Once.") -> Written:
    uid = item.split("/")[0]
    return Written(item, uid, "A prompt.", 10, 0, "", story, False, 3)


def test_matches_pair_equal_items_with_empty_stories_among_them():
    stories = {
        "a": [written("p/10/0"), written("q/10/0"), written("r/10/0", " ")],
        "b": [written("q/10/0"), written("p/10/0"), written("r/10/0")],
        "c": [written("p/10/0")],
    }
    found = [(m.a, m.b, m.written_a.item) for m in make_matches(stories)]
    assert found == [("a", "b", "p/10/0"), ("a", "b", "q/10/0"), ("a", "b", "r/10/0"), ("a", "c", "p/10/0"), ("b", "c", "p/10/0")]  # fmt: skip # noqa: E501


@pytest.mark.parametrize(
    ("a", "b", "points"), [("Once.", " ", 1.0), ("", "Once.", 0.0), ("", "\n", 0.5)]
)
def test_text_beats_an_empty_story_without_a_call(a, b, points):
    match = make_matches({"a": [written("p/1/0", a)], "b": [written("p/1/0", b)]})[0]
    assert match.questions() == []
    result = judge_match(match, [])
    assert result is not None and result.points_a == points and result.picks is None


class Answers:
    """A judge that prefers the first story, whatever it is."""

    def __init__(self) -> None:
        self.num_asked = 0

    def ask_all(self, questions, **hooks):
        self.num_asked += len(questions)
        return [dict.fromkeys(DIMENSIONS, 5) | {"better": "first"} for _ in questions]


def test_a_model_that_mostly_writes_nothing_loses():
    silent = [written("p0/9/0")] + [written(f"p{i}/9/0", "") for i in range(1, 12)]
    stories = {"writes": [written(f"p{i}/9/0") for i in range(12)], "silent": silent}
    judge = Answers()
    results, failed = judge_pairs(stories, judge)
    assert judge.num_asked == 2 and failed == []
    elo = summarize(results, list(stories), seed=0)["elo"]
    assert elo["silent"]["high"] < ANCHOR
    scores = {(name, w.item): Scored(0.1) for name, some in stories.items() for w in some}
    assert [r.points_a for r in pairs_by_score(stories, scores)] == [0.5] + [1.0] * 11

    s_q, _ = judge_dimensions(stories, judge)
    assert [s_q["silent", w.item] for w in silent] == [100.0] + [0.0] * 11
    assert judge.num_asked == 2 + 13


def test_a_model_without_a_match_has_no_elo():
    results = [Result("b", "c", f"p{i}", float(i > 1), ("first", "second")) for i in range(8)]
    elo = summarize(results, ["a", "b", "c"], seed=0)["elo"]
    assert elo["a"] == {"estimate": None, "low": None, "high": None, "num_prompts": 0}
    assert elo["b"]["estimate"] == ANCHOR and elo["c"]["estimate"] < ANCHOR
    console = Console(file=io.StringIO(), width=80)
    console.print(pairwise_table({"elo": elo, "pairs": []}))
    shown = console.file.getvalue().split()
    assert shown[shown.index("a") + 1 : shown.index("b")] == ["-", "0", "prompts"]
    assert "8" in shown[shown.index("c") :]


def test_results_that_all_agree_have_no_interval():
    results = [Result("a", "b", f"p{i}", 0.0, ("second", "first")) for i in range(5)]
    # every prompt the same: any draw of them gives one rating
    elo = summarize(results, ["a", "b"], seed=0)["elo"]["b"]
    assert (
        elo["estimate"] > ANCHOR and elo["low"] is elo["high"] is None and elo["num_prompts"] == 5
    )


@pytest.mark.parametrize(
    ("in_order", "swapped", "points"),
    [
        ("first", "second", 1.0),  # a in both
        ("second", "first", 0.0),
        ("first", "first", 0.5),  # whoever stands first
        ("second", "second", 0.5),
        ("tie", "tie", 0.5),
        ("first", "tie", 0.5),
        ("tie", "first", 0.5),
    ],
)
def test_a_pick_counts_only_if_it_stands_in_both_orders(in_order, swapped, points):
    match = make_matches({"a": [written("p/1/0")], "b": [written("p/1/0")]})[0]
    result = judge_match(match, [{"better": in_order}, {"better": swapped}])
    assert result.points_a == points


def test_a_missing_answer_is_no_result():
    match = make_matches({"a": [written("p/1/0")], "b": [written("p/1/0")]})[0]
    assert judge_match(match, [{"better": "first"}, Failed("away")]) is None


def test_the_two_questions_swap_the_stories_and_nothing_else():
    match = make_matches({"a": [written("p/1/0", "Anna.")], "b": [written("p/1/0", "Bert.")]})[0]
    texts = [question.messages[1]["content"] for question in match.questions()]
    assert texts[0].index("Anna.") < texts[0].index("Bert.")
    assert texts[1].index("Bert.") < texts[1].index("Anna.")
    assert match.questions()[0].messages[0] == match.questions()[1].messages[0]


def test_position_bias_by_hand():
    picks = [("first", "first"), ("first", "second"), ("second", "second"), ("tie", "first")]
    # stood: the second alone; decided: 7 calls, first first first second(-) ... 4 of them first
    assert position_bias(picks) == {"consistent": 1 / 4, "first_place": pytest.approx(4 / 7)}
    assert position_bias([]) == {}


def test_scores_within_half_a_point_tie():
    match = make_matches({"a": [written("p/1/0")], "b": [written("p/1/0")]})[0]
    assert compare_scores(match, 50.0, 50.5).points_a == 0.5
    assert compare_scores(match, 51.0, 50.0).points_a == 1.0
    assert compare_scores(match, 49.0, 50.0).points_a == 0.0


def test_two_models_have_the_closed_form():
    # 3 wins to 1 and half a virtual tie each: odds 3.5 / 1.5
    wins = np.array([[[0.0, 3.0], [1.0, 0.0]]])
    assert fit_strengths(wins)[0] == pytest.approx([0.0, np.log(1.5 / 3.5)])


def test_strengths_of_three_models_are_found_again():
    truth = np.array([0.0, 0.7, -0.4])
    odds = np.exp(truth)
    games = 4000 * odds[:, None] / (odds[:, None] + odds[None, :])
    np.fill_diagonal(games, 0)
    assert fit_strengths(games[None])[0] == pytest.approx(truth, abs=0.01)


def test_a_model_that_wins_every_time_stays_finite():
    wins = np.array([[[0.0, 0.0], [50.0, 0.0]]])
    assert fit_strengths(wins)[0, 1] == pytest.approx(np.log(50.5 / 0.5))


def test_elo_intervals_hold_the_truth_and_the_first_model_is_the_anchor():
    rng = np.random.default_rng(0)
    truth = 0.6  # log-strength of the second model
    chance = 1 / (1 + np.exp(-truth))
    prompts = []
    for _ in range(120):
        won = float(rng.random() < chance)
        prompts.append(np.array([[0.0, 1 - won], [won, 0.0]]))
    first, second = elo_ratings(prompts, seed=0, resamples=300)
    assert first.estimate == ANCHOR and np.isnan(first.low)
    assert second.low < ANCHOR + POINTS * truth < second.high


def test_the_summary_counts_points_of_pairs():
    results = [
        Result("a", "b", "p", 1.0, ("first", "second")),
        Result("a", "b", "p", 0.5, ("first", "first")),
        Result("a", "b", "q", 0.0, ("second", "first")),
    ]
    found = summarize(results, ["a", "b"], seed=0)
    assert found["pairs"] == [
        {"a": "a", "b": "b", "matches": 3, "won": 1, "tied": 1, "share": pytest.approx(0.5)}
    ]
    assert found["elo"]["b"]["estimate"] == pytest.approx(ANCHOR)
    assert found["elo"]["a"]["low"] is None and found["consistent"] == pytest.approx(2 / 3)
    assert summarize([], ["a", "b"], seed=0) == {}


def test_what_one_prompt_or_ties_alone_cannot_tell_is_left_out_and_never_nan():
    found = summarize([Result("a", "b", "p", 0.5, ("tie", "tie"))], ["a", "b"], seed=0)
    assert found["elo"]["b"] == {"estimate": ANCHOR, "low": None, "high": None, "num_prompts": 1}
    assert found["consistent"] == 1 and "first_place" not in found
    json.dumps(found, allow_nan=False)
    console = Console(file=io.StringIO(), width=80)
    console.print(pairwise_table(found))
    shown = " ".join(console.file.getvalue().split())
    assert "nan" not in shown and "all its calls were ties" in shown


def test_an_empty_story_has_no_story_quality():
    assert quality_points(EMPTY) is None and quality_points(Failed("away")) is None
    assert quality_points(Scored(-0.118)) == pytest.approx(-11.8)
