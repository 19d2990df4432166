"""Before the first step: do the rollout engine and the trainer see the same model?

Another checkpoint, weights that did not arrive, or another rounding of the logits all show
in the log-probs of a few tokens, which both sides can tell.

N tokens of one completion.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .config import Config
from .model.logits import logit_options
from .model.packed import packed_hidden_states
from .packing import pack_rows
from .rollout.base import Completion, RolloutEngine, RolloutRequest, SamplingParams
from .types import UserError

_NUM_TOKENS = 32
# Mean over the tokens. bf16 kernels of two programs differ by a few hundredths, models by far more.
_LARGEST_GAP = 0.15


@dataclass(frozen=True)
class _Row:
    prompt_ids: Sequence[int]
    completion_ids: Sequence[int]


def check_logprobs(
    rollouts: RolloutEngine, model: Any, prompt_ids: Sequence[int], config: Config
) -> str:
    """A line on how far the log-probs of a few drawn tokens are apart.

    Args:
        rollouts: holds the same weights as `model`.
        model: the trainer's, packed forward and fused head installed, whole on this rank.
        prompt_ids: what to write on.

    Raises:
        UserError: so far apart that it is another model.
    """
    drawn: list[Completion] = []
    # Nothing but the temperature shapes this draw, so the engine can tell `rollout_logps`.
    num_tokens = min(_NUM_TOKENS, config.max_completion_length or _NUM_TOKENS)
    params = SamplingParams(temperature=config.temperature, max_completion_length=num_tokens)
    rollouts.generate(
        [RolloutRequest(tuple(prompt_ids), config.seed)], params, lambda _, row: drawn.append(row)
    )
    told = drawn[0].rollout_logps
    if told is None:
        return "the rollout engine tells no log-probs at this temperature: not compared"
    own = trainer_logps(model, _Row(prompt_ids, drawn[0].completion_ids), config)
    gap = (own - torch.tensor(told, device=own.device)).abs()
    mean, largest = float(gap.mean()), float(gap.max())
    if not mean <= _LARGEST_GAP:
        raise UserError(
            f"rollout.engine: the log-probs of {len(told)} tokens differ from the trainer's by "
            f"{mean:.3g} in the mean ({largest:.3g} at most), so the rollout engine holds another "
            "model; start its servers with the same model_name_or_path and dtype"
        )
    return (
        f"log-probs of rollout engine and trainer differ by {mean:.2g} in the mean, "
        f"{largest:.2g} at most, over {len(told)} tokens"
    )


@torch.no_grad()
def trainer_logps(model: Any, row: _Row, config: Config) -> torch.Tensor:
    """(N,) fp32 log-probs of a row's completion by the packed forward that trains."""
    was_training = model.training
    model.eval()
    try:
        batch = pack_rows([row], model.device)
        hidden = packed_hidden_states(model, batch)[batch.logit_positions]
        logps: torch.Tensor = model.lm_head.logps(
            hidden,
            targets=batch.targets,
            temperature=config.temperature,
            logits_dtype=config.logits_dtype,
            **logit_options(model.config),
        ).logps
    finally:
        model.train(was_training)
    return logps
