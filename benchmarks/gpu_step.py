"""One whole training step of a Qwen3.5-architecture model, by phase, beside the same step with the
head that TRL trains with.

    python -m benchmarks.gpu_step --json step.json
    python -m benchmarks.gpu_step --device cpu --tiny

The model has random weights and 1.9 B parameters, bf16; a batch is one row of 16,384 tokens, nearly
all of them completion. A step is forward, loss, backward and AdamW. The phases are timed by events
at their borders, which nothing waits for; the rate is model FLOPs (6 a weight and token, and the
attention's scores) against the matrix rate measured on this chip, not against a data sheet.

Forms: `polaris` is this project's packed forward and fused head. `trl head` is the same forward
with TRL's `ChunkedLogProbFunction` and a plain clipped loss on it: what TRL does between hidden
states and loss. `transformers + trl head` takes transformers' own forward (sdpa), as TRL does.

Shapes: `T tokens . D hidden . V vocab . P parameters`.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from polaris_fast.model.attention import attention_backend
from polaris_fast.model.delta_net import delta_backend
from polaris_fast.model.load import prepare_model
from polaris_fast.model.packed import packed_hidden_states
from polaris_fast.model.tiny import tiny_model
from polaris_fast.packing import PackedBatch, pack_rows
from polaris_kernels import LossRows, LossSpec, active_backend, linear_grpo_loss

from .gpu_floors import matrix_rate
from .head_peers import Missing, clipped_loss, trl_logps
from .journal import LIMIT_S, DeviceLost, Journal, add_arguments
from .measure import quantile

PHASES = ("forward", "head", "backward", "optimizer")
_WARM_UP = 2
# of each form; no more than the first start after the time limit
_LEAST_STEPS, _STEPS = 3, 5
_MODEL: dict[str, Any] = {
    "vocab_size": 248_320, "hidden_size": 2_048, "num_layers": 24, "intermediate_size": 6_144,
    "num_heads": 8, "num_key_value_heads": 2, "head_dim": 256, "linear_num_key_heads": 16,
    "linear_num_value_heads": 16, "linear_head_dim": 128, "tie_word_embeddings": True,
    "max_position_embeddings": 32_768,
}  # fmt: skip
_TINY_MODEL: dict[str, Any] = {"vocab_size": 512, "tie_word_embeddings": True}
_PROMPT, _TOKENS = 64, 16_384
_TINY_PROMPT, _TINY_TOKENS = 4, 48


@dataclass(frozen=True)
class _Row:
    prompt_ids: list[int]
    completion_ids: list[int]


@dataclass
class Form:
    """One way to do the step."""

    name: str
    hidden_states: Callable[[], Tensor]
    """(T, D)"""
    loss: Callable[[Tensor], Tensor]
    """(N, D) hidden states of the targets -> ()"""
    missing: str | None = None
    """why it cannot be built"""
    first_loss: float = math.nan
    phases_ms: dict[str, list[float]] = field(default_factory=dict)
    peak_gib: float | None = None


class _Clock:
    """Milliseconds between marks: events on CUDA, so that no mark waits; wall time on a CPU."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._marks: list[Any] = []

    def mark(self) -> None:
        if self._cuda:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._marks.append(event)
        else:
            self._marks.append(time.perf_counter())

    def read(self) -> list[float]:
        if self._cuda:
            torch.cuda.synchronize()
            pairs = zip(self._marks, self._marks[1:], strict=False)
            return [a.elapsed_time(b) for a, b in pairs]
        return [1e3 * (b - a) for a, b in zip(self._marks, self._marks[1:], strict=False)]


class Bench:
    """The model, its optimizer and one batch."""

    def __init__(self, device: torch.device, *, tiny: bool) -> None:
        self.device = device
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        with torch.device(device):
            model: Any = tiny_model(dtype=dtype, **(_TINY_MODEL if tiny else _MODEL))
        self.model = prepare_model(model.to(device)).train()
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=1e-6, fused=device.type == "cuda" or None
        )
        prompt, total = (_TINY_PROMPT, _TINY_TOKENS) if tiny else (_PROMPT, _TOKENS)
        self.batch = _make_batch(prompt, total, self.model.config.vocab_size, device)
        g = torch.Generator().manual_seed(1)
        self.advantages = torch.randn(1, generator=g).to(device)
        # near what random weights say: ratios near 1, so that no token is clipped away
        old = -math.log(self.model.config.vocab_size)
        self.old_logps = torch.full((self.batch.num_targets,), old, device=device)
        self.spec = LossSpec(loss_type="dapo", epsilon=0.2, epsilon_high=0.28)

    def forms(self) -> list[Form]:
        """Ours first; a peer that cannot be imported is there by name."""
        forms = [Form("polaris", self._packed, self._fused_loss)]
        try:
            theirs = self._trl_loss()
        except Missing as reason:
            return [*forms, Form("trl head", self._packed, self._fused_loss, str(reason))]
        return [
            *forms,
            Form("trl head", self._packed, theirs),
            Form("transformers + trl head", self._plain, theirs),
        ]

    def step(self, form: Form) -> tuple[float, list[float]]:
        """The loss, and milliseconds of each phase."""
        clock = _Clock(self.device)
        clock.mark()
        hidden = form.hidden_states()
        clock.mark()
        loss = form.loss(hidden.index_select(0, self.batch.logit_positions))
        clock.mark()
        loss.backward()
        clock.mark()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        clock.mark()
        return float(loss.detach()), clock.read()

    def flops(self) -> float:
        """Model FLOPs of a step: 6 a weight in a matrix and token, and causal scores. The delta
        rule's own products, and anything recomputed, do not count."""
        config, T = self.model.config, self.batch.num_tokens
        embeddings = self.model.get_input_embeddings().weight.numel()
        in_body = sum(p.numel() for p in self.parameters) - embeddings
        if not config.tie_word_embeddings:
            in_body -= embeddings
        body = 6.0 * in_body * T
        head = 6.0 * embeddings * self.batch.num_targets
        full = sum(kind == "full_attention" for kind in config.layer_types)
        # two products forward and four backward over half of the T^2 scores
        scores = 6.0 * full * config.num_attention_heads * config.head_dim * T * T
        return body + head + scores

    def _packed(self) -> Tensor:
        return packed_hidden_states(self.model, self.batch)

    def _plain(self) -> Tensor:
        body = self.model.get_decoder()
        before = body.config._attn_implementation
        self.model.set_attn_implementation("sdpa")
        try:
            out = body(input_ids=self.batch.input_ids[None], use_cache=False)
        finally:
            self.model.set_attn_implementation(before)
        return out.last_hidden_state[0]

    def _fused_loss(self, hidden: Tensor) -> Tensor:
        batch = self.batch
        rows = LossRows(
            row_of_token=batch.target_row, num_rows=1, advantages=self.advantages,
            old_logps=self.old_logps, denominator=float(batch.num_targets),
        )  # fmt: skip
        weight = self.model.get_output_embeddings().weight
        return linear_grpo_loss(hidden, weight, batch.targets, rows=rows, spec=self.spec).loss

    def _trl_loss(self) -> Callable[[Tensor], Tensor]:
        logps_of = trl_logps(())

        def loss(hidden: Tensor) -> Tensor:
            weight = self.model.get_output_embeddings().weight
            logps = logps_of(hidden, weight, self.batch.targets)[0]
            return clipped_loss(logps, self.old_logps, self.advantages).mean()

        return loss


def _make_batch(prompt: int, total: int, vocab: int, device: torch.device) -> PackedBatch:
    g = torch.Generator().manual_seed(0)
    ids = torch.randint(vocab, (total,), generator=g).tolist()
    return pack_rows([_Row(ids[:prompt], ids[prompt:])], device)


def measure(journal: Journal, *, tiny: bool, limit_s: float) -> None:
    """Everything, into the journal: form after form, ours first."""
    started = time.monotonic()
    device, found = journal.device, journal.results
    matrix = matrix_rate(device, 128 if tiny else 8_192)
    bench = Bench(device, tiny=tiny)
    found |= {
        "parameters": sum(p.numel() for p in bench.parameters),
        "tokens": bench.batch.num_tokens,
        "model_tflop": bench.flops() / 1e12,
        "matrix_tflops": matrix.per_s / 1e12,
    }
    done = {entry["form"] for entry in found["forms"]}
    for form in bench.forms():
        if form.name in done:
            continue
        refused = form.missing or journal.refusal("step", form.name)
        if not refused and found["forms"] and time.monotonic() - started > limit_s:
            refused = "no time was left"
        if not refused:
            with journal.trying("step", form.name, limit_s=LIMIT_S + limit_s):
                _time(bench, form, 1 if tiny else _STEPS, started + limit_s)
            bench.optimizer.zero_grad(set_to_none=True)
            refused = journal.refusal("step", form.name)
        entry = (
            {"form": form.name, "failed": refused}
            if refused
            else _summary(form, bench, matrix.per_s)
        )
        found["forms"].append(entry)
        journal.write()
        print(_line(entry), flush=True)
    with journal.trying("step", "names of kernels"):
        dtype = bench.parameters[0].dtype
        found["attention"] = attention_backend(device, dtype)
        found["delta_net"] = delta_backend(device)
        found["head"] = active_backend(device)


def _time(bench: Bench, form: Form, num_steps: int, until: float) -> None:
    """Fill the form's numbers; a step of the least number starts after `until` too."""
    cuda = bench.device.type == "cuda"
    for i in range(_WARM_UP):
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        loss, _ = bench.step(form)
        if i == 0:
            form.first_loss = loss
    if cuda:
        form.peak_gib = torch.cuda.max_memory_allocated() / 2**30
    for i in range(num_steps):
        if i >= _LEAST_STEPS and time.monotonic() > until:
            return
        for phase, ms in zip(PHASES, bench.step(form)[1], strict=True):
            form.phases_ms.setdefault(phase, []).append(ms)


def _summary(form: Form, bench: Bench, matrix_per_s: float) -> dict[str, Any]:
    phases = {name: quantile(samples, 0.5) for name, samples in form.phases_ms.items()}
    steps = [sum(parts) for parts in zip(*form.phases_ms.values(), strict=True)]
    ms = quantile(steps, 0.5)
    return {
        "form": form.name,
        "step_ms": ms,
        "steps": len(steps),
        "tokens_per_s": bench.batch.num_tokens / ms * 1e3,
        "share_of_matrix_rate": bench.flops() / ms * 1e3 / matrix_per_s,
        "peak_gib": form.peak_gib,
        "first_loss": form.first_loss,
        "phases_ms": phases,
    }


def _line(entry: dict[str, Any]) -> str:
    if "failed" in entry:
        return f"{entry['form']:26} not measured: {entry['failed']}"
    phases = ", ".join(f"{name} {ms:,.0f}" for name, ms in entry["phases_ms"].items())
    peak = "" if entry["peak_gib"] is None else f"  {entry['peak_gib']:.1f} GiB"
    return (
        f"{entry['form']:26} {entry['step_ms']:9,.0f} ms {entry['tokens_per_s']:9,.0f} tokens/s "
        f"{entry['share_of_matrix_rate']:6.1%} of the matrix rate{peak}  ({phases} ms)"
    )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--tiny", action="store_true", help="a small model and a short row")
    parser.add_argument("--limit_s", type=float, default=60.0, help="no form but ours starts later")
    add_arguments(parser)
    known = parser.parse_args(arguments)
    journal = Journal(known.json, torch.device(known.device), {"forms": []}, resume=known.resume)
    try:
        measure(journal, tiny=known.tiny, limit_s=known.limit_s)
    except DeviceLost as lost:
        print(f"stopped, the device is lost: {lost}")
        return 1
    return journal.status()


if __name__ == "__main__":
    raise SystemExit(main())
