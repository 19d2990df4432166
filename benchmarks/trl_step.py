"""One GRPO step of TRL's own trainer: with its head, with this one, and with the loss inside it.

A row of completion tokens goes through TRL's real `_compute_loss` and backward, on a two-layer bf16
model with a vocabulary of 151,936, so that the head is nearly all of it. Candidates take turns in
one process. Peak memory is what a step of its own holds beyond what was there before, less the
model's gradients.

`use_liger_kernel` exchanges the model's layers in TRL 1.16 and leaves the head. On a CPU none of
Liger's layer kernels runs, so there it is on with each of them off. Earlier releases of TRL took
Liger's fused loss when it was on: that is measured beside it, on the same hidden states.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.measure import Call, Stopwatch, run_with_peak
from polaris_kernels import release_workspace
from polaris_kernels.adapters.trl import patch_grpo

D, V, PROMPT = 128, 151_936, 4
EPSILON, EPSILON_HIGH = 0.2, 0.28
THEIRS, OURS, FUSED = "TRL 1.16", "patch_grpo", "patch_grpo, loss='fused'"
LIGER = "Liger's fused loss"
_PATCHES: dict[str, str | None] = {THEIRS: None, OURS: "trl", FUSED: "fused"}
_NO_LAYERS = {"rope": False, "rms_norm": False, "swiglu": False}


@dataclass
class Entry:
    """What was measured of one candidate."""

    samples_ms: list[float] = field(default_factory=list)
    peak_mib: float | None = None
    """beyond the model and its gradients; None where the system does not tell"""
    loss: float = float("nan")
    gradients: dict[str, Tensor] = field(default_factory=dict)

    @property
    def median_ms(self) -> float:
        return statistics.median(self.samples_ms)


class Rig:
    """A trainer over the model, a batch whose ratios clip, and the candidates' steps."""

    def __init__(self, *, use_liger_kernel: bool) -> None:
        from tests.adapters.trl_rig import make_trainer, save_model

        options: dict[str, Any] = {"epsilon": EPSILON, "epsilon_high": EPSILON_HIGH}
        if use_liger_kernel:
            options |= {"use_liger_kernel": True, "liger_kernel_config": dict(_NO_LAYERS)}
        with tempfile.TemporaryDirectory() as folder:
            self.trainer = make_trainer(save_model(Path(folder)), **options)
        self.model = self._model(use_liger_kernel)
        self.trainer.model = self.model
        self.trainer.current_gradient_accumulation_steps = 1
        self.candidates = [*_PATCHES, *([LIGER] if use_liger_kernel else [])]

    def _model(self, use_liger_kernel: bool) -> Any:
        from transformers.integrations.liger import apply_liger_kernel
        from trl.trainer.utils import add_fused_lm_head

        from polaris_fast.model.tiny import tiny_model

        model = tiny_model(
            "qwen3", vocab_size=V, hidden_size=D, num_layers=2, head_dim=64,
            max_position_embeddings=8192, dtype=torch.bfloat16,
        ).train()  # fmt: skip
        add_fused_lm_head(model, temperature=1.0, outputs=("log_probs", "entropy"))
        if use_liger_kernel:
            # as transformers' train() does, with what the trainer made of its arguments
            apply_liger_kernel(model, self.trainer.args.liger_kernel_config)
        return model

    def batch(self, tokens: int) -> dict[str, Tensor]:
        """One row; its old log-probs are this model's, moved by up to .69 either way."""
        g = torch.Generator().manual_seed(0)
        ids = torch.randint(3, V, (1, PROMPT + tokens), generator=g)
        mask = torch.ones_like(ids)
        with torch.no_grad(), patch_grpo(self.trainer):
            now = self.trainer._get_per_token_logps_and_entropies(self.model, ids, mask, tokens)[0]
        return {
            "prompt_ids": ids[:, :PROMPT], "prompt_mask": mask[:, :PROMPT],
            "completion_ids": ids[:, PROMPT:], "completion_mask": mask[:, PROMPT:],
            "advantages": torch.tensor([1.0]),
            "num_items_in_batch": mask[:, PROMPT:].sum() * self.trainer.args.steps_per_generation,
            "old_per_token_logps": now + 0.69 * (2 * torch.rand(now.shape, generator=g) - 1),
        }  # fmt: skip

    def step(self, name: str, batch: dict[str, Tensor]) -> Call:
        """Log-probs, loss and backward of one candidate; gradients are empty before."""
        loss_of: Callable[[], Tensor]
        if name == LIGER:
            loss_of = self._ligers_loss(batch)
        else:
            loss_of = lambda: self.trainer._compute_loss(self.model, batch)

        def run() -> float:
            loss = loss_of()
            loss.backward()
            return float(loss.detach())

        return Call(run, prepare=lambda: self.model.zero_grad(set_to_none=True))

    def _ligers_loss(self, batch: dict[str, Tensor]) -> Callable[[], Tensor]:
        """Without torch.compile, whose compilation takes longer than all the rest."""
        from liger_kernel.chunked_loss import LigerFusedLinearGRPOLoss

        loss_module = LigerFusedLinearGRPOLoss(
            beta=0.0, use_ref_model=False, compiled=False, loss_type="dapo",
            epsilon_low=EPSILON, epsilon_high=EPSILON_HIGH,
        )  # fmt: skip
        ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
        mask = batch["completion_mask"]

        def loss() -> Tensor:
            hidden = self.model.model(input_ids=ids, use_cache=False).last_hidden_state
            found: Tensor = loss_module(
                hidden[:, PROMPT - 1 : -1], self.model.lm_head.weight, batch["completion_ids"],
                mask, batch["advantages"], old_per_token_logps=batch["old_per_token_logps"],
            )[0]  # fmt: skip
            return found

        return loss

    def patched(self, name: str) -> Any:
        """The patch of a candidate, to be undone; None where there is none."""
        loss = _PATCHES.get(name)
        return None if loss is None else patch_grpo(self.trainer, loss=loss)


def measure(*, use_liger_kernel: bool, tokens: int, rounds: int) -> dict[str, Entry]:
    """All candidates, `rounds` timed steps each, in turns."""
    rig, watch = Rig(use_liger_kernel=use_liger_kernel), Stopwatch(torch.device("cpu"))
    found = {name: Entry() for name in rig.candidates}
    size = sum(p.numel() * p.element_size() for p in rig.model.parameters()) / 2**20
    small, batch = rig.batch(64), rig.batch(tokens)
    for round_ in range(rounds + 1):
        for name, entry in found.items():
            patch = rig.patched(name)
            step = rig.step(name, batch)
            if round_:
                entry.samples_ms.append(watch.time_ms(step))
            else:
                # what libraries load and keep from their first call is nobody's step
                rig.step(name, small).once()
                rig.model.zero_grad(set_to_none=True)
                entry.loss, peak = run_with_peak(step, torch.device("cpu"))
                entry.peak_mib = None if peak is None else peak - size
                named = rig.model.named_parameters()
                entry.gradients = {n: p.grad.clone() for n, p in named if p.grad is not None}
            if patch is not None:
                patch.undo()
    release_workspace()
    return found
