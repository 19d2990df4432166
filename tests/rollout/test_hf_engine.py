"""The decode loop: rows end where they should, whoever else is in the batch, and tell the truth."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from polaris_fast.model.load import prepare_model
from polaris_fast.model.tiny import Family, tiny_model
from polaris_fast.rollout import Completion, RolloutRequest, SamplingParams
from polaris_fast.rollout.hf import HFEngine
from polaris_fast.types import FinishReason

VOCAB = 40
PARAMS = SamplingParams(temperature=0.9, max_completion_length=24, stop_ids=frozenset({3, 4, 5}))
REQUESTS = [
    RolloutRequest(tuple(range(6, 6 + length)), seed)
    for seed, length in enumerate((3, 3, 9, 5, 3, 9, 5, 5, 3, 9))
]


def _write(model: Any, requests: list[RolloutRequest], batch_size: int = 64) -> list[Completion]:
    found: dict[int, Completion] = {}
    HFEngine(model, batch_size).generate(requests, PARAMS, found.__setitem__)
    return [found[i] for i in range(len(requests))]


@pytest.mark.parametrize("family", ["qwen3_5", "qwen3"])
def test_rows_end_by_themselves_and_their_log_probs_are_the_models(family: Family) -> None:
    model: Any = prepare_model(tiny_model(family, vocab_size=VOCAB, initializer_range=0.1))
    rows = _write(model, REQUESTS)
    reasons = {row.finish_reason for row in rows}
    assert reasons == {FinishReason.STOP, FinishReason.LENGTH}
    for request, row in zip(REQUESTS, rows, strict=True):
        ids = row.completion_ids
        stops = [token in PARAMS.stop_ids for token in ids]
        assert not any(stops[:-1]) and len(ids) <= PARAMS.max_completion_length
        assert stops[-1] == (row.finish_reason is FinishReason.STOP)
        assert stops[-1] or len(ids) == PARAMS.max_completion_length
        with torch.no_grad():
            whole = torch.tensor([[*request.prompt_ids, *ids]])
            logits = model(input_ids=whole, use_cache=False).logits[0] / PARAMS.temperature
        logps = logits[len(request.prompt_ids) - 1 : -1].log_softmax(-1)
        expected = logps.gather(-1, torch.tensor(ids)[:, None])[:, 0]
        assert torch.allclose(torch.tensor(row.rollout_logps), expected, atol=2e-5)
        assert row.sampler_logps == row.rollout_logps


def test_a_row_writes_the_same_alone_and_among_rows_that_leave() -> None:
    model: Any = prepare_model(tiny_model("qwen3_5", vocab_size=VOCAB, initializer_range=0.1))
    together = [row.completion_ids for row in _write(model, REQUESTS)]
    assert [row.completion_ids for row in _write(model, REQUESTS, batch_size=3)] == together
    assert [_write(model, [request])[0].completion_ids for request in REQUESTS] == together
