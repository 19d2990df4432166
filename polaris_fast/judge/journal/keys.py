"""Names of judgements: the same question to the same judge has the same key, in any run.

A key covers everything that can change the answer: rubric, schema, judge, sampling, both texts
and the number of the sample. What only changes whether an answer arrives (deadlines, attempts,
concurrency, the cap on tokens) is left out.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cache
from urllib.parse import urlsplit, urlunsplit

from ...config import JudgeConfig
from .. import rubric

_PORTS = {"http": 80, "https": 443}


def job_key(
    *,
    rubric_version: str,
    schema_version: str,
    judge_id: str,
    sampling: Mapping[str, object],
    prompt: str,
    story: str,
    sample: int,
) -> str:
    """SHA-256 in hexadecimal of one judgement's question.

    Args:
        rubric_version: `rubric.rubric_version()`.
        schema_version: `schema_version()`.
        judge_id: `judge_id(...)`.
        sampling: `sampling_of(config)`; JSON values, in any order.
        prompt: as the judge sees it.
        story: as the judge sees it: an original and its cleaned text have keys of their own.
        sample: number of the sample, from 0.
    """
    parts = [rubric_version, schema_version, judge_id, sampling, prompt, story, sample]
    # JSON keeps the parts apart: "ab" + "c" and "a" + "bc" differ. ASCII holds any code point.
    canonical = json.dumps(parts, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode("ascii")).hexdigest()


def judge_id(model: str, address: str, version: str = "") -> str:
    """`model@address`, and `#version` where the judge's code is known (the local judge).

    Args:
        model: the model's name as it is asked for.
        address: `client.display_url(base_url)`, free of passwords, however it is spelt; "local"
            for the local judge, whose port changes from run to run.
        version: a hash of the judge itself, or "".
    """
    return f"{model}@{_plain(address)}" + (f"#{version}" if version else "")


def _plain(address: str) -> str:
    """One spelling for all: without capitals in the host, its default port, slashes at the end."""
    parts = urlsplit(address)
    if not parts.hostname:
        return address
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    port = "" if parts.port in (None, _PORTS.get(parts.scheme)) else f":{parts.port}"
    return urlunsplit((parts.scheme, host + port, parts.path.rstrip("/"), "", ""))


def sampling_of(config: JudgeConfig) -> dict[str, object]:
    """The settings that shape an answer of the judge."""
    return {
        "temperature": config.temperature,
        "top_p": config.top_p,
        "response_format": config.response_format,
    }


@cache
def schema_version() -> str:
    """A short hash of the JSON schema that answers are held to."""
    text = json.dumps(rubric.judgement_schema(), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
