"""What a model does to its logits besides the head's weight and bias: scaled, then capped."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

# Of Cohere, Muse Glimmer and Falcon-H1; Granite divides by `logits_scaling`.
_FACTORS = ("logit_scale", "output_multiplier", "lm_head_multiplier")


def logit_options(config: PreTrainedConfig) -> dict[str, Any]:
    """The fused head's `logit_scale` and `softcap` for a model of this config.

    What a config says by other names is found out by `head_parity.check_head`.
    """
    text = config.get_text_config()
    scale = 1.0
    for name in _FACTORS:
        factor = getattr(text, name, None)
        scale *= 1.0 if factor is None else factor
    divisor = getattr(text, "logits_scaling", None)
    if divisor is not None:
        multiplies = text.model_type == "hyperclovax"
        scale = scale * divisor if multiplies else scale / divisor
    return {"logit_scale": scale, "softcap": getattr(text, "final_logit_softcapping", None)}
