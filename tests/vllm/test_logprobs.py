"""The server's log-probs are the trainer's, for the weights it was sent last."""

from __future__ import annotations

import pytest
import torch

from polaris_fast.rollout import SamplingParams
from polaris_fast.types import FinishReason

from .serving import VOCAB, Serving

PLAIN = SamplingParams(max_completion_length=24)


def prompt_of(length: int, seed: int = 0) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, VOCAB, (length,), generator=generator).tolist()


def worst_gap(serving: Serving, prompt: list[int], tokens: list[int], logps: list[float]) -> float:
    return float((serving.logps(prompt, tokens) - torch.tensor(logps)).abs().max())


def test_sampled_logprobs_equal_the_trainers(serving: Serving) -> None:
    prompts = [prompt_of(length, seed=length) for length in (1, 7, 64, 200)]
    for prompt, row in zip(prompts, serving.write(prompts, PLAIN), strict=True):
        assert row.rollout_logps is not None and row.rollout_logps == row.sampler_logps
        assert len(row.completion_ids) == PLAIN.max_completion_length
        assert row.finish_reason is FinishReason.LENGTH
        assert worst_gap(serving, prompt, row.completion_ids, row.rollout_logps) < 1e-4


def test_an_update_reaches_the_server(serving: Serving) -> None:
    prompt = prompt_of(40)
    before = serving.write([prompt], PLAIN)[0]
    old_logps = serving.logps(prompt, before.completion_ids)
    serving.disturb(seed=1)
    serving.sync()
    after = serving.write([prompt], PLAIN)[0]
    assert after.rollout_logps is not None
    assert worst_gap(serving, prompt, after.completion_ids, after.rollout_logps) < 1e-4
    # the weights did move: the same tokens are now judged quite differently
    moved = serving.logps(prompt, before.completion_ids) - old_logps
    assert float(moved.abs().max()) > 0.1


def test_no_cached_prefix_survives_an_update(serving: Serving) -> None:
    shared = prompt_of(400, seed=5)
    prompts = [[*shared, n] for n in range(4)]
    serving.write(prompts, PLAIN)  # fills the server's prefix cache
    serving.disturb(seed=2)
    serving.sync()
    for prompt, row in zip(prompts, serving.write(prompts, PLAIN), strict=True):
        assert row.rollout_logps is not None
        assert worst_gap(serving, prompt, row.completion_ids, row.rollout_logps) < 1e-4


def test_prompts_that_do_not_fit_one_step_of_the_server(serving: Serving) -> None:
    """A seeded row whose prompt is read in parts ends vLLM's engine on a CPU."""
    prompts = [prompt_of(400, seed=n) for n in range(12)]  # of 2,048 tokens a step
    for prompt, row in zip(prompts, serving.write(prompts, PLAIN), strict=True):
        assert row.rollout_logps is not None
        assert worst_gap(serving, prompt, row.completion_ids, row.rollout_logps) < 1e-4
    assert serving.engine.num_revivals == 0


def test_what_the_server_cannot_tell_is_missing(serving: Serving) -> None:
    """It reports raw log-probs: at temperature 1 over the full vocabulary, whatever the filters."""
    prompt = prompt_of(16)
    narrow = SamplingParams(top_k=5, top_p=0.9, repetition_penalty=1.1, max_completion_length=16)
    row = serving.write([prompt], narrow)[0]
    assert row.rollout_logps is not None and row.sampler_logps is None
    assert worst_gap(serving, prompt, row.completion_ids, row.rollout_logps) < 1e-4
    warm = serving.write([prompt], SamplingParams(temperature=0.7, max_completion_length=4))[0]
    assert warm.rollout_logps is None and warm.sampler_logps is None


def test_equal_seeds_write_equal_rows(serving: Serving) -> None:
    prompts = [prompt_of(12)] * 3
    first = serving.write(prompts, PLAIN, seed=100)
    again = serving.write(prompts, PLAIN, seed=100)
    assert [r.completion_ids for r in first] == [r.completion_ids for r in again]
    assert first[0].completion_ids != first[1].completion_ids


def test_a_stop_token_ends_its_row_and_is_kept(serving: Serving) -> None:
    prompt = prompt_of(12)
    free = serving.write([prompt], PLAIN, seed=3)[0].completion_ids
    stop = next(n for n in range(4, len(free)) if free[n] not in free[:n])
    params = SamplingParams(max_completion_length=24, stop_ids=frozenset({free[stop]}))
    row = serving.write([prompt], params, seed=3)[0]
    assert row.completion_ids == free[: stop + 1]
    assert row.finish_reason is FinishReason.STOP


@pytest.mark.parametrize("version", ["0", "other"])
def test_foreign_weights_are_refused(serving: Serving, version: str) -> None:
    """Another trainer that sends its own weights to the same server is noticed."""
    fleet = serving.engine.fleet
    fleet.post("/update_weight_version", 10, [{"new_version": version}])
    try:
        with pytest.raises(ValueError, match="another trainer uses it"):
            serving.write([prompt_of(8)], PLAIN)
    finally:
        fleet.post("/update_weight_version", 10, [{"new_version": serving.engine.version}])
