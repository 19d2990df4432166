"""One shape of injected text: a `Rule` finds an anchor, asks for its contexts, names what to cut.

Every pattern has a bounded width, so a scan is linear in the text. Searching text for fixed words
is some fifty times quicker than matching a pattern on it, and most rules can be ruled out so. Tests
hold all rules to both.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

Scope = Literal["match", "sentence", "line"]


@dataclass(frozen=True, slots=True)
class Rule:
    """One shape of one kind of injection, on text folded by `plain_text`."""

    kind: str
    anchor: re.Pattern[str]
    scope: Scope = "match"  # what is cut
    context: tuple[re.Pattern[str], ...] = ()  # all of them must occur near the anchor
    in_speech: bool = True  # False: not where a character says it, between double quotes
    at_edge: bool = False  # only where nothing but white space comes before or after
    # Of each group, every match of the anchor (or of one of the contexts) holds a word.
    needs: tuple[frozenset[str], ...] = ()


def any_of(*words: str) -> frozenset[str]:
    """A group of `Rule.needs`."""
    return frozenset(words)


def regex(pattern: str) -> re.Pattern[str]:
    """Compiled for folded text: lower case, `^` and `$` at every line."""
    return re.compile(pattern, re.MULTILINE)
