"""The head as operators of torch (`torch.ops.polaris_kernels.*`): what a compiled graph holds.

An operator takes tensors, numbers and text only, so a loss's inputs come as a list of tensors with
their field names, and its spec as text. Each has a fake (shapes and dtypes alone) and a backward
that is an operator again or scales what forward has made. They run the same functions as eager
mode, which calls those without the dispatcher. For `torch.compile` and `torch.export`; the public
functions are the way in.
"""

from .logits import grpo_loss, selective_logps
from .logps import linear_logps, linear_logps_frozen
from .loss import linear_grpo_loss

__all__ = [
    "grpo_loss",
    "linear_grpo_loss",
    "linear_logps",
    "linear_logps_frozen",
    "selective_logps",
]
