"""The start-up probe: rows packed together must come out as each row alone.

Shapes: T packed tokens, D hidden.

The reference is transformers' own forward of one row, without packing and with the model's own
eager attention; where that would run on kernels of fla that are wrong on this device, the project's
plain torch rule on one row. A leak through attention, through a recurrent state or through a
convolution shows in the first tokens of every row but the first; attention that ours is not, in all
rows; a wrong backward, in the gradient of the input embeddings.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from polaris_fast.model.delta_fla import fla_is_right
from polaris_fast.model.delta_net import PackedDeltaNet
from polaris_fast.model.eager import eager_attention
from polaris_fast.model.head_parity import check_head
from polaris_fast.model.kernel_choice import choose, chosen
from polaris_fast.model.packed import packed_hidden_states
from polaris_fast.packing import pack_rows
from polaris_kernels import FusedHead

# (prompt, completion) tokens of the probe's rows: a single token, rows shorter and longer than the
# convolution, and one longer than a chunk of the delta rule.
PROBE_ROWS = ((5, 4), (1, 0), (1, 2), (11, 60), (2, 0), (4, 9))

# Allowed |packed - alone| / |alone| per token, on top of three times what the same kernels show for
# rows that cannot leak; and what those may show at most. A leak is around .1 on random weights.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 2e-2}
ROUNDING_SHARE = 3.0
ROUNDING_LIMIT = 10.0


class PackingLeak(RuntimeError):
    """Packed rows of this model see each other: training on them would be silently wrong."""


@dataclass(frozen=True)
class ParityReport:
    """Largest relative differences per token to each row alone through the plain forward."""

    hidden: float  # packed together, final hidden states
    gradient: float  # packed together, gradient of the input embeddings
    hidden_rounding: float  # packed one row at a time: kernels and dtype, never a leak
    gradient_rounding: float
    tolerance: float

    @property
    def passed(self) -> bool:
        """False for NaN too."""
        pairs = ((self.hidden, self.hidden_rounding), (self.gradient, self.gradient_rounding))
        return all(
            together <= self.tolerance + ROUNDING_SHARE * rounding
            and rounding <= ROUNDING_LIMIT * self.tolerance
            for together, rounding in pairs
        )


@dataclass(frozen=True)
class _ProbeRow:
    prompt_ids: list[int]
    completion_ids: list[int]


def check_packing(model: Any, *, seed: int = 0, tolerance: float | None = None) -> ParityReport:
    """Compare packed rows with each row alone, in the model's dtype and on its device.

    A fused head is compared with the model's own logits, see `check_head`.

    Args:
        model: a causal LM that went through `install_packing`. Its weights get no gradients.
        seed: of the probe's random tokens.
        tolerance: allowed relative difference beyond rounding; by dtype if None.
    Errors: PackingLeak when the difference is larger, or not finite, or the model does not take
        packed rows. UserError when its attention or its logits are other than what trains.
    """
    weight = model.get_input_embeddings().weight
    rows = _probe_rows(len(weight), seed)
    batch = pack_rows(rows, weight.device)
    name = type(model).__name__
    with _evaluating(model), torch.enable_grad():
        embeds = model.get_input_embeddings()(batch.input_ids).detach().requires_grad_()
        upstream = _random_like(embeds, seed)
        try:
            together = packed_hidden_states(model, batch, inputs_embeds=embeds)
        except TypeError as error:
            raise PackingLeak(
                f"{name} does not take packed rows ({error}); use a Qwen3.5, Qwen3 or Llama model"
            ) from error
        reference = _by_torch_rule if _runs_on_wrong_kernels(model) else _plain
        parts = list(zip(rows, embeds.split(batch.layout.lengths), strict=True))
        outs = (
            together,
            torch.cat([_packed_alone(model, row, part) for row, part in parts]),
            torch.cat([reference(model, row, part) for row, part in parts]),
        )
        grads = [torch.autograd.grad(out, embeds, upstream)[0] for out in outs]
        if isinstance(model.get_output_embeddings(), FusedHead):
            check_head(model, seed=seed)
    report = ParityReport(
        hidden=_difference(outs[0], outs[2]),
        gradient=_difference(grads[0], grads[2]),
        hidden_rounding=_difference(outs[1], outs[2]),
        gradient_rounding=_difference(grads[1], grads[2]),
        tolerance=TOLERANCE[weight.dtype] if tolerance is None else tolerance,
    )
    if not report.passed:
        raise PackingLeak(
            f"{name} ({weight.dtype}, {weight.device}): packed rows differ from rows alone by "
            f"{report.hidden:.3g} in hidden states and {report.gradient:.3g} in gradients, where "
            f"the same kernels on one row show {report.hidden_rounding:.3g} and "
            f"{report.gradient_rounding:.3g} (relative, tolerance {report.tolerance:.3g}); packing "
            "would train this model wrongly: use a Qwen3.5, Qwen3 or Llama model"
        )
    return report


def _packed_alone(model: Any, row: _ProbeRow, embeds: Tensor) -> Tensor:
    """(T, D) through the packed forward with one row in the buffer."""
    return packed_hidden_states(model, pack_rows([row], embeds.device), inputs_embeds=embeds)


def _plain(model: Any, _: _ProbeRow, embeds: Tensor) -> Tensor:
    """(T, D) through transformers' forward of one row, without packing."""
    body = model.get_decoder()
    with eager_attention(model):
        return body(inputs_embeds=embeds[None], use_cache=False).last_hidden_state[0]


def _by_torch_rule(model: Any, row: _ProbeRow, embeds: Tensor) -> Tensor:
    """(T, D) through the packed forward of one row, delta nets by the plain torch rule."""
    before = chosen("delta_net")
    choose("delta_net", "torch")
    try:
        return _packed_alone(model, row, embeds)
    finally:
        choose("delta_net", before)


def _runs_on_wrong_kernels(model: Any) -> bool:
    """Whether transformers' own delta nets would call fla where it is wrong: they do not ask."""
    if find_spec("fla") is None or not any(isinstance(m, PackedDeltaNet) for m in model.modules()):
        return False
    return not fla_is_right(model.get_input_embeddings().weight.device)


def _probe_rows(vocab_size: int, seed: int) -> list[_ProbeRow]:
    generator = torch.Generator().manual_seed(seed)

    def ids(count: int) -> list[int]:
        return torch.randint(vocab_size, (count,), generator=generator).tolist()

    return [_ProbeRow(ids(prompt), ids(completion)) for prompt, completion in PROBE_ROWS]


def _random_like(x: Tensor, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(x.shape, generator=generator).to(x)


def _difference(ours: Tensor, reference: Tensor) -> float:
    """max over tokens of |ours - reference| / |reference|"""
    ours, reference = ours.detach().double(), reference.detach().double()
    scale = reference.norm(dim=-1).clamp_min(torch.finfo(torch.float32).tiny)
    return float(((ours - reference).norm(dim=-1) / scale).max())


@contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    """Dropout and gradient checkpointing off, as they were before on leaving."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
