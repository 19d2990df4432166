"""Log-probs of packed rows, as prime-rl and NeMo-RL lay them out.

    model.lm_head = PackedHead.from_linear(model.lm_head)            # prime-rl's FusedOutputLinear
    out = model.lm_head(hidden, labels=labels, temperature=temperature)
    out["logprobs"], out["entropy"]

    packed_logps(hidden, weight, input_ids, cu_seqlens)              # next token, row by row

Shapes: `T packed tokens . R rows . D hidden . V vocab`.
"""

from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from ..fused_head import FusedHead
from ..head import TokenLogps, linear_logps
from ..host_tables import send

# prime-rl's heads of plain logits: nn.Linear with another forward. Its Gemma head, which caps them,
# and its cross-entropy heads, which return a loss, have names of their own
_PRIME_RL_HEADS = ("FusedOutputLinear", "VanillaOutputLinear")


class PackedHead(FusedHead):
    """prime-rl's `FusedOutputLinear` by its call: labels are shifted already, temperature is per
    token. The entropy is differentiable."""

    @classmethod
    def _takes(cls, linear: nn.Linear) -> bool:
        # by name: prime-rl is not imported here. A parametrization makes a class of its own
        kind = type(linear)
        is_prime_rls = kind.__name__ in _PRIME_RL_HEADS and kind.__bases__ == (nn.Linear,)
        return is_prime_rls or super()._takes(linear)

    def forward(  # type: ignore[override]
        self,
        hidden_states: Tensor,
        labels: Tensor | None = None,
        temperature: Tensor | float | None = None,
        **options: Any,
    ) -> Tensor | dict[str, Tensor]:
        """Logits without labels; else {"logprobs", "entropy"}, shaped like `labels`, float32.

        Args:
            hidden_states: (B, S, D), or any leading dimensions.
            labels: (B, S) integers in [0, V): the token that each position predicts. Positions
                without loss need any valid id.
            temperature: above 0, a number or shaped like `labels`; None: 1.
            options: keywords of `linear_logps`.
        """
        if labels is None:
            return cast(Tensor, super().forward(hidden_states))
        found = super().forward(
            hidden_states,
            targets=labels,
            temperature=1.0 if temperature is None else temperature,
            return_entropy=True,
            **options,
        )
        assert isinstance(found, TokenLogps) and found.entropy is not None
        return {"logprobs": found.logps, "entropy": found.entropy}


def packed_logps(
    hidden: Tensor,
    weight: Tensor,
    input_ids: Tensor,
    cu_seqlens: Tensor,
    *,
    padded_length: int | None = None,
    **options: Any,
) -> TokenLogps:
    """Log-prob of every token given those before it in its row; 0 for each row's first token.

    Args:
        hidden: (T, D) float, the model's last hidden states of the packed rows.
        weight: (V, D) of the output head.
        input_ids: (T,) integers in [0, V).
        cu_seqlens: (R + 1,) int32 or int64: row r is [cu_seqlens[r], cu_seqlens[r + 1]),
            on any device.
        padded_length: L of a padded result; None: a packed one.
        options: keywords of `linear_logps`; a tensor `temperature` is (T,).

    `cu_seqlens` is read on the host: on CUDA one wait, and none where it is on the CPU.

    Returns:
        `TokenLogps` with the log-prob of token t at position t: (T,), or (R, L) with zeros behind
        each row's end, as NeMo-RL keeps them.
    """
    T = input_ids.shape[0]
    ends = np.asarray(cu_seqlens.tolist(), dtype=np.int64)
    lengths = np.diff(ends)
    runs = ends.size and ends[0] == 0 and ends[-1] == T and (lengths >= 0).all()
    if hidden.dim() != 2 or hidden.shape[0] != T or not runs:
        raise ValueError(
            f"packed_logps: cu_seqlens must run from 0 to T = {T} and hidden be (T, D), got "
            f"{ends[:1].tolist()}...{ends[-1:].tolist()} and {tuple(hidden.shape)}; leave padding "
            "tokens out"
        )
    row = np.repeat(np.arange(lengths.size), lengths)
    inside = np.arange(T) - ends[row]
    targets = np.flatnonzero(inside > 0)
    places, shape = targets, (T,)
    if padded_length is not None:
        longest = lengths.max(initial=0)
        if longest > padded_length:
            raise ValueError(
                f"packed_logps: padded_length={padded_length} is less than the longest row, "
                f"{longest} tokens; give at least that"
            )
        places = (row * padded_length + inside)[targets]
        shape = (lengths.size, padded_length)  # type: ignore[assignment]
    target, place = send(np.stack((targets, places)), hidden.device)
    temperature = options.pop("temperature", 1.0)
    if isinstance(temperature, Tensor) and temperature.dim():
        temperature = temperature.index_select(0, target)
    found = linear_logps(
        hidden.index_select(0, target - 1), weight, input_ids.index_select(0, target),
        temperature=temperature, **options,
    )  # fmt: skip
    return TokenLogps(*(_spread(value, place, shape) for value in found))


def _spread(value: Tensor | None, place: Tensor, shape: tuple[int, ...]) -> Any:
    if value is None:
        return None
    flat = value.new_zeros(torch.Size(shape).numel())
    return flat.index_copy(0, place, value).view(shape)
