"""What operators take in place of options, rows and specs: tensors, numbers and text."""

import json
from dataclasses import asdict
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ..problem import HeadOptions, accumulation_dtype
from ..rows import LossRows
from ..spec import LossSpec

HEAD = "Tensor hidden, Tensor weight, Tensor? bias, Tensor targets, Tensor? temperatures"
OPTIONS = (
    "float temperature, float? softcap, float logit_scale, str logits_dtype, int? chunk_bytes, "
    "str? backend, ScalarType compute_dtype"
)
NUM_OPTIONS = 7
ROWS = "Tensor[] rows, str row_fields, SymInt num_rows, str spec, str metrics"


def pack_temperature(temperature: float | Tensor) -> tuple[Tensor | None, float]:
    """(temperatures, temperature): a tensor and 1, or none and 1.

    A graph is compiled for each value of a number that it holds, and for any value of a tensor: a
    temperature that is annealed must be one. It stays on the host, where reading it waits for
    nobody.
    """
    if isinstance(temperature, Tensor):
        return temperature, 1.0
    if temperature == 1.0:
        return None, 1.0
    return as_tensor(temperature, "cpu"), 1.0


def as_tensor(number: float, device: torch.device | str) -> Tensor:
    """() float64."""
    # a product, unlike `torch.full`, lets a graph take any value of the number
    return torch.ones((), dtype=torch.float64, device=device) * number


def pack_options(options: HeadOptions) -> tuple[Any, ...]:
    """(temperatures, the arguments of `OPTIONS`)."""
    temperatures, temperature = pack_temperature(options.temperature)
    return temperatures, (
        temperature,
        options.softcap,
        float(options.logit_scale),
        options.logits_dtype,
        options.chunk_bytes,
        options.backend,
        options.compute_dtype,
    )


def unpack_options(temperatures: Tensor | None, options: tuple[Any, ...]) -> HeadOptions:
    """The inverse of `pack_options`."""
    temperature, softcap, logit_scale, logits_dtype, chunk_bytes, backend, compute = options
    return HeadOptions(
        temperature=temperature if temperatures is None else temperatures,
        softcap=softcap,
        logit_scale=logit_scale,
        logits_dtype=logits_dtype,
        chunk_bytes=chunk_bytes,
        backend=backend,
        compute_dtype=compute,
    )


def acc_dtype(options: tuple[Any, ...]) -> torch.dtype:
    """The accumulation dtype of packed options."""
    return accumulation_dtype(options[-1])


def unpack_rows(rows: list[Tensor], row_fields: str, num_rows: int) -> LossRows:
    """`LossRows` from its tensors and their names, comma-separated."""
    fields: dict[str, Any] = dict(zip(row_fields.split(","), rows, strict=True))
    return LossRows(num_rows=num_rows, **fields)


def spec_to_text(spec: LossSpec) -> str:
    """The spec as an operator takes it."""
    return json.dumps(asdict(spec))


@lru_cache(maxsize=64)
def spec_from_text(text: str) -> LossSpec:
    """The inverse of `spec_to_text`."""
    return LossSpec(**json.loads(text))


def stack_metrics(named: dict[str, Tensor], names: str) -> Tensor:
    """(M,) the metrics in the order of their comma-separated names."""
    return torch.stack([named[name] for name in names.split(",")])
