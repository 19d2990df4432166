"""Rules are ruled out by words that their matches must hold: that loses no finding."""

from __future__ import annotations

import json
import re
from importlib import resources
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polaris_fast.judge.injection import scan, scanning, tokens
from polaris_fast.judge.injection.plain_text import read_plain
from polaris_fast.judge.injection.rules import any_of, regex
from polaris_fast.judge.injection.scanning import RULES, possible_rules
from tests.judge.test_injection import CASES, FICTION

BREAK = "\0"  # some text of which nothing is known
MOST_MEMBERS = 12  # of a character class that is spelt out


def always_holds(pattern: re.Pattern[str], words: frozenset[str]) -> bool:
    """Whether every match of `pattern` holds one of `words`: a proof on its syntax tree.

    The states are the last characters of all texts that the tree can spell and that hold no word
    so far; a text in which a word appears is dropped, and in the end none must be left.
    """
    reach = max(map(len, words)) - 1

    def spell(states: set[str], text: str) -> set[str]:
        kept = {state + text for state in states}
        return {s[-reach:] if reach else "" for s in kept if not any(w in s for w in words)}

    def walk(states: set[str], tree: Any) -> set[str]:
        for operation, argument in tree:
            states = step(states, str(operation), argument)
        return states

    def step(states: set[str], operation: str, argument: Any) -> set[str]:
        if operation == "LITERAL":
            return spell(states, chr(argument))
        if operation == "IN":
            known = all(str(kind) == "LITERAL" for kind, _ in argument)
            if not known or len(argument) > MOST_MEMBERS:
                return spell(states, BREAK)
            return set().union(*(spell(states, chr(code)) for _, code in argument))
        if operation == "BRANCH":
            return set().union(*(walk(states, branch) for branch in argument[1]))
        if operation == "SUBPATTERN":
            return walk(states, argument[-1])
        if operation == "MAX_REPEAT":
            low, high, body = argument
            if high == 1:
                return walk(states, body) | (states if low == 0 else set())
            for _ in range(low):
                states = walk(states, body)
            return spell(states, BREAK) if high > low else states
        if operation in ("AT", "ASSERT_NOT", "ASSERT"):
            return states
        assert operation in ("NOT_LITERAL", "ANY"), operation
        return spell(states, BREAK)

    return not walk({""}, re._parser.parse(pattern.pattern, re.MULTILINE))


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.anchor.pattern[:40])
def test_every_match_holds_a_word_of_each_group(rule):
    assert rule.needs, "a rule without words is matched against every story"
    for words in rule.needs:
        assert any(always_holds(pattern, words) for pattern in (rule.anchor, *rule.context))


@pytest.mark.parametrize(
    ("pattern", "holds"),
    [
        ("ab?c", False),  # "ac"
        ("(?:ab|xab)c", True),
        ("(?:ab|x)c", False),
        ("[ax]b", False),
        ("a{1,3}b", False),  # "aab" holds it; not proved, which errs on the safe side
        ("xab{1,2}", True),
        (r"a\bb", True),  # matches nothing
    ],
)
def test_the_proof_itself(pattern, holds):
    assert always_holds(regex(pattern), any_of("ab")) is holds


def all_rules(text: str, monkeypatch: pytest.MonkeyPatch) -> tuple[scanning.Finding, ...]:
    """What a scan finds that rules nothing out."""
    with monkeypatch.context() as patch:
        patch.setattr(scanning, "possible_rules", lambda _: RULES)
        return scan(text)


def test_nothing_is_lost_on_injections_fiction_and_bundled_stories(monkeypatch):
    folder = resources.files("polaris_fast") / "samples"
    stories = [
        json.loads(line)["story"]
        for line in (folder / "stories.jsonl").read_text("utf-8").splitlines()
    ]
    for text in [*(text for _, text in CASES), *FICTION.values(), *stories]:
        assert scan(text) == all_rules(text, monkeypatch)


PIECES = st.sampled_from([text for _, text in CASES] + list(FICTION.values()))


@given(
    st.lists(st.one_of(PIECES, st.text(max_size=12)), max_size=6), st.sampled_from(["", " ", "\n"])
)
def test_nothing_is_lost_on_mixtures(pieces, seam):
    with pytest.MonkeyPatch.context() as monkeypatch:
        text = seam.join(pieces)
        assert scan(text) == all_rules(text, monkeypatch)


def test_a_plain_story_is_matched_against_few_rules():
    story = "The keeper climbed the stairs with a lamp. Rain fell on the black water. " * 30
    assert possible_rules(read_plain(story).text) == []


def test_only_text_beyond_ascii_can_hide():
    hidden = tokens.HIDDEN_RUN
    assert not any(hidden.search(chr(code) * 5) for code in range(128))
