"""Kernels of the layers around the head: gated delta rule and varlen attention, right and how fast.

    python -m benchmarks.gpu_layers --json layers.json
    python -m benchmarks.gpu_layers --device cpu --tiny

Each candidate is held to the plain implementation in fp32 on a few short rows, output and all
gradients, then timed at the shapes of Qwen3.5-9B's layers on one row of 16,384 tokens and on 16
rows of 1,024. One that fails or is wrong is in the result with the reason and is not timed. The
rate of the delta rule is its chunk products (chunks of 64) over the time, without what a kernel
makes again.

Shapes: `T tokens . H query or key heads . Hkv, Hv key/value or value heads . d, K, V head dims`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from polaris_fast.model import attention, delta_net
from polaris_fast.model.delta_fla import TOLERANCE, probe
from polaris_fast.model.layout import PackedLayout
from polaris_fast.model.measured_kernels import (
    Rule,
    attention_inputs,
    delta_inputs,
    relative_errors,
    with_gradients,
)

from .measure import Call, quantile, take_turns

_ATTENTION, _DELTA = (16, 4, 256), (16, 32, 128, 128)
_LENGTHS = ((16_384,), (1_024,) * 16)
_TINY_ATTENTION, _TINY_DELTA, _TINY_LENGTHS = (4, 2, 16), (2, 4, 16, 16), ((48,), (16, 32))
_CHUNK = 64


def candidates(device: torch.device, dtype: torch.dtype) -> Iterator[tuple[str, str, Rule]]:
    """(kind, name, rule) of everything that could run here."""
    for name in attention.attention_backends(device, dtype):
        yield "attention", name, partial(attention.varlen_attention, backend=name)
    if device.type == "cuda":
        if find_spec("fla"):
            yield "delta_net", "fla", delta_net.delta_rule("fla")
        yield "delta_net", "triton", delta_net.delta_rule("triton")
    yield "delta_net", "torch", delta_net.delta_rule("torch")


def errors_of(kind: str, rule: Rule, device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """Relative errors of output and gradients on the probe's rows."""
    return probe(rule, device) if kind == "delta_net" else relative_errors(rule, device, dtype)


def delta_flops(shape: tuple[int, int, int, int], num_tokens: int) -> float:
    """Forward products of the chunk form; forward and backward are three times as many."""
    key_heads, value_heads, K, V = shape
    pairs = 2 * key_heads * _CHUNK * K
    in_states = 3 * value_heads * K * V
    in_chunks = value_heads * _CHUNK * (K + 2 * V)
    return 2.0 * num_tokens * (pairs + in_states + in_chunks)


def measure(device: torch.device, *, tiny: bool) -> dict[str, Any]:
    """Everything, ready for JSON."""
    dtype = torch.bfloat16
    found: list[dict[str, Any]] = []
    right: dict[str, dict[str, Rule]] = {"attention": {}, "delta_net": {}}
    for kind, name, rule in candidates(device, dtype):
        entry: dict[str, Any] = {"kind": kind, "kernel": name}
        try:
            entry["errors"] = errors_of(kind, rule, device, dtype)
        except Exception as error:
            # a missing symbol, a compiler that refuses, a launch that fails: any of them
            entry["failed"] = f"{type(error).__name__}: {error}".partition("\n")[0][:200]
        else:
            if all(error <= TOLERANCE for error in entry["errors"].values()):
                right[kind][name] = rule
            else:
                entry["failed"] = "wrong: " + ", ".join(
                    f"{part} {error:.1e}" for part, error in entry["errors"].items()
                )
        found.append(entry)
        print(f"{kind} {name}: {entry.get('failed', 'right')}", flush=True)
    times = [
        entry
        for lengths in (_TINY_LENGTHS if tiny else _LENGTHS)
        for kind, rules in right.items()
        for entry in _times(kind, rules, lengths, device, dtype, tiny=tiny)
    ]
    return {"parity": found, "times": times}


def _times(
    kind: str, rules: dict[str, Rule], lengths: tuple[int, ...], device: torch.device,
    dtype: torch.dtype, *, tiny: bool,
) -> Iterator[dict[str, Any]]:  # fmt: skip
    layout = PackedLayout.from_lengths(lengths, device)
    T = layout.num_tokens
    if kind == "attention":
        inputs = attention_inputs(_TINY_ATTENTION if tiny else _ATTENTION, T, device, dtype)
        flops = None
    else:
        shape = _TINY_DELTA if tiny else _DELTA
        inputs, flops = delta_inputs(shape, T, device, dtype), delta_flops(shape, T)
    for what, passes, run in (("forward", 1, _forward), ("both", 3, with_gradients)):
        calls = {name: Call(partial(run, rule, inputs, layout)) for name, rule in rules.items()}
        for call in calls.values():
            call.once()
        samples = take_turns(calls, device, budget_s=0.1 if tiny else 1.5, max_rounds=20)
        for name, ms in samples.items():
            p20, p50, p80 = (quantile(ms, q) for q in (0.2, 0.5, 0.8))
            entry = {
                "kind": kind, "kernel": name, "what": what, "rows": len(lengths), "tokens": T,
                "p20_ms": p20, "p50_ms": p50, "p80_ms": p80,
                "tflops": None if flops is None else passes * flops / p50 / 1e9,
            }  # fmt: skip
            print(f"{kind} {name} {what} {len(lengths)} x {lengths[0]}: {p50:.3f} ms", flush=True)
            yield entry


def _forward(rule: Rule, inputs: list[Tensor], layout: PackedLayout) -> Tensor:
    with torch.no_grad():
        return rule(*inputs, layout)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--tiny", action="store_true", help="shapes for a dry run")
    parser.add_argument("--json", type=Path)
    known = parser.parse_args(arguments)
    found = measure(torch.device(known.device), tiny=known.tiny)
    if known.json is not None:
        known.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
