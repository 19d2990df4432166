"""A judge's answer, read and checked: `parse_judgement(text, story) -> Judgement`.

    InvalidJudgement   no JSON object, a key missing or twice, a score out of range or no number

Inconsistencies leave the numbers usable, since the total is always computed here: a sum that is not
the judge's own (flag `total_mismatch`), a quote that the story does not contain (flag
`quote_not_found:P3`). Two or more in one answer say that the judge was not attending; it is worth
asking again, and what it then says is taken.
"""

from __future__ import annotations

import json
import re
import unicodedata
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from ..types import Scored
from . import rubric

TOTAL_TOLERANCE = 0.51  # points; judges round halves
REASK_FROM = 2  # inconsistencies in one answer
MAX_QUOTE_SHOWN = 60  # characters

_FENCED = re.compile(r"\A```[a-zA-Z]*\s*\n(.*?)\n?\s*```\Z", re.DOTALL)
_THINKING = re.compile(r"\A\s*<think>.*?</think>", re.DOTALL)
_PLAIN = str.maketrans(
    {
        "\u2018": "'",
        "\u2019": "'",
        "\u201c": '"',
        "\u201d": '"',
        "\u2013": "-",
        "\u2014": "-",
        "\u2026": "...",
    }
)


class InvalidJudgement(ValueError):
    """An answer that breaks the schema; the message says how, in words a judge can act on."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """One answer: scores as given, and the total that counts."""

    scores: dict[str, float]  # P1..P6, N1..N10, BONUS, PENALTY as the judge gave them
    counted: dict[str, float]  # the same under the caps of bonus and penalty
    justifications: dict[str, str]
    quotes: dict[str, tuple[str, ...]]
    overall: float  # points, in [-159, 108]
    inconsistencies: dict[str, str]  # flag -> what is wrong, in words a judge can act on
    summary: str = ""

    @property
    def flags(self) -> tuple[str, ...]:
        """Flags of the inconsistencies, for `Scored.flags`."""
        return tuple(self.inconsistencies)

    @property
    def correction(self) -> str | None:
        """What to ask again with; None where the answer is consistent enough to stand."""
        if len(self.inconsistencies) < REASK_FROM:
            return None
        return "; ".join(self.inconsistencies.values())

    @property
    def quality(self) -> float:
        """overall / 100."""
        return self.overall / rubric.POINTS_PER_QUALITY

    def to_scored(self, judge: str = "") -> Scored:
        """The outcome of a job with this one judgement."""
        return Scored(self.quality, dict(self.counted), judge, self.flags)


class _Dimension(BaseModel):
    model_config = ConfigDict(extra="ignore")

    justification: str
    quotes: list[str]


def parse_judgement(text: str, story: str) -> Judgement:
    """Read an answer; a code fence, thinking before it or prose around the object is allowed.

    Raises:
        InvalidJudgement: see the module's docstring.
    """
    answer = _validate(_load_object(text))
    parts = {name: getattr(answer, name) for name in rubric.DIMENSIONS}
    scores = {name: float(part.score) for name, part in parts.items()}
    counted = rubric.apply_caps(scores)
    quotes = {name: tuple(part.quotes) for name, part in parts.items()}
    return Judgement(
        scores=scores,
        counted=counted,
        justifications={name: part.justification for name, part in parts.items()},
        quotes=quotes,
        overall=rubric.plain_sum(counted),
        inconsistencies=_inconsistencies(scores, counted, quotes, answer.overall, story),
        summary=answer.summary,
    )


@cache
def _answer_model() -> Any:
    """The pydantic model of an answer, one field a dimension with its own range."""
    fields: dict[str, Any] = {}
    for name, maximum in rubric.MAX_SCORES.items():
        number = Annotated[float, Field(ge=0, le=maximum, strict=True, allow_inf_nan=False)]
        fields[name] = (create_model(f"Dimension{name}", __base__=_Dimension, score=number), ...)
    total = Annotated[float, Field(strict=True, allow_inf_nan=False)]
    return create_model(
        "Answer",
        __config__=ConfigDict(extra="ignore"),
        **fields,
        overall=(total | None, None),
        summary=(str, ""),
    )


def _validate(tree: dict[str, Any]) -> Any:
    try:
        return _answer_model().model_validate(tree)
    except ValidationError as error:
        faults = error.errors(include_url=False, include_input=False)
        lines = [f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in faults[:5]]
        if len(faults) > len(lines):
            lines.append(f"and {len(faults) - len(lines)} more")
        raise InvalidJudgement("; ".join(lines)) from None  # the input may be long


def _load_object(text: str) -> dict[str, Any]:
    body = _THINKING.sub("", text).strip()
    if fenced := _FENCED.match(body):
        body = fenced.group(1)
    start, end = body.find("{"), body.rfind("}")
    if start < 0 or end < start:
        raise InvalidJudgement("the answer holds no JSON object")
    try:
        tree = json.loads(
            body[start : end + 1], object_pairs_hook=_unique, parse_constant=_no_constant
        )
    except json.JSONDecodeError as error:
        raise InvalidJudgement(f"not valid JSON: {error.msg} at character {error.pos}") from error
    except RecursionError as error:
        raise InvalidJudgement("the JSON is nested too deeply") from error
    except InvalidJudgement:
        raise
    except ValueError as error:  # Python reads no whole numbers of thousands of digits
        raise InvalidJudgement("a number has too many digits") from error
    assert isinstance(tree, dict)  # it begins with a brace
    return tree


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A dict, or an error for a key that occurs twice."""
    tree = dict(pairs)
    if len(tree) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise InvalidJudgement(f"{twice}: the key occurs more than once")
    return tree


def _no_constant(name: str) -> float:
    raise InvalidJudgement(f"{name} is not a score")


def _inconsistencies(
    scores: dict[str, float],
    counted: dict[str, float],
    quotes: dict[str, tuple[str, ...]],
    claimed: float | None,
    story: str,
) -> dict[str, str]:
    found = {}
    totals = (rubric.plain_sum(scores), rubric.plain_sum(counted))  # with or without the caps
    if claimed is not None and min(abs(claimed - t) for t in totals) > TOTAL_TOLERANCE:
        found["total_mismatch"] = f"overall is {claimed:g}, but the scores sum to {totals[0]:g}"
    plain_story = _plain(story)
    for name, texts in quotes.items():
        missing = [quote for quote in texts if _bare_quote(quote) not in plain_story]
        if missing:
            found[f"quote_not_found:{name}"] = (
                f"{name}.quotes: {missing[0][:MAX_QUOTE_SHOWN]!r} is not in the story"
            )
    return found


def _bare_quote(quote: str) -> str:
    """A quote without what judges put around it: marks of quotation, a closing comma, dots."""
    return _plain(quote).strip("\"'.,;: ")


def _plain(text: str) -> str:
    """Typographic variants and white space made alike, so that only wording is compared."""
    return " ".join(unicodedata.normalize("NFKC", text).translate(_PLAIN).split())
