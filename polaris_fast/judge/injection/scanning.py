"""`scan(story)` applies every rule; `without(story, findings)` removes what it found."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from . import appeals, tokens
from .plain_text import read_plain
from .rules import Rule

FLAG = "injection"
REACH = 240  # characters on either side of an anchor in which its context is looked for
MAX_PASSES = 3  # cutting may bring pieces together

RULES = (*tokens.RULES, *appeals.RULES)
KINDS = tuple(dict.fromkeys([*(rule.kind for rule in RULES), tokens.HIDDEN]))

_SENTENCE_END = re.compile(r"[.!?][\"')\]]{0,2}\s")


@dataclass(frozen=True, slots=True)
class Finding:
    """One stretch of a story that is addressed to the judge: `story[start:end] == text`."""

    kind: str  # one of `KINDS`
    start: int
    end: int
    text: str


def scan(story: str) -> tuple[Finding, ...]:
    """All findings by position; those of one kind do not overlap, those of two kinds may."""
    plain = read_plain(story)
    spans = []
    if not story.isascii():
        spans += [(tokens.HIDDEN, *match.span()) for match in tokens.HIDDEN_RUN.finditer(story)]
    for rule in possible_rules(plain.text):
        for start, end in _spans(rule, plain.text):
            spans.append((rule.kind, *plain.source_span(start, end)))
    return tuple(
        Finding(kind, start, end, story[start:end])
        for kind, start, end in sorted(_merged(spans), key=lambda span: (span[1], span[2], span[0]))
    )


def without(story: str, findings: Sequence[Finding]) -> str:
    """The story with the findings cut out, and what that brings together looked at again.

    Text between the cuts stays as it is; a cut leaves one space, or the paragraph break that was
    there. "" when no letter or digit is left; the story itself when there are no findings.
    """
    if not findings:
        return story
    for _ in range(MAX_PASSES):
        seen = [finding for finding in findings if finding.kind != tokens.HIDDEN]
        story = tokens.HIDDEN_RUN.sub("", _cut(story, seen))  # hidden runs stand inside words
        findings = scan(story)
        if not findings:
            break
    return story if any(char.isalnum() for char in story) else ""


def possible_rules(text: str) -> list[Rule]:
    """The rules whose words occur in folded text: no other can match."""
    occurs: dict[frozenset[str], bool] = {}  # rules share groups
    return [rule for rule in RULES if all(_occurs(group, text, occurs) for group in rule.needs)]


def _occurs(group: frozenset[str], text: str, known: dict[frozenset[str], bool]) -> bool:
    if group not in known:
        known[group] = any(map(text.__contains__, group))
    return known[group]


def flags(findings: Sequence[Finding]) -> tuple[str, ...]:
    """One flag a kind, sorted."""
    return tuple(sorted({f"{FLAG}:{finding.kind}" for finding in findings}))


def _spans(rule: Rule, text: str) -> Iterator[tuple[int, int]]:
    first, last = len(text) - len(text.lstrip()), len(text.rstrip())
    for match in rule.anchor.finditer(text):
        start, end = match.span()
        if rule.at_edge and start > first and end < last:
            continue
        if not rule.in_speech and _inside_speech(text, start):
            continue
        if all(pattern.search(_near(text, start, end)) for pattern in rule.context):
            yield _widened(rule, text, start, end)


def _near(text: str, start: int, end: int) -> str:
    """The paragraph around a match, at most `REACH` characters to either side."""
    low = max(0, start - REACH)
    opening = text.rfind("\n\n", low, start)
    closing = text.find("\n\n", end, end + REACH)
    return text[opening if opening >= 0 else low : closing if closing >= 0 else end + REACH]


def _widened(rule: Rule, text: str, start: int, end: int) -> tuple[int, int]:
    """The match, its sentence or its line, at most `REACH` characters more on either side."""
    if rule.scope == "match":
        return start, end
    while start < end and not text[start].isalnum():  # an order's lead-in reaches back
        start += 1
    low, high = _line_start(text, start), text.find("\n", end, end + REACH)
    high = high if high >= 0 else min(len(text), end + REACH)
    if rule.scope == "sentence":
        for stop in _SENTENCE_END.finditer(text, low, start):
            low = stop.end()
        if (stop_after := _SENTENCE_END.search(text, end - 1, high)) is not None:
            high = stop_after.end() - 1
    return low, max(high, end)


def _inside_speech(text: str, at: int) -> bool:
    """Whether a double quote that opened in this line is still open at the anchor's first word."""
    while at < len(text) and not text[at].isalnum():
        at += 1
    return text.count('"', _line_start(text, at), at) % 2 == 1


def _line_start(text: str, at: int) -> int:
    """Where the line of `at` begins, at most `REACH` characters back."""
    low = max(0, at - REACH)
    return max(low, text.rfind("\n", low, at) + 1)


def _merged(spans: list[tuple[str, int, int]]) -> list[tuple[str, int, int]]:
    """Overlapping spans of one kind joined."""
    merged: list[tuple[str, int, int]] = []
    for kind, start, end in sorted(spans):
        if merged and merged[-1][0] == kind and start <= merged[-1][2]:
            merged[-1] = (kind, merged[-1][1], max(end, merged[-1][2]))
        else:
            merged.append((kind, start, end))
    return merged


def _cut(story: str, findings: Sequence[Finding]) -> str:
    pieces, at = [], 0
    for finding in sorted(findings, key=lambda one: one.start):
        if finding.start > at:
            pieces.append(story[at : finding.start])
        at = max(at, finding.end)
    pieces.append(story[at:])
    kept = pieces[0]
    for piece in pieces[1:]:
        kept = _joined(kept, piece)
    return kept.strip()


def _joined(left: str, right: str) -> str:
    """Both pieces with the widest break of the two sides between them, or one space."""
    gap = left[len(left.rstrip()) :] + right[: len(right) - len(right.lstrip())]
    breaks = gap.count("\n")
    seam = "\n\n" if breaks > 1 else "\n" if breaks == 1 else " "
    return left.rstrip() + seam + right.lstrip()
