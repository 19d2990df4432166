"""Kernels of the layers around the head: gated delta rule and varlen attention, right and how fast.

    python -m benchmarks.gpu_layers --json layers.json
    python -m benchmarks.gpu_layers --device cpu --tiny

One after the other, ours first, each candidate is held to the plain implementation in fp32 on a few
short rows, output and all gradients, then timed at the shapes of Qwen3.5-9B's layers on one row of
16,384 tokens and on 16 rows of 1,024. One that fails or is wrong is in the result with the reason
and is not timed. The rate of the delta rule is its chunk products (chunks of 64) over the time,
without what a kernel makes again.

Shapes: `T tokens . H query or key heads . Hkv, Hv key/value or value heads . d, K, V head dims`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache, partial
from importlib.metadata import version
from importlib.util import find_spec
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

from .journal import Journal, run_part
from .measure import Call, quantile, take_turns

_ATTENTION, _DELTA = (16, 4, 256), (16, 32, 128, 128)
_LENGTHS = ((16_384,), (1_024,) * 16)
_TINY_ATTENTION, _TINY_DELTA, _TINY_LENGTHS = (4, 2, 16), (2, 4, 16, 16), ((48,), (16, 32))
_CHUNK = 64


def candidates(device: torch.device, dtype: torch.dtype) -> Iterator[tuple[str, str, Rule]]:
    """(kind, name, rule) of everything that could run here: ours first, what may take long last."""
    if device.type == "cuda":
        yield "delta_net", "triton", delta_net.delta_rule("triton")
    for name in attention.attention_backends(device, dtype):
        yield "attention", name, partial(attention.varlen_attention, backend=name)
    yield "delta_net", "torch", delta_net.delta_rule("torch")
    if device.type == "cuda" and find_spec("fla"):
        yield "delta_net", "fla", delta_net.delta_rule("fla")


def fla_refusal(capability: tuple[int, int], triton: str, *, has_tilelang: bool) -> str | None:
    """Why fla's backward is not tried: its kernels are wrong there (its issue 640), newer versions
    of it raise, and only after they have tuned the kernels before for a minute."""
    release = tuple(int(n) for n in re.findall(r"\d+", triton)[:3])
    if capability[0] == 9 and (3, 4) <= release < (3, 7, 1) and not has_tilelang:
        return f"fla is wrong or refuses on Hopper with Triton 3.4 to 3.7.0; this is {triton}"
    return None


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


def measure(journal: Journal, *, tiny: bool) -> None:
    """Everything, into the journal: all candidates under `parity`, the right ones under `times`."""
    dtype = torch.bfloat16
    for kind, name, rule in candidates(journal.device, dtype):
        parity = journal.results["parity"]
        entry = next((e for e in parity if (e["kind"], e["kernel"]) == (kind, name)), None)
        if entry is None:
            entry = _held_to_plain(journal, kind, name, rule, dtype)
            parity.append(entry)
            journal.write()
            print(f"{kind} {name}: {entry.get('failed', 'right')}", flush=True)
        if "failed" not in entry:
            for lengths in _TINY_LENGTHS if tiny else _LENGTHS:
                _time(journal, kind, name, rule, lengths, dtype, tiny=tiny)


def _held_to_plain(
    journal: Journal, kind: str, name: str, rule: Rule, dtype: torch.dtype
) -> dict[str, Any]:
    """An entry of `parity`."""
    entry: dict[str, Any] = {"kind": kind, "kernel": name}
    who = f"{kind} {name}"
    refused = _refused(name) or journal.refusal("parity", who)
    if not refused:
        with journal.trying("parity", who):
            entry["errors"] = errors_of(kind, rule, journal.device, dtype)
        refused = journal.refusal("parity", who) or _fault(entry["errors"])
    return entry | ({"failed": refused} if refused else {})


def _refused(name: str) -> str | None:
    if name != "fla":
        return None
    has_tilelang = find_spec("tilelang") is not None
    capability = torch.cuda.get_device_capability()
    return fla_refusal(capability, version("triton"), has_tilelang=has_tilelang)


def _fault(errors: dict[str, float]) -> str | None:
    # written so that nan fails too
    if all(error <= TOLERANCE for error in errors.values()):
        return None
    return "wrong: " + ", ".join(f"{part} {error:.1e}" for part, error in errors.items())


def _time(
    journal: Journal, kind: str, name: str, rule: Rule, lengths: tuple[int, ...],
    dtype: torch.dtype, *, tiny: bool,
) -> None:  # fmt: skip
    device, times = journal.device, journal.results["times"]
    done = {(e["kind"], e["kernel"], e["what"], e["rows"]) for e in times}
    who, where = f"{kind} {name}", f"{len(lengths)} x {lengths[0]}"
    for what, passes, run in (("forward", 1, _forward), ("both", 3, with_gradients)):
        place = f"{where} {what}"
        if (kind, name, what, len(lengths)) in done or journal.refusal(place, who):
            continue
        with journal.trying(place, who):
            layout = PackedLayout.from_lengths(lengths, device)
            T = layout.num_tokens
            inputs, flops = _inputs(kind, T, device, dtype, tiny)
            call = Call(partial(run, rule, inputs, layout))
            call.once()
            ms = take_turns({name: call}, device, budget_s=0.1 if tiny else 0.7, max_rounds=20)
            p20, p50, p80 = (quantile(ms[name], q) for q in (0.2, 0.5, 0.8))
            times.append({
                "kind": kind, "kernel": name, "what": what, "rows": len(lengths), "tokens": T,
                "p20_ms": p20, "p50_ms": p50, "p80_ms": p80,
                "tflops": None if flops is None else passes * flops / p50 / 1e9,
            })  # fmt: skip
            print(f"{who} {what} {where}: {p50:.3f} ms", flush=True)


@cache
def _inputs(
    kind: str, T: int, device: torch.device, dtype: torch.dtype, tiny: bool
) -> tuple[list[Tensor], float | None]:
    """Random tensors of one layer, and the FLOPs of its forward where they are counted."""
    if kind == "attention":
        return attention_inputs(_TINY_ATTENTION if tiny else _ATTENTION, T, device, dtype), None
    shape = _TINY_DELTA if tiny else _DELTA
    return delta_inputs(shape, T, device, dtype), delta_flops(shape, T)


def _forward(rule: Rule, inputs: list[Tensor], layout: PackedLayout) -> Tensor:
    with torch.no_grad():
        return rule(*inputs, layout)


def main(arguments: list[str] | None = None) -> int:
    return run_part(__doc__, {"parity": [], "times": []}, measure, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
