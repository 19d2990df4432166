"""Which log-probs a server's numbers are.

vLLM reports one log-prob a token, by its `--logprobs-mode`: `raw_logprobs` come straight from the
logits, before temperature, penalties and filters; `processed_logprobs` come from the distribution
that was drawn from. A completion's `rollout_logps` are at the sampling temperature over the full
vocabulary, its `sampler_logps` those drawn from. So

                                   raw                   processed
    temperature 1, nothing else    both                  both
    temperature 1, filters         rollout_logps         sampler_logps
    temperature t, nothing else    neither               both
    temperature t, filters         neither               sampler_logps

What the engine cannot give is None, never an approximation.
"""

from __future__ import annotations

from typing import Literal

from ..base import SamplingParams

LogprobsMode = Literal["raw_logprobs", "processed_logprobs"]
Logps = list[float] | None


def is_filtered(params: SamplingParams) -> bool:
    """Whether anything but the temperature shapes the distribution."""
    return params.top_k > 0 or params.top_p < 1 or params.repetition_penalty != 1


def best_mode(params: SamplingParams) -> LogprobsMode:
    """The mode that gives `rollout_logps` wherever one does."""
    return "raw_logprobs" if params.temperature == 1 else "processed_logprobs"


def name_logps(
    values: list[float], *, processed: bool, params: SamplingParams
) -> tuple[Logps, Logps]:
    """(rollout_logps, sampler_logps) of one completion, from the server's numbers."""
    filtered = is_filtered(params)
    if processed:
        return (None if filtered else values), values
    if params.temperature != 1:
        return None, None
    return values, (None if filtered else values)
