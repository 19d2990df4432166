"""Attention and delta-net kernels of a run on a GPU: right first, then the fastest of the right.

Shapes: T packed tokens, H query heads, Hkv key/value heads, d head dim.

Every candidate is held to the project's plain implementation in fp32 on a few short rows, with all
gradients; those that pass are timed, forward and backward, on one row as long as the run's longest.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from polaris_fast.model import attention, delta_net
from polaris_fast.model.delta_fla import PROBE_LENGTHS, TOLERANCE
from polaris_fast.model.kernel_choice import Clock, Kind, choose, cuda_ms, median_times
from polaris_fast.model.layout import PackedLayout
from polaris_fast.types import UserError

log = logging.getLogger("polaris_fast")

_LONGEST_TRIAL = 16_384  # tokens: beyond it the order does not change, only the wait
Rule = Callable[..., Tensor]


@dataclass(frozen=True)
class Choice:
    """What was chosen, and why."""

    kernel: str
    times_ms: dict[str, float] = field(default_factory=dict)
    """forward and backward; empty where there was nothing to compare"""

    def line(self, kind: Kind) -> str:
        """For the log."""
        times = ", ".join(f"{name} {ms:.2f} ms" for name, ms in sorted(self.times_ms.items()))
        return f"{kind} of packed rows: {self.kernel}" + (f" ({times})" if times else "")


@dataclass(frozen=True)
class Shapes:
    """Of a model's layers; None where it has no such layers."""

    attention: tuple[int, int, int] | None  # H, Hkv, d
    delta_net: tuple[int, int, int, int] | None  # key heads, value heads, K, V

    @staticmethod
    def of(config: Any) -> Shapes:
        """Args: config of the text model, transformers' names."""
        kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
        heads = config.num_attention_heads
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
        linear = (
            config.linear_num_key_heads, config.linear_num_value_heads,
            config.linear_key_head_dim, config.linear_value_head_dim,
        ) if "linear_attention" in kinds else None  # fmt: skip
        full = (heads, config.num_key_value_heads, head_dim)
        return Shapes(full if kinds - {"linear_attention"} else None, linear)


def check_asked(asked: Mapping[Kind, str], device: torch.device) -> None:
    """Refuse a GPU's kernel on another device, before anything is loaded.

    Raises:
        UserError: names the key and what it may be.
    """
    plain_ones: dict[Kind, str] = {"attention": "grouped_sdpa", "delta_net": "torch"}
    for kind, plain in plain_ones.items():
        if device.type != "cuda" and asked[kind] not in ("auto", plain):
            raise UserError(
                f"packing.{kind}: {asked[kind]} runs on a GPU, and the device is {device.type}; "
                f"set it to auto or {plain}"
            )


def measure_kernels(
    shapes: Shapes,
    device: torch.device,
    dtype: torch.dtype,
    num_tokens: int,
    *,
    asked: Mapping[Kind, str],
    clock: Clock = cuda_ms,
) -> dict[Kind, Choice]:
    """The kernels of a run, without switching to them.

    Args:
        num_tokens: of the longest row.
        asked: the configuration's `auto` or name for each kind.
    Raises:
        UserError: names a kind whose kernel was asked for and is absent or wrong here.
    """
    found: dict[Kind, Choice] = {}
    rules: dict[str, Rule]
    layout = PackedLayout.from_lengths((min(num_tokens, _LONGEST_TRIAL),), device)
    if shapes.attention is not None:
        right = right_attention(device, dtype)
        rules = {name: partial(attention.varlen_attention, backend=name) for name in right}
        inputs = attention_inputs(shapes.attention, layout.num_tokens, device, dtype)
        found["attention"] = _pick("attention", asked["attention"], rules, inputs, layout, clock)
    if shapes.delta_net is not None:
        names = delta_net.right_delta_backends(device) if device.type == "cuda" else ("torch",)
        rules = {name: delta_net.delta_rule(name) for name in names}
        inputs = delta_inputs(shapes.delta_net, layout.num_tokens, device, dtype)
        found["delta_net"] = _pick("delta_net", asked["delta_net"], rules, inputs, layout, clock)
    return found


def use_kernels(choices: Mapping[Kind, Choice]) -> None:
    """Switch this process to them, and say so."""
    for kind, choice in choices.items():
        choose(kind, choice.kernel)
        log.info("%s", choice.line(kind))


def right_attention(
    device: torch.device, dtype: torch.dtype
) -> tuple[attention.AttentionBackend, ...]:
    """Attention backends that agree with sdpa in fp32 here; the last one is sdpa itself."""
    candidates = attention.attention_backends(device, dtype)
    if len(candidates) == 1:
        return candidates
    right: list[attention.AttentionBackend] = []
    for name in candidates:
        rule = partial(attention.varlen_attention, backend=name)
        try:
            errors = relative_errors(rule, device, dtype)
        except Exception as error:
            # a missing symbol, an unsupported shape, a launch that fails: any of them
            log.warning("attention %s fails on %s: %s", name, device, error)
            continue
        if all(error <= TOLERANCE for error in errors.values()):
            right.append(name)
        else:
            worst = max(errors.values())
            log.warning("attention %s is wrong on %s: error %.1e", name, device, worst)
    return tuple(right)


def relative_errors(rule: Rule, device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """Of an attention rule's output and gradients on a few short rows, against sdpa in fp32."""
    layout = PackedLayout.from_lengths(PROBE_LENGTHS, device)
    inputs = attention_inputs((4, 2, 64), layout.num_tokens, device, dtype)
    plain = partial(attention.varlen_attention, backend="grouped_sdpa")
    exact = with_gradients(plain, [x.float() for x in inputs], layout)
    made = with_gradients(rule, inputs, layout)
    return {
        name: float((a.double() - b.double()).norm() / b.double().norm())
        for name, a, b in zip(("output", "d q", "d k", "d v"), made, exact, strict=True)
    }


def _pick(
    kind: Kind,
    asked: str,
    rules: Mapping[str, Rule],
    inputs: list[Tensor],
    layout: PackedLayout,
    clock: Clock,
) -> Choice:
    if asked != "auto":
        if asked not in rules:
            raise UserError(
                f"packing.{kind}: {asked} is not installed, wrong or not for this device; "
                f"there are {', '.join(rules)}, or leave it at auto"
            )
        return Choice(asked)
    if len(rules) == 1:
        return Choice(next(iter(rules)))
    calls = {name: partial(with_gradients, rule, inputs, layout) for name, rule in rules.items()}
    times = median_times(calls, clock)
    if not times:
        raise UserError(
            f"packing.{kind}: none of {', '.join(rules)} runs on a row of {layout.num_tokens} "
            "tokens, for the reasons logged above; shorten max_completion_length, or free memory "
            "on the GPU"
        )
    return Choice(min(times, key=lambda name: times[name]), times)


def with_gradients(rule: Rule, inputs: Sequence[Tensor], layout: PackedLayout) -> list[Tensor]:
    """Output and gradients, whatever mode the caller is in."""
    with torch.inference_mode(False), torch.enable_grad():
        leaves = [x.detach().requires_grad_() for x in inputs]
        out = rule(*leaves, layout)
        return [out.detach(), *torch.autograd.grad(out, leaves, torch.ones_like(out))]


def attention_inputs(
    shape: tuple[int, int, int], T: int, device: torch.device, dtype: torch.dtype
) -> list[Tensor]:
    """Random q (T, H, d), k and v (T, Hkv, d)."""
    heads, key_heads, dim = shape
    g = torch.Generator().manual_seed(0)
    return [
        torch.randn(T, h, dim, generator=g).to(device, dtype) for h in (heads, key_heads, key_heads)
    ]


def delta_inputs(
    shape: tuple[int, int, int, int], T: int, device: torch.device, dtype: torch.dtype
) -> list[Tensor]:
    """Random q, k, v, g (fp32, as the layers make it) and beta of the delta rule."""
    key_heads, value_heads, K, V = shape
    g = torch.Generator().manual_seed(0)
    q, k = (torch.randn(T, key_heads, K, generator=g).to(device, dtype) for _ in range(2))
    v = torch.randn(T, value_heads, V, generator=g).to(device, dtype)
    decay = -0.1 * torch.randn(T, value_heads, generator=g).exp().to(device)
    beta = torch.randn(T, value_heads, generator=g).sigmoid().to(device, dtype)
    return [q, k, v, decay, beta]
