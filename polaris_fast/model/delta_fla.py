"""fla's varlen kernels for gated-delta-net layers, used only where they have proven right.

Shapes: T packed tokens, H key heads, G value heads per key head, K key head dim, V value head dim.

flash-linear-attention's backward is wrong on Hopper with some versions of Triton (its issues 640
and 983), and was so without a message. There it is not tried. Elsewhere, before its first use on a
device, forward and all five gradients of a few short rows are held to the plain torch rule in fp32;
where they fail, other kernels run, which the log says.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from importlib import metadata
from importlib.util import find_spec
from typing import Any

import torch
from packaging.version import Version
from torch import Tensor

from polaris_fast.model.delta_rule import packed_gated_delta_rule
from polaris_fast.model.layout import PackedLayout

log = logging.getLogger("polaris_fast")

Rule = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, PackedLayout], Tensor]

# rows shorter and longer than fla's chunks of 64, and the head sizes of the Qwen3.5 models
PROBE_LENGTHS = (70, 1, 129, 64)
_KEY_HEADS, _GROUP, _HEAD_DIM = 2, 2, 128
# of Triton, on Hopper: what fla itself says since its version 0.6
_FIRST_WRONG, _FIRST_CURED = Version("3.4.0"), Version("3.7.1")
# bf16 kernels show about 5e-3; the known faults are around 1
TOLERANCE = 3e-2
_NAMES = ("output", "d q", "d k", "d v", "d g", "d beta")


def fla_gated_delta_rule(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, layout: PackedLayout
) -> Tensor:
    """`packed_gated_delta_rule` by fla: q, k (T, H, K), v (T, H * G, V), g, beta (T, H * G)."""
    from fla.ops.gated_delta_rule import chunk_gated_delta_rule

    group = v.shape[1] // q.shape[1]
    if group > 1:
        # older versions want as many key heads as value heads
        q, k = (x.repeat_interleave(group, dim=1) for x in (q, k))
    out, _ = chunk_gated_delta_rule(
        *(x[None] for x in (q, k, v, g, beta)),
        use_qk_l2norm_in_kernel=True,
        cu_seqlens=layout.long_cu_seqlens,
    )
    return out[0]


@cache
def fla_conv() -> Any:
    """fla's varlen causal convolution, where its versions keep it."""
    try:
        from fla.modules.causal_conv1d import causal_conv1d
    except ImportError:  # before fla 0.5
        from fla.modules.convolution import causal_conv1d
    return causal_conv1d


@cache
def fla_is_right(device: torch.device) -> bool:
    """Whether fla's kernels pass the probe on this device; asked once, and logged when not."""
    if (fault := known_fault(device)) is not None:
        log.warning("fla is not used on %s: %s", device, fault)
        return False
    return rule_is_right("fla", fla_gated_delta_rule, device)


def known_fault(device: torch.device) -> str | None:
    """Why fla's kernels need not be tried on this device, or None."""
    if device.type != "cuda":
        return "its kernels need a GPU"
    triton = Version(metadata.version("triton"))
    has_other_backward = find_spec("tilelang") is not None
    on_hopper = torch.cuda.get_device_capability(device)[0] == 9
    if on_hopper and _FIRST_WRONG <= triton < _FIRST_CURED and not has_other_backward:
        return (
            f"its backward is wrong on Hopper with Triton {triton}; Triton {_FIRST_CURED} or "
            "tilelang cures it"
        )
    return None


def rule_is_right(name: str, rule: Rule, device: torch.device) -> bool:
    """Whether a rule passes the probe on this device; logged by name when not."""
    try:
        errors = probe(rule, device)
    except Exception as error:
        # a missing symbol, a compiler that refuses, a launch that fails: any of them
        log.warning("%s fails on %s, delta-net layers run without it: %s", name, device, error)
        return False
    wrong = [f"{part} {error:.1e}" for part, error in errors.items() if not error <= TOLERANCE]
    if wrong:
        log.warning(
            "%s is wrong on %s (relative error of %s; at most %.0e is rounding), delta-net layers "
            "run without it: another version of Triton may cure it",
            name, device, ", ".join(wrong), TOLERANCE,
        )  # fmt: skip
    return not wrong


def probe(rule: Rule, device: torch.device) -> dict[str, float]:
    """Relative errors of a rule's output and gradients in bf16, against the torch rule in fp32."""
    # a step may be under no_grad, inference_mode, autocast or checkpointing when it first gets here
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x),
        torch.autocast(device.type, enabled=False),
    ):
        layout = PackedLayout.from_lengths(PROBE_LENGTHS, device)
        inputs, upstream = _random_inputs(layout.num_tokens, device)
        found = _with_gradients(rule, inputs, upstream, layout)
        exact = _with_gradients(
            packed_gated_delta_rule, [x.float() for x in inputs], upstream.float(), layout
        )
    return {
        name: float((a.double() - b.double()).norm() / b.double().norm())
        for name, a, b in zip(_NAMES, found, exact, strict=True)
    }


def _random_inputs(T: int, device: torch.device) -> tuple[list[Tensor], Tensor]:
    """q, k, v and beta in bf16, g in fp32 as the layers make them; and d loss / d output."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device)

    value_heads = _KEY_HEADS * _GROUP
    q, k = normal(T, _KEY_HEADS, _HEAD_DIM), normal(T, _KEY_HEADS, _HEAD_DIM)
    v, upstream = normal(T, value_heads, _HEAD_DIM), normal(T, value_heads, _HEAD_DIM)
    g = -0.1 * normal(T, value_heads).exp()
    beta = normal(T, value_heads).sigmoid()
    q, k, v, beta, upstream = (x.bfloat16() for x in (q, k, v, beta, upstream))
    return [q, k, v, g, beta], upstream


def _with_gradients(
    rule: Rule, inputs: list[Tensor], upstream: Tensor, layout: PackedLayout
) -> list[Tensor]:
    q, k, v, g, beta = leaves = [x.detach().requires_grad_() for x in inputs]
    out = rule(q, k, v, g, beta, layout)
    return [out.detach(), *torch.autograd.grad(out, leaves, upstream.to(out.dtype))]
