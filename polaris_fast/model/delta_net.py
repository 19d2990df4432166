"""Gated-delta-net layers of a transformers model that keep packed rows apart.

Shapes: T packed tokens, B batch, L tokens of a row, D hidden, C conv channels, H key heads, G value
heads per key head, K key head dim, V value head dim.

transformers computes these layers without a notion of rows, so a packed buffer leaks through two
doors: the recurrent state and the convolution. `hook_delta_net` gives each such layer a subclass of
its own class. With a `packed_layout` the subclass runs both per row; for one token against a
cache on the CPU it runs a step without transformers' copies of the state; anything else goes to the
layer's own forward. Parameters, their names and the layer's place in the model stay as they are.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from polaris_fast.model.conv import packed_causal_conv
from polaris_fast.model.delta_fla import Rule, fla_conv, fla_gated_delta_rule, fla_is_right
from polaris_fast.model.delta_rule import gated_delta_step, packed_gated_delta_rule
from polaris_fast.model.delta_triton import triton_gated_delta_rule, triton_is_right
from polaris_fast.model.kernel_choice import chosen
from polaris_fast.model.layout import PackedLayout

# Layers with the parameters and the arithmetic of Qwen3.5; the parity probe holds them to it.
HOOKED_CLASSES = ("Qwen3_5GatedDeltaNet", "Qwen3_5MoeGatedDeltaNet")

DeltaBackend = Literal["fla", "triton", "torch"]


def delta_backend(device: torch.device) -> DeltaBackend:
    """Which kernels packed rows run on. On CUDA the run's choice, else the first that is right of
    fla's, the project's own in Triton, and plain torch; elsewhere plain torch."""
    if device.type != "cuda":
        return "torch"
    if (name := chosen("delta_net")) is not None:
        return name  # type: ignore[return-value]
    return right_delta_backends(device)[0]


def right_delta_backends(device: torch.device) -> tuple[DeltaBackend, ...]:
    """Those that pass the probe on a CUDA device, in order of preference; torch is the last."""
    found: list[DeltaBackend] = []
    if find_spec("fla") and fla_is_right(device):
        found.append("fla")
    if find_spec("triton") and triton_is_right(device):
        found.append("triton")
    return (*found, "torch")


def delta_rule(name: DeltaBackend) -> Rule:
    """The rule called `name`."""
    return {
        "fla": fla_gated_delta_rule,
        "triton": triton_gated_delta_rule,
        "torch": packed_gated_delta_rule,
    }[name]


def hook_delta_net(model: nn.Module) -> int:
    """Give every known delta-net layer of the model its packed subclass; returns how many."""
    layers = [m for m in model.modules() if type(m).__name__ in HOOKED_CLASSES]
    for layer in layers:
        base: Any = type(layer)
        layer.__class__ = _packed_class(base)
        layer.conv1d.__class__ = PackedConv1d
    return len(layers)


def unhook_delta_net(model: nn.Module) -> int:
    """Undo `hook_delta_net`; returns how many layers it undid."""
    layers = [m for m in model.modules() if isinstance(m, PackedDeltaNet)]
    for layer in layers:
        layer.__class__ = type(layer).__mro__[2]
        layer.conv1d.__class__ = nn.Conv1d
    return len(layers)


@cache
def _packed_class(base: Any) -> type[nn.Module]:
    return type(f"Packed{base.__name__}", (PackedDeltaNet, base), {})


class PackedConv1d(nn.Conv1d):
    """The layer's convolution; called as a module so that sharded weights are gathered for it."""

    def forward(self, x: Tensor, layout: PackedLayout | None = None) -> Tensor:
        """(T, C) -> (T, C) without activation, or nn.Conv1d's own forward without a layout."""
        if layout is None:
            return super().forward(x)
        weight = self.weight.squeeze(1)
        if delta_backend(x.device) == "fla":
            y, _ = fla_conv()(x[None], weight, self.bias, cu_seqlens=layout.cu_seqlens)
            return y[0]
        return packed_causal_conv(x, weight, self.bias, layout)


class PackedDeltaNet(nn.Module):
    """Mixin in front of a transformers gated-delta-net layer, whose attributes it reads."""

    layer_idx: int
    num_k_heads: int
    num_v_heads: int
    head_k_dim: int
    head_v_dim: int
    key_dim: int
    value_dim: int
    A_log: Tensor  # (H * G,)
    dt_bias: Tensor  # (H * G,)
    conv1d: nn.Conv1d
    in_proj_qkv: nn.Module
    in_proj_z: nn.Module
    in_proj_b: nn.Module
    in_proj_a: nn.Module
    norm: nn.Module
    out_proj: nn.Module

    def forward(
        self,
        hidden_states: Tensor,
        cache_params: Any = None,
        attention_mask: Tensor | None = None,
        packed_layout: PackedLayout | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Args: hidden_states (B, L, D), B = 1 and L = T with a layout. Returns the same shape."""
        if packed_layout is not None:
            if cache_params is not None:
                raise ValueError(
                    "PackedDeltaNet: packed rows have no cache, got cache_params; "
                    "pass use_cache=False with a packed_layout"
                )
            return self._packed(hidden_states[0], packed_layout).unsqueeze(0)
        if attention_mask is None and self._can_step(hidden_states, cache_params):
            return self._step(hidden_states[:, 0], cache_params.layers[self.layer_idx]).unsqueeze(1)
        return super().forward(
            hidden_states, cache_params=cache_params, attention_mask=attention_mask, **kwargs
        )

    def _packed(self, x: Tensor, layout: PackedLayout) -> Tensor:
        """(T, D) -> (T, D), every row from a zero state and zeros before its first token."""
        q, k, v = self._heads(F.silu(self.conv1d(self.in_proj_qkv(x), layout)))
        g, beta = self._gates(x)
        out = delta_rule(delta_backend(x.device))(q, k, v, g, beta, layout)
        return self._output(x, out)

    def _can_step(self, x: Tensor, cache_params: Any) -> bool:
        """One token a row, against a state that nobody will want back, without gradients."""
        if x.shape[1] != 1 or x.is_cuda or cache_params is None or torch.is_grad_enabled():
            return False
        if not cache_params.has_previous_state(self.layer_idx):
            return False
        state = cache_params.layers[self.layer_idx]
        return not state.record_past and state.recurrent_states[0].dtype == torch.float32

    def _step(self, x: Tensor, state: Any) -> Tensor:
        """(B, D) -> (B, D); the layer's cache is brought up to date in place."""
        qkv = self.in_proj_qkv(x)
        window = state.conv_states[0]  # (B, C, taps), the newest input last
        window.copy_(torch.cat((window[..., 1:], qkv.unsqueeze(-1)), dim=-1))
        mixed = (window * self.conv1d.weight.squeeze(1)).sum(-1)
        if self.conv1d.bias is not None:
            mixed = mixed + self.conv1d.bias
        q, k, v = self._heads(F.silu(mixed))
        g, beta = self._gates(x)
        return self._output(x, gated_delta_step(q, k, v, g, beta, state.recurrent_states[0]))

    def _heads(self, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(T, C) -> q and k (T, H, K), v (T, H * G, V)."""
        q, k, v = qkv.split((self.key_dim, self.key_dim, self.value_dim), dim=-1)
        key_shape = (self.num_k_heads, self.head_k_dim)
        value_shape = (self.num_v_heads, self.head_v_dim)
        return q.unflatten(-1, key_shape), k.unflatten(-1, key_shape), v.unflatten(-1, value_shape)

    def _gates(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(T, D) -> log decay g (T, H * G) fp32, write strength beta (T, H * G)."""
        step_size = F.softplus(self.in_proj_a(x).float() + self.dt_bias)
        return -self.A_log.float().exp() * step_size, self.in_proj_b(x).sigmoid()

    def _output(self, x: Tensor, out: Tensor) -> Tensor:
        """Gated norm and projection: x (T, D), out (T, H * G, V) -> (T, D)."""
        gate = self.in_proj_z(x).reshape(-1, self.head_v_dim)
        out = self.norm(out.reshape(-1, self.head_v_dim), gate)
        return self.out_proj(out.view(len(x), -1))
