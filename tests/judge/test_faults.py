"""Failure classes of statuses and bodies, and every form of Retry-After."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from polaris_fast.judge.completion import read_completion
from polaris_fast.judge.faults import (
    FaultKind,
    JudgeFault,
    classify_status,
    error_fields,
    retry_after_s,
)

NOW = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)


def coded(code: str) -> dict[str, object]:
    return {"error": {"code": code, "message": "x"}}


def said(message: str) -> dict[str, object]:
    return {"error": {"code": 400, "message": message}}


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (429, None, FaultKind.THROTTLE),
        (529, None, FaultKind.THROTTLE),
        (429, coded("insufficient_quota"), FaultKind.QUOTA),
        (429, {"error": {"type": "insufficient_quota", "message": ""}}, FaultKind.QUOTA),
        (402, None, FaultKind.QUOTA),
        (401, None, FaultKind.AUTH),
        (403, None, FaultKind.AUTH),
        (403, coded("insufficient_quota"), FaultKind.QUOTA),
        (403, {"error": {"message": "Your input was flagged"}}, FaultKind.REFUSAL),
        (408, None, FaultKind.TIMEOUT),
        (409, None, FaultKind.TRANSIENT),
        (500, None, FaultKind.TRANSIENT),
        (502, "bad gateway", FaultKind.TRANSIENT),
        (503, None, FaultKind.TRANSIENT),
        (400, coded("content_filter"), FaultKind.REFUSAL),
        (400, said("Content Exists Risk"), FaultKind.REFUSAL),
        (400, coded("invalid_prompt"), FaultKind.REFUSAL),
        (422, said("Your prompt was flagged as violating our usage policy."), FaultKind.REFUSAL),
        (400, coded("data_inspection_failed"), FaultKind.REFUSAL),
        (400, coded("DataInspectionFailed"), FaultKind.REFUSAL),
        (400, said("Input data may contain inappropriate content."), FaultKind.REFUSAL),
        (400, said("Stopped by moderation."), FaultKind.REFUSAL),
        (404, said("No model text-moderation-9"), FaultKind.REQUEST),
        (422, {"detail": "flagged by our filter"}, FaultKind.REFUSAL),
        (400, [said("API key not valid. Please pass a valid API key.")], FaultKind.AUTH),
        (429, [said("You exceeded your current quota")], FaultKind.THROTTLE),
        (400, coded("context_length_exceeded"), FaultKind.TOO_LONG),
        (400, {"message": "This model's maximum context length is 8192"}, FaultKind.TOO_LONG),
        (413, None, FaultKind.TOO_LONG),
        (400, {"error": "no such parameter"}, FaultKind.REQUEST),
        (404, None, FaultKind.REQUEST),
        (307, None, FaultKind.REQUEST),
        (400, ["odd"], FaultKind.REQUEST),
    ],
)
def test_status_classes(status, body, kind):
    assert classify_status(status, body) is kind


PLACE = {"loc": ["body", "top_p"], "msg": "too large", "input": 9}


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        ([{"error": {"message": "no", "status": "INVALID_ARGUMENT"}}], ("INVALID_ARGUMENT", "no")),
        ({"detail": "no"}, ("", "no")),
        ({"detail": [PLACE, "odd", PLACE]}, ("", "body.top_p: too large; body.top_p: too large")),
        ({"detail": {"message": "no"}}, ("", "no")),
        ({"error": None, "message": "no"}, ("", "no")),
        ([], ("", "")),
        (["odd", 1], ("", "")),
    ],
)
def test_what_an_error_says_in_every_shape(body, fields):
    assert error_fields(body) == fields


@pytest.mark.parametrize(
    ("headers", "wait_s"),
    [
        ({}, None),
        ({"Retry-After": "7"}, 7.0),
        ({"Retry-After": "0.5"}, 0.5),
        ({"retry-after-ms": "250"}, 0.25),
        ({"retry-after-ms": "250", "Retry-After": "7"}, 0.25),
        ({"Retry-After": "Sun, 01 Mar 2026 12:00:30 GMT"}, 30.0),
        ({"Retry-After": "Sun, 01 Mar 2026 12:00:30 -0000"}, 30.0),
        ({"Retry-After": "Sun, 01 Mar 2026 13:00:30 +0100"}, 30.0),
        ({"Retry-After": "Sun, 01 Mar 2026 11:00:00 GMT"}, 0.0),
        ({"Retry-After": "soon"}, None),
        ({"Retry-After": "-3"}, None),
        ({"Retry-After": "nan"}, None),
        ({"Retry-After": "inf"}, None),
    ],
)
def test_retry_after(headers, wait_s):
    assert retry_after_s(headers, now=NOW) == wait_s


def completion(finish_reason="stop", **message):
    return {"choices": [{"finish_reason": finish_reason, "message": message}]}


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ({}, FaultKind.TRANSIENT),
        ({"choices": []}, FaultKind.TRANSIENT),
        ({"choices": ["odd"]}, FaultKind.TRANSIENT),
        (completion("length", content="{"), FaultKind.TRUNCATED),
        (completion("length", content=None), FaultKind.TRUNCATED),
        (completion(content=None), FaultKind.REFUSAL),
        (completion(content="  \n "), FaultKind.REFUSAL),
        (completion(content=None, refusal="no"), FaultKind.REFUSAL),
        (completion("content_filter", content="half"), FaultKind.REFUSAL),
        ({"choices": [{"finish_reason": "stop", "message": None}]}, FaultKind.REFUSAL),
    ],
)
def test_contents_that_are_no_answer(body, kind):
    with pytest.raises(JudgeFault) as caught:
        read_completion(body).usable_text()
    assert caught.value.kind is kind


def test_answer_with_parts_and_usage():
    body = completion(content=[{"type": "text", "text": "a"}, {"type": "text", "text": "b"}])
    details = {"cached_tokens": 3}
    body["usage"] = {"prompt_tokens": 5, "completion_tokens": 2, "prompt_tokens_details": details}
    answer = read_completion(body)
    assert (answer.text, answer.prompt_tokens, answer.cached_tokens) == ("ab", 5, 3)
    assert answer.completion_tokens == 2


@pytest.mark.parametrize("usage", [None, [], {"prompt_tokens": None}, {"prompt_tokens": "many"}])
def test_odd_usage_counts_as_silence(usage):
    assert read_completion(completion(content="a") | {"usage": usage}).prompt_tokens == 0


@pytest.mark.parametrize(
    ("counted", "completion_tokens"),
    [
        ({"completion_tokens": 1200, "total_tokens": 9200}, 6200),  # thinking is in the total alone
        ({"completion_tokens": 1200, "total_tokens": 4200}, 1200),
        ({"completion_tokens": 1200, "total_tokens": 100}, 1200),
        ({"completion_tokens": 1200}, 1200),
    ],
)
def test_tokens_that_only_the_total_counts_are_output(counted, completion_tokens):
    usage = {"prompt_tokens": 3000} | counted
    answer = read_completion(completion(content="a") | {"usage": usage})
    assert answer.completion_tokens == completion_tokens
