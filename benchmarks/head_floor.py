"""The floor: the multiplications that a task cannot do without, and nothing else.

Outputs are allocated beforehand, tokens come in as many chunks as our own head makes of them, and
each product is done by the fastest that this machine has: torch in the inputs' dtype, torch in fp32
(a CPU without matrix units), or the product of our native library. From logits the floor is their
traffic: one pass that reads them, one that reads them and writes as much.

Shapes: `N tokens . K tokens with loss . C chunk . D hidden . V vocab`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from polaris_kernels import available_backends
from polaris_kernels.backends import get_backend
from polaris_kernels.backends.chunks import even_slices
from polaris_kernels.problem import make_problem

from .head_cases import HeadInputs
from .measure import Call, Stopwatch

# products of a task, in order; logp_op makes the logits twice, as it does not keep them
PRODUCTS = {
    "loss": ("logits", "hidden", "weight"),
    "sparse_mask": ("logits", "hidden", "weight"),
    "sparse_loss": ("logits", "hidden", "weight"),
    "frozen": ("logits", "hidden"),
    "logps": ("logits",),
    "logp_op": ("logits", "logits", "hidden", "weight"),
}
# columns of a vocabulary tile, for statistics alone
_TILE = 4_096
_PROBES = 2

Run = Callable[[], None]


@dataclass(frozen=True)
class Floor:
    """The fastest form found."""

    call: Call
    form: str
    """who does each product, and the number of chunks"""


@dataclass(frozen=True)
class _Multiply:
    """One way to do out = or += a @ b."""

    name: str
    operands: torch.dtype
    out: torch.dtype
    into: Callable[[Tensor, Tensor, Tensor, bool], None]


def find_floor(inputs: HeadInputs) -> Floor:
    """The floor of `inputs.case.task`, the fastest form of each product timed on the spot."""
    if inputs.case.task == "logits":
        return Floor(Call(_traffic(inputs.logits)), "one read, one copy")
    fastest: dict[str, tuple[float, str, Run]] = {}
    watch = Stopwatch(inputs.device)
    chunks = 0
    for multiply in _ways(inputs):
        gemms = _Gemms(inputs, multiply)
        chunks = len(gemms.chunks)
        for product, name, run in gemms.forms():
            run()
            time = min(watch.time_ms(Call(run)) for _ in range(_PROBES))
            if product not in fastest or time < fastest[product][0]:
                fastest[product] = (time, name, run)
    needed = PRODUCTS[inputs.case.task]
    runs = [fastest[product][2] for product in needed]

    def run_all() -> None:
        for run in runs:
            run()

    who = ", ".join(f"{product}: {fastest[product][1]}" for product in dict.fromkeys(needed))
    return Floor(Call(run_all), f"{who}; {chunks} chunk{'s' if chunks > 1 else ''}")


def _ways(inputs: HeadInputs) -> Iterator[_Multiply]:
    dtype = inputs.hidden.dtype
    yield _Multiply(f"torch {_short(dtype)}", dtype, dtype, _torch_into)
    if inputs.device.type != "cpu":
        return
    if dtype != torch.float32:
        yield _Multiply("torch float32", torch.float32, torch.float32, _torch_into)
    if "native" in available_backends():
        from polaris_kernels.backends.native_library import NativeLibrary
        from polaris_kernels.backends.native_multiply import Multiplier

        native = Multiplier(NativeLibrary())
        if native.has_kernel(dtype) or (dtype == torch.bfloat16 and native.widens_bf16()):
            yield _Multiply(
                f"native {_short(dtype)}",
                dtype,
                torch.float32,
                lambda out, a, b, add: native.into(out, a, b, add=add),
            )


def _torch_into(out: Tensor, a: Tensor, b: Tensor, add: bool) -> None:
    if add:
        out.addmm_(a, b)
    else:
        torch.mm(a, b, out=out)


class _Gemms:
    """The products of one case in one form: operands, outputs and chunks."""

    def __init__(self, inputs: HeadInputs, multiply: _Multiply) -> None:
        self.name, self.into = multiply.name, multiply.into
        active = inputs.advantages[inputs.row_of_token] != 0
        through = inputs.mask if inputs.case.task == "sparse_mask" else torch.ones_like(active)
        hidden, kept = inputs.hidden[through], inputs.hidden[inputs.mask & active]
        self.chunks = even_slices(hidden.shape[0], _chunk_rows(inputs, hidden))
        height = max(s.stop - s.start for s in self.chunks)
        self.kept_chunks = even_slices(kept.shape[0], height)
        self.hidden, self.kept = (x.to(multiply.operands) for x in (hidden, kept))
        self.weight = inputs.weight.to(multiply.operands)
        # values of real size: zeros would let a CPU run faster than it can
        self.dz = self.hidden[:height] @ self.weight.t()
        self.logits = torch.empty_like(self.dz, dtype=multiply.out)
        self.grad_hidden = torch.empty_like(self.kept, dtype=multiply.out)
        self.grad_weight = torch.empty_like(self.weight, dtype=multiply.out)
        self.task = inputs.case.task

    def forms(self) -> Iterator[tuple[str, str, Run]]:
        """(product, name of the form, what runs it)."""
        yield "logits", self.name, self._logits
        if self.task == "logps":
            yield "logits", f"{self.name} in tiles", self._tiles
            return
        yield "hidden", self.name, self._hidden
        if self.task != "frozen":
            yield "weight", self.name, self._weight

    def _logits(self) -> None:
        for chunk in self.chunks:
            hidden = self.hidden[chunk]
            self.into(self.logits[: hidden.shape[0]], hidden, self.weight.t(), False)

    def _tiles(self) -> None:
        N, V = self.hidden.shape[0], self.weight.shape[0]
        width = min(_TILE, V)
        height = min(N, max(1, self.logits.numel() // width))
        flat = self.logits.view(-1)
        for start in range(0, N, height):
            hidden = self.hidden[start : start + height]
            for first in range(0, V, width):
                weight = self.weight[first : first + width]
                out = flat[: hidden.shape[0] * weight.shape[0]].view(-1, weight.shape[0])
                self.into(out, hidden, weight.t(), False)

    def _hidden(self) -> None:
        for chunk in self.kept_chunks:
            dz = self.dz[: chunk.stop - chunk.start]
            self.into(self.grad_hidden[chunk], dz, self.weight, False)

    def _weight(self) -> None:
        for i, chunk in enumerate(self.kept_chunks):
            dz = self.dz[: chunk.stop - chunk.start]
            self.into(self.grad_weight, dz.t(), self.kept[chunk], i > 0)


def _chunk_rows(inputs: HeadInputs, hidden: Tensor) -> int:
    """Tokens of a chunk of our own head, by the device's first choice of backend."""
    problem = make_problem(
        hidden,
        inputs.weight,
        inputs.targets[: hidden.shape[0]],
        bias=None,
        temperature=1.0,
        softcap=None,
        logit_scale=1.0,
        logits_dtype="fp32",
        chunk_bytes=None,
        caller="benchmarks",
    )
    return -(-hidden.shape[0] // get_backend(inputs.device).num_chunks(problem))


def _traffic(logits: Tensor) -> Run:
    flat = logits.view(-1, logits.shape[-1])
    copy, largest = torch.empty_like(flat), flat.new_empty(flat.shape[0])

    def run() -> None:
        torch.amax(flat, 1, out=largest)
        copy.copy_(flat)

    return run


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
