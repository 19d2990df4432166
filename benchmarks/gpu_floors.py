"""What this chip can do, then the row kernels as shares of it.

    python -m benchmarks.gpu_floors --json floors.json
    python -m benchmarks.gpu_floors --device cpu --tiny

The floors are measured, not looked up: the rate of a large copy (bytes read plus bytes written) and
of a large matrix product. A row kernel's bytes are those it cannot do without: every logit read
once, and where there is a gradient written once. One that reads twice is charged for one read, so
its share shows what the second costs.

Shapes: `C rows . V vocab`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from polaris_kernels import available_backends
from polaris_kernels.backends import get_backend
from polaris_kernels.objective import TokenGradients

from .journal import Journal, run_part
from .measure import Call, quantile, take_turns

_COPY_BYTES = 4 * 2**30
_MATRIX_SIZE = 8_192
_BUDGET_S = 2.0
# the head's chunk at the 9B model's vocabulary, and a public logits-level shape
_SHAPES = ((2_048, 248_320), (8_192, 151_936))
_TINY_COPY_BYTES, _TINY_MATRIX_SIZE, _TINY_SHAPES = 2**22, 128, ((16, 1_008),)


@dataclass(frozen=True)
class Rate:
    """A measured ceiling."""

    what: str
    ms: float
    per_s: float
    """bytes or operations a second"""


@dataclass(frozen=True)
class RowTime:
    """One form of a row pass at one shape."""

    form: str
    shape: tuple[int, int]
    dtypes: str
    p20_ms: float
    p50_ms: float
    p80_ms: float
    bytes_per_s: float
    share_of_copy: float


def copy_rate(device: torch.device, num_bytes: int) -> Rate:
    """One large device-to-device copy of random bytes."""
    source = torch.empty(num_bytes // 4, device=device).normal_()
    target = torch.empty_like(source)
    ms = _median(Call(lambda: target.copy_(source)), device)
    return Rate(f"copy of {num_bytes / 2**30:g} GiB", ms, 2 * num_bytes / ms * 1e3)


def matrix_rate(device: torch.device, size: int) -> Rate:
    """One bf16 product of random square matrices into memory that exists."""
    a, b = (torch.empty(size, size, device=device).normal_().bfloat16() for _ in range(2))
    out = torch.empty_like(a)
    ms = _median(Call(lambda: torch.mm(a, b, out=out)), device)
    return Rate(f"bf16 product of {size}^3", ms, 2 * size**3 / ms * 1e3)


def row_times(
    journal: Journal, shape: tuple[int, int], copy_per_s: float, budget_s: float
) -> Iterator[RowTime]:
    """Statistics, and statistics with gradient, of every backend that serves the device.

    A form that fails is noted in the journal; pairs of dtypes that are in it are left out.
    """
    device, size = journal.device, " x ".join(f"{n:,}" for n in shape)
    done = {(tuple(row["shape"]), row["dtypes"]) for row in journal.results["rows"]}
    for dtype in (torch.bfloat16, torch.float32):
        # the head's gradients are bf16; the CPU's pass here keeps the dtype of the logits
        out_dtype = dtype if device.type == "cpu" else torch.bfloat16
        source = torch.empty(shape, dtype=dtype, device=device).normal_(0.0, 2.0)
        for writes in (False, True):
            dtypes = _short(dtype) + (f"->{_short(out_dtype)}" if writes else "")
            if (shape, dtypes) in done:
                continue
            where = f"rows {size} {dtypes}"
            calls: dict[str, Call] = {}
            for form, build in _forms(source, out_dtype, writes=writes):
                if not journal.refusal(where, form):
                    with journal.trying(where, form):
                        call = build()
                        call.once()
                        _wait(device)
                        calls[form] = call
            moved = source.numel() * (dtype.itemsize + (out_dtype.itemsize if writes else 0))
            taken = take_turns(
                calls, device, budget_s=budget_s, on_failure=partial(journal.note, where)
            )
            for form, samples in taken.items():
                p20, p50, p80 = (quantile(samples, q) for q in (0.2, 0.5, 0.8))
                rate = moved / p50 * 1e3
                yield RowTime(form, shape, dtypes, p20, p50, p80, rate, rate / copy_per_s)


def _forms(
    source: Tensor, out_dtype: torch.dtype, *, writes: bool
) -> Iterator[tuple[str, Callable[[], Call]]]:
    """(name, what makes it); each works on its own copy, as a gradient takes the logits' place."""
    device = source.device
    if device.type == "cpu":
        if not writes:
            yield "torch", lambda: Call(lambda: torch.logsumexp(source.float(), 1))
        if "native" in available_backends():
            native: Any = get_backend(device, "native")
            yield "native", lambda: _by_logits_pass(native.logits_pass, source, writes)
        return
    from polaris_kernels.backends.row_kernels import CudaRows, TritonRows

    reads = ", two reads" if writes else ""
    yield f"triton{reads}", lambda: _by_kernels(TritonRows(), source, out_dtype, writes)
    if "cuda" not in available_backends():
        return

    def compiled() -> Any:
        # here the kernels are held to float64, and may be refused
        backend: Any = get_backend(device, "cuda")
        return backend.kernels

    yield f"cuda{reads}", lambda: _by_kernels(compiled(), source, out_dtype, writes)
    if writes:
        yield "cuda, one read", lambda: _one_read(compiled(), source, out_dtype)
    if writes and torch.cuda.get_device_capability()[0] >= 9:
        yield (
            "cuda, one read, cluster of 16",
            lambda: _one_read(CudaRows(compiled().library, 16), source, out_dtype),
        )


def _by_logits_pass(pass_: Any, source: Tensor, writes: bool) -> Call:
    targets, known = _row_inputs(source)
    logits = source.clone()

    def run() -> Any:
        state = pass_.statistics(logits, targets, 1.0, None, None)
        return pass_.gradient(logits, state, known, inplace=True) if writes else state

    return Call(run, prepare=lambda: logits.copy_(source))


def _by_kernels(kernels: Any, source: Tensor, out_dtype: torch.dtype, writes: bool) -> Call:
    from polaris_kernels.backends.triton_launch import RowState, Scaling, narrow_view

    targets, known = _row_inputs(source)
    logits = source.clone() if writes else source
    state, scaling = RowState.empty(source.shape[0], source), Scaling.make(1.0)

    def run() -> None:
        kernels.statistics(logits, targets, scaling, state)
        if writes:
            out = narrow_view(logits, out_dtype)
            kernels.gradients(logits, targets, scaling, state, known, out)

    return Call(run, prepare=(lambda: logits.copy_(source)) if writes else None)


def _one_read(kernels: Any, source: Tensor, out_dtype: torch.dtype) -> Call:
    from polaris_kernels.backends.triton_launch import RowState, Scaling, narrow_view
    from polaris_kernels.foreseen import RowRule

    targets, known = _row_inputs(source)
    logits = source.clone()
    state, scaling = RowState.empty(source.shape[0], source), Scaling.make(1.0)
    out, rule = narrow_view(logits, out_dtype), RowRule(known)
    return Call(
        lambda: kernels.both(logits, targets, scaling, state, rule, out),
        prepare=lambda: logits.copy_(source),
    )


def _row_inputs(source: Tensor) -> tuple[Tensor, TokenGradients]:
    C, V = source.shape
    targets = torch.arange(C, device=source.device) % V
    return targets, TokenGradients(logp=torch.randn(C, device=source.device))


def _median(call: Call, device: torch.device) -> float:
    call.once()
    return quantile(take_turns({"": call}, device, budget_s=1.0, max_rounds=20)[""], 0.5)


def _short(dtype: torch.dtype) -> str:
    return {torch.bfloat16: "bf16", torch.float32: "fp32"}[dtype]


def _wait(device: torch.device) -> None:
    # an error in a kernel is raised by whatever waits for it next
    if device.type == "cuda":
        torch.cuda.synchronize()


def measure(journal: Journal, *, tiny: bool) -> None:
    """Everything, into the journal."""
    device, found = journal.device, journal.results
    if "matrix" not in found:
        copy = copy_rate(device, _TINY_COPY_BYTES if tiny else _COPY_BYTES)
        matrix = matrix_rate(device, _TINY_MATRIX_SIZE if tiny else _MATRIX_SIZE)
        found |= {"copy": asdict(copy), "matrix": asdict(matrix)}
        journal.write()
        print(f"{copy.what}: {copy.per_s / 1e9:,.0f} GB/s")
        print(f"{matrix.what}: {matrix.per_s / 1e12:,.1f} TFLOP/s")
    for shape in _TINY_SHAPES if tiny else _SHAPES:
        budget_s = 0.1 if tiny else _BUDGET_S
        for made in row_times(journal, shape, found["copy"]["per_s"], budget_s):
            found["rows"].append(asdict(made))
            journal.write()
            print(
                f"{made.form:32} {shape[0]:,} x {shape[1]:,} {made.dtypes:11} "
                f"{made.p50_ms:9.3f} ms "
                f"{made.bytes_per_s / 1e9:7,.0f} GB/s  {made.share_of_copy:6.1%} of copy",
                flush=True,
            )
        if device.type == "cuda":
            torch.cuda.empty_cache()


def main(arguments: list[str] | None = None) -> int:
    return run_part(__doc__, {"rows": []}, measure, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
