"""polaris_kernels: the loss head of GRPO-style training, without the (tokens, vocabulary) logits.

from polaris_kernels import FusedHead, LossRows, LossSpec, group_advantages
"""

from .advantages import AdvantageSpec, GroupAdvantages, group_advantages
from .backends import active_backend, available_backends
from .backends.workspace import release_workspace
from .exact_kl import KLLossOutput, linear_kl, linear_kl_loss
from .fused_head import FusedHead
from .head import GRPOLossOutput, TokenLogps, linear_grpo_loss, linear_logps
from .logits import grpo_loss, selective_logps
from .metrics import Metrics, mean_metrics, merge_metrics
from .rows import LossFn, LossRows, TokenView
from .spec import LossSpec
from .vocab_parallel import VocabParallel

__all__ = [
    "AdvantageSpec",
    "FusedHead",
    "GRPOLossOutput",
    "GroupAdvantages",
    "KLLossOutput",
    "LossFn",
    "LossRows",
    "LossSpec",
    "Metrics",
    "TokenLogps",
    "TokenView",
    "VocabParallel",
    "active_backend",
    "available_backends",
    "group_advantages",
    "grpo_loss",
    "linear_grpo_loss",
    "linear_kl",
    "linear_kl_loss",
    "linear_logps",
    "mean_metrics",
    "merge_metrics",
    "release_workspace",
    "selective_logps",
]
