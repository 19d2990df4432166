"""What counts as a judgement: fences and prose are read through, everything else is named."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.scripted_endpoint import answer_tree
from polaris_fast.judge import rubric
from polaris_fast.judge.judgement import InvalidJudgement, parse_judgement

STORY = "The lamp went out.\n\n\u201cWho\u2019s there?\u201d asked Mara \u2014 and nobody answered."
VALID = json.dumps(answer_tree(42))


@pytest.mark.parametrize(
    "text",
    [
        VALID,
        f"```json\n{VALID}\n```",
        f"```\n{VALID}\n```",
        f"  \n{VALID}\n",
        f"<think>P1 is {{high}}.</think>\n{VALID}",
        f"Here is my judgement:\n\n{VALID}\n\nI hope it helps.",
    ],
    ids=["plain", "fenced", "fence-without-name", "blank-lines", "thinking", "prose"],
)
def test_accepted_forms(text):
    judgement = parse_judgement(text, STORY)
    assert judgement.overall == 42
    assert judgement.quality == pytest.approx(0.42)
    assert judgement.flags == ()


@pytest.mark.parametrize(("digits", "fault"), [(400, "overall"), (5000, "too many digits")])
def test_a_number_without_end_is_an_invalid_answer(digits, fault):
    text = VALID.replace('"overall": 42', f'"overall": {"9" * digits}')
    assert len(text) > digits
    with pytest.raises(InvalidJudgement, match=fault):
        parse_judgement(text, STORY)


def changed(name: str, **parts: object) -> str:
    tree = answer_tree()
    tree[name] = tree[name] | parts
    return json.dumps(tree)


def without(*path: str) -> str:
    tree = answer_tree()
    node = tree
    for key in path[:-1]:
        node = node[key]
    del node[path[-1]]
    return json.dumps(tree)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no JSON object"),
        ("I would rather not.", "no JSON object"),
        ("[1, 2]", "no JSON object"),
        (VALID[:-1], "not valid JSON"),
        (VALID + VALID, "not valid JSON"),
        (without("N7"), "N7"),
        (without("P1", "score"), "P1.score"),
        (without("P1", "justification"), "P1.justification"),
        (without("P1", "quotes"), "P1.quotes"),
        (VALID[:-1] + ', "P1": {"justification": "", "quotes": [], "score": 1}}', "P1: the key"),
        (changed("P1", score=15.5), "P1.score"),
        (changed("N8", score=-1), "N8.score"),
        (changed("P2", score="12"), "P2.score"),
        (changed("P2", score=True), "P2.score"),
        (changed("P2", score=None), "P2.score"),
        (changed("P2", score=math.nan), "NaN"),
        (changed("P2", score=math.inf), "Infinity"),
        (VALID.replace('"score": 0', '"score": 1e999', 1), "score"),
        (changed("P2", quotes="a string"), "P2.quotes"),
        ('{"a":' * 100_000 + "}" * 100_000, "nested"),
    ],
)
def test_refused_with_the_place(text, message):
    with pytest.raises(InvalidJudgement, match=message):
        parse_judgement(text, STORY)


def test_message_stays_short_when_all_is_missing():
    with pytest.raises(InvalidJudgement) as caught:
        parse_judgement("{}", STORY)
    assert len(str(caught.value)) < 400
    assert "more" in str(caught.value)


def test_total_is_recomputed_and_the_claim_flagged():
    tree = answer_tree(42) | {"overall": 97}
    judgement = parse_judgement(json.dumps(tree), STORY)
    assert judgement.overall == 42
    assert judgement.flags == ("total_mismatch",)


def test_total_may_be_missing_or_ignore_the_caps():
    tree = answer_tree(10)
    tree["N1"]["score"] = 15  # N > P/2: the bonus does not count
    tree["BONUS"]["score"] = 5
    for claimed in (-5, 0, None):  # with the caps, without them, unsaid
        judgement = parse_judgement(json.dumps(tree | {"overall": claimed}), STORY)
        assert (judgement.overall, judgement.flags) == (-5, ())
    assert judgement.scores["BONUS"] == 5
    assert judgement.counted["BONUS"] == 0


@pytest.mark.parametrize(
    ("quote", "found"),
    [
        ("The lamp went out.", True),
        ('"Who\'s there?" asked Mara', True),  # straight marks for typographic ones
        ("out. \u201cWho\u2019s there?\u201d", True),  # over the paragraph's end
        ("The lamp exploded.", False),
        ("the LAMP went out", False),
        ("\u201cThe lamp went out,\u201d", True),  # the judge's own marks around it
        ("... asked Mara ...", True),
        ("", True),
    ],
)
def test_quotes_must_be_in_the_story(quote, found):
    judgement = parse_judgement(changed("P5", quotes=[quote]), STORY)
    assert judgement.flags == (() if found else ("quote_not_found:P5",))


def test_one_inconsistency_stands_and_two_are_worth_asking_again():
    tree = answer_tree(42)
    tree["P5"]["quotes"] = ["The lamp exploded."]
    assert parse_judgement(json.dumps(tree), STORY).correction is None
    tree["overall"] = 97
    judgement = parse_judgement(json.dumps(tree), STORY)
    assert judgement.flags == ("total_mismatch", "quote_not_found:P5")
    assert judgement.overall == 42  # computed here all the same
    assert judgement.correction == (
        "overall is 97, but the scores sum to 42; "
        "P5.quotes: 'The lamp exploded.' is not in the story"
    )


@given(
    st.fixed_dictionaries({n: st.floats(0, top) for n, top in rubric.MAX_SCORES.items()}),
)
def test_any_scores_in_range_give_a_finite_quality(drawn):
    tree = answer_tree()
    for name, score in drawn.items():
        tree[name]["score"] = score
    scored = parse_judgement(json.dumps(tree), STORY).to_scored("j")
    assert -1.59 - 1e-9 <= scored.quality <= 1.08 + 1e-9
    assert set(scored.dimensions) == set(rubric.DIMENSIONS)


@given(st.text(max_size=200))
def test_any_text_is_a_judgement_or_a_typed_error(text):
    with pytest.raises(InvalidJudgement):
        parse_judgement(text, STORY)
