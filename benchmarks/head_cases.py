"""What is measured: head problems by task, shape and dtype, and the inputs of each.

Shapes: `N tokens . D hidden . V vocab . R rows . L tokens a row (N = R L)`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from polaris_kernels import LossRows, LossSpec

TASKS = {
    "loss": "GRPO loss, forward + backward, trainable head",
    "frozen": "GRPO loss, forward + backward, frozen head",
    "logps": "log-probs + entropy without gradient",
    "logp_op": "log-prob op, forward + backward, trainable head",
    "logits": "GRPO loss from logits, forward + backward",
    "sparse_mask": "GRPO loss, a fifth of the tokens inside the mask",
    "sparse_loss": "GRPO loss, a fifth of the rows with an advantage",
}
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
SPEC = LossSpec(loss_type="dapo", epsilon=0.2, epsilon_high=0.28)
# log-ratios well inside and well outside the clip range: rounding moves no token across its edge
_LOG_RATIOS = (-0.5, -0.1, 0.05, 0.14, 0.5)
# 3 of 16 rows carry loss in the sparse tasks; dense ones have fewer, longer rows
_ROWS, _SPARSE_ROWS, _KEPT_ROWS = 8, 16, 3
# standard deviation of the logits: between a flat start and a peaked trained model
_LOGIT_SCALE = 2.0


@dataclass(frozen=True)
class HeadCase:
    """One head problem. Everything that runs on it gets the same inputs."""

    task: str
    """a key of `TASKS`"""
    num_tokens: int
    """N, a multiple of 16"""
    hidden_size: int
    """D; 0 for the task `logits`"""
    vocab_size: int
    """V"""
    dtype: str = "bf16"
    """a key of `DTYPES`, of hidden states, weight and logits"""

    def __post_init__(self) -> None:
        assert self.task in TASKS and self.dtype in DTYPES, self
        assert self.num_tokens % _SPARSE_ROWS == 0, self
        assert (self.task == "logits") == (self.hidden_size == 0), self

    @property
    def num_rows(self) -> int:
        """R"""
        return _SPARSE_ROWS if self.task.startswith("sparse") else _ROWS

    @property
    def sizes(self) -> dict[str, int]:
        """N, D and V; without D where there are no hidden states."""
        sizes = {"N": self.num_tokens, "D": self.hidden_size, "V": self.vocab_size}
        return {name: size for name, size in sizes.items() if size}

    @property
    def id(self) -> str:
        """One word: task, shape, dtype."""
        shape = "-".join(f"{name}{size}" for name, size in self.sizes.items())
        return f"{self.task}-{shape}-{self.dtype}"


def _laptop() -> list[HeadCase]:
    return [
        HeadCase("loss", 512, 1024, 32_768),
        HeadCase("loss", 256, 1024, 32_768, "fp32"),
        HeadCase("frozen", 512, 1024, 32_768),
        HeadCase("logps", 512, 1024, 32_768),
        HeadCase("logp_op", 256, 1024, 32_768),
        HeadCase("sparse_mask", 512, 1024, 32_768),
        HeadCase("sparse_loss", 512, 1024, 32_768),
        HeadCase("logits", 512, 0, 32_768),
        HeadCase("loss", 512, 128, 151_936),
    ]


def _full() -> list[HeadCase]:
    tasks = ("loss", "frozen", "logps", "logp_op", "sparse_mask", "sparse_loss")
    cases = [HeadCase(t, 2_048, 1024, 32_768, d) for d in DTYPES for t in tasks]
    return [*cases, HeadCase("logits", 2_048, 0, 32_768), HeadCase("loss", 2_048, 128, 151_936)]


def _headline() -> list[HeadCase]:
    """The shapes of the 9B model first, then those with public figures."""
    return [
        HeadCase("loss", 16_384, 4_096, 248_320),
        HeadCase("frozen", 16_384, 4_096, 248_320),
        HeadCase("logps", 20_480, 4_096, 248_320),
        HeadCase("sparse_mask", 16_384, 4_096, 248_320),
        HeadCase("sparse_loss", 16_384, 4_096, 248_320),
        HeadCase("loss", 8_192, 4_096, 151_936),
        HeadCase("logits", 8_192, 0, 151_936),
        HeadCase("loss", 16_384, 2_048, 248_320),
        HeadCase("loss", 16_384, 4_096, 131_072),
        HeadCase("logp_op", 16_384, 4_096, 248_320),
    ]


def _tiny() -> list[HeadCase]:
    return [
        HeadCase(task, 64, 0 if task == "logits" else 16, 307, dtype)
        for task in TASKS
        for dtype in DTYPES
    ]


SIZES = {"tiny": _tiny, "laptop": _laptop, "full": _full, "headline": _headline}


def default_size(device: str) -> str:
    """The set of cases that a device of this type is measured on."""
    return "headline" if device == "cuda" else "laptop"


@dataclass(frozen=True)
class HeadInputs:
    """Tensors of one case on one device; for the task `logits`, hidden and weight are empty."""

    case: HeadCase
    hidden: Tensor
    """(N, D)"""
    weight: Tensor
    """(V, D)"""
    logits: Tensor
    """(R, L + 1, V) as a model returns them, or empty"""
    targets: Tensor
    """(N,) int64"""
    mask: Tensor
    """(N,) bool"""
    advantages: Tensor
    """(R,) float32"""
    upstream: Tensor
    """(N,) float32: d loss / d log-prob for the task `logp_op`"""
    old_logps: Tensor
    """(N,) float32"""

    @property
    def device(self) -> torch.device:
        """Where all tensors are."""
        return self.targets.device

    @property
    def row_of_token(self) -> Tensor:
        """(N,) int64"""
        per_row = self.case.num_tokens // self.case.num_rows
        return torch.arange(self.case.num_rows, device=self.device).repeat_interleave(per_row)

    @property
    def denominator(self) -> float:
        """Loss tokens."""
        return float(self.mask.sum())

    def rows(self) -> LossRows:
        """The loss's inputs as `polaris_kernels` takes them."""
        masked = not bool(self.mask.all())
        return LossRows(
            row_of_token=self.row_of_token,
            num_rows=self.case.num_rows,
            advantages=self.advantages,
            completion_mask=self.mask if masked else None,
            old_logps=self.old_logps,
            denominator=self.denominator,
            token_index=self.mask.nonzero().squeeze(1) if masked else None,
        )

    def padded(self, value: Tensor) -> Tensor:
        """(N,) -> (R, L)."""
        return value.view(self.case.num_rows, -1)


def random_inputs(case: HeadCase, device: torch.device, seed: int = 0) -> HeadInputs:
    """The inputs of `case`, but for `old_logps`, which need the exact log-probs."""
    g = torch.Generator(device).manual_seed(seed)
    N, D, V, R = case.num_tokens, case.hidden_size, case.vocab_size, case.num_rows
    dtype = DTYPES[case.dtype]

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        made = torch.empty(shape, dtype=dtype, device=device)
        return made.normal_(0.0, scale, generator=g)

    has_logits = case.task == "logits"
    empty = torch.empty(0, dtype=dtype, device=device)
    mask = torch.ones(N, dtype=torch.bool, device=device)
    if case.task == "sparse_mask":
        order = torch.rand(N, generator=g, device=device).argsort()
        mask[order[N * _KEPT_ROWS // _SPARSE_ROWS :]] = False
    # alternating signs of size .5 to 1.5: every side of the clip is met
    advantages = torch.rand(R, generator=g, device=device) + 0.5
    advantages[::2] *= -1
    if case.task == "sparse_loss":
        advantages[_KEPT_ROWS:] = 0.0
    return HeadInputs(
        case=case,
        hidden=empty if has_logits else normal(N, D),
        weight=empty if has_logits else normal(V, D, scale=_LOGIT_SCALE / D**0.5),
        logits=normal(R, N // R + 1, V, scale=_LOGIT_SCALE) if has_logits else empty,
        targets=torch.randint(V, (N,), generator=g, device=device),
        mask=mask,
        advantages=advantages,
        upstream=torch.randn(N, generator=g, device=device) / N,
        old_logps=torch.empty(0, device=device),
    )


def old_logps_of(exact_logps: Tensor) -> Tensor:
    """(N,) float32 log-probs of a policy whose ratios to `exact_logps` are far from the clip."""
    ratios = torch.tensor(_LOG_RATIOS, dtype=torch.float64, device=exact_logps.device)
    which = torch.arange(exact_logps.shape[0], device=exact_logps.device) % len(_LOG_RATIOS)
    return (exact_logps - ratios[which]).float()
