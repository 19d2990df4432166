"""A whole endpoint from one seed: the truth of a story, and what each attempt at it meets.

Everything is a function of (seed, story, attempt number), so that it does not depend on the order
in which requests arrive, and a second process with the same seed agrees.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import count

from polaris_fast.judge import rubric

from . import behaviours as do
from . import wire
from .behaviours import Behaviour

# Share of first attempts that meet each class of fault: 30 % in all.
STATED_FAULTS: Mapping[str, float] = {
    "throttle": 0.08,
    "transient": 0.10,
    "timeout": 0.02,
    "truncated": 0.03,
    "invalid": 0.05,
    "refusal": 0.02,
}

_Make = Callable[[float], Behaviour]  # from the seconds that Retry-After asks for
_VARIANTS: dict[str, dict[str, _Make]] = {
    "throttle": {
        "429 seconds": lambda s: wire.status(429, headers={"Retry-After": f"{s:.3f}"}),
        "429 milliseconds": lambda s: wire.status(
            429, headers={"retry-after-ms": f"{1000 * s:.0f}"}
        ),
        "429 date": wire.throttled_until_date,
        "429 bare": lambda s: wire.status(429),
        "529": lambda s: wire.status(529, error={"type": "overloaded_error", "message": "busy"}),
    },
    "transient": {
        "500": lambda s: wire.status(500),
        "502": lambda s: wire.status(502),
        "503": lambda s: wire.status(503, headers={"Retry-After": f"{s:.3f}"}),
        "504": lambda s: wire.status(504),
        "reset at once": lambda s: wire.reset_at_once(),
        "reset mid-body": lambda s: wire.reset_mid_body(),
        "EOF mid-body": lambda s: wire.eof_mid_body(),
        "not JSON": lambda s: wire.not_json(),
        "error with status 200": lambda s: wire.error_with_status_200(),
    },
    "timeout": {"hang": lambda s: wire.hang()},
    "truncated": {
        "truncated JSON": lambda s: do.truncated(),
        "white space": lambda s: do.whitespace_loop(),
    },
    "invalid": {
        "missing dimension": lambda s: do.missing_dimension(),
        "duplicate dimension": lambda s: do.duplicate_dimension(),
        "out of range": lambda s: do.out_of_range(),
        "NaN": lambda s: do.not_a_number(),
        "said twice": lambda s: do.said_twice(),
        "broken JSON": lambda s: do.broken_json(),
        "prose": lambda s: do.prose(),
    },
    "refusal": {
        "refusal": lambda s: do.refusal(),
        "null content": lambda s: do.null_content(),
        "content filter": lambda s: do.filtered(),
    },
    "quota": {
        "insufficient_quota": lambda s: wire.status(
            429, error={"code": "insufficient_quota", "message": "no credit left"}
        ),
        "402": lambda s: wire.status(402),
    },
    "auth": {"401": lambda s: wire.status(401), "403": lambda s: wire.status(403)},
}
FAULT_CLASSES = tuple(_VARIANTS)
PAID_FAULTS = {"truncated", "invalid", "refusal"}  # tokens were made, so they are billed
GENERATED = {"", *PAID_FAULTS}  # classes that take the time of a whole answer; "": no fault


@dataclass(frozen=True, slots=True)
class Latency:
    """Seconds of one answer: log-normal, with a share of answers from a heavy tail."""

    median_s: float = 0.0
    sigma: float = 0.5  # of the logarithm
    tail: float = 0.0  # share of answers that take `tail_factor` times as long
    tail_factor: float = 5.0
    fault_s: float = 0.0  # seconds of a fault that makes no tokens (throttles, 5xx, resets)

    def draw(self, source: random.Random) -> float:
        """Seconds of one whole answer."""
        seconds = self.median_s * source.lognormvariate(0.0, self.sigma)
        return seconds * self.tail_factor if source.random() < self.tail else seconds


@dataclass(frozen=True, slots=True)
class Truth:
    """What the judge thinks of a story whenever it manages to say so."""

    scores: dict[str, float]  # every dimension of the rubric, whole points
    overall: float  # points under the rubric's caps

    @property
    def quality(self) -> float:
        return self.overall / rubric.POINTS_PER_QUALITY


@dataclass(frozen=True, slots=True)
class Attempt:
    """What one request meets."""

    fault: str  # class, "" when the judgement arrives
    variant: str  # shape of the fault or of the answer
    latency_s: float  # until the endpoint answers; a hang has the client's limit instead
    retry_after_s: float = 0.0  # asked for by a throttle


@dataclass(frozen=True)
class Script:
    """See the module's docstring.

    Args:
        seed: another seed is another judge, with other faults.
        faults: share of first attempts by class of `FAULT_CLASSES`; the rest is answered.
        again: the shares shrink by this factor from one attempt at a story to the next.
        quirks: share of good answers in a code fence or with a wrong total; they still count.
        latency: how long answers take.
        retry_after_s: what throttles ask for.
    """

    seed: int = 0
    faults: Mapping[str, float] = field(default_factory=dict)
    again: float = 0.25
    quirks: float = 0.1
    latency: Latency = Latency()
    retry_after_s: float = 0.05

    def __post_init__(self) -> None:
        if unknown := set(self.faults) - set(FAULT_CLASSES):
            raise ValueError(f"Script: no fault class {sorted(unknown)}; {list(FAULT_CLASSES)}")
        if not 0 <= sum(self.faults.values()) <= 1 or min(self.faults.values(), default=0) < 0:
            raise ValueError(
                f"Script: faults must be shares that add up to at most 1: {self.faults}"
            )

    def truth(self, story: str) -> Truth:
        """The story's scores: whole points, good and bad stories alike."""
        source = self._source(story, "truth")
        talent = source.random()
        scores: dict[str, float] = {}
        for name, most in rubric.MAX_SCORES.items():
            mean = talent if name in rubric.POSITIVE or name == rubric.BONUS else 1 - talent
            share = min(
                1.0, max(0.0, source.gauss(mean if name in rubric.POSITIVE else mean / 3, 0.2))
            )
            scores[name] = round(share * most)
        return Truth(scores, rubric.overall(scores))

    def attempt(self, story: str, number: int) -> Attempt:
        """The `number`-th attempt at a story, from 0."""
        source = self._source(story, f"attempt {number}")
        pick, shrink = source.random(), self.again**number
        fault = ""
        for name, share in self.faults.items():
            if pick < share * shrink:
                fault = name
                break
            pick -= share * shrink
        shapes = list(_VARIANTS[fault]) if fault else ["fenced", "wrong total"]
        variant = shapes[source.randrange(len(shapes))]
        if not fault and source.random() >= self.quirks:
            variant = "plain"
        seconds = self.latency.draw(source) if fault in GENERATED else self.latency.fault_s
        return Attempt(fault, variant, seconds, self.retry_after_s if fault == "throttle" else 0.0)

    def until_scored(self, story: str) -> list[Attempt]:
        """The attempts that a client cannot avoid, the last of them answered."""
        chain: list[Attempt] = []
        for number in count():
            chain.append(self.attempt(story, number))
            if not chain[-1].fault:
                break
        return chain

    def behaviour(self, story: str, attempt: Attempt) -> Behaviour:
        """What the endpoint does for this attempt."""
        if attempt.fault:
            then = _VARIANTS[attempt.fault][attempt.variant](self.retry_after_s)
        else:
            then = do.text(self._answer(story, attempt.variant))
        return wire.slow(attempt.latency_s, then) if attempt.latency_s > 0 else then

    def _answer(self, story: str, variant: str) -> str:
        truth = self.truth(story)
        claimed = truth.overall + (11 if variant == "wrong total" else 0)
        tree = do.tree_of_scores(truth.scores, claimed, {"P1": [" ".join(story.split()[:6])]})
        return do.fence(tree) if variant == "fenced" else json.dumps(tree)

    def _source(self, story: str, purpose: str) -> random.Random:
        return random.Random(f"{self.seed} {purpose} {story_hash(story)}")


@lru_cache(maxsize=4096)
def story_hash(story: str) -> str:
    """Sixteen hexadecimal digits; white space at the ends does not count."""
    return hashlib.sha256(story.strip().encode()).hexdigest()[:16]
