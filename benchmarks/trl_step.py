"""TRL's GRPO step on the CPU with its own head, with this one, and with the loss inside the head.

    python -m benchmarks.trl_step --tokens 2048

One micro-batch of one row through TRL's real `_compute_loss` and backward, on a two-layer bf16
model with a vocabulary of 151,936, so that the head is nearly all of it. The three take turns in
one process; medians after a first round. Peak memory is the process's beyond what existed before
the step, less the model's gradients, in a step of its own.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import Call, Stopwatch, run_with_peak
from polaris_kernels import release_workspace
from polaris_kernels.adapters.trl import patch_grpo

D, V = 128, 151_936
NAMES = {"TRL's own head": None, "patch_grpo": "trl", "patch_grpo, loss='fused'": "fused"}


def make_step(tokens: int) -> tuple[Any, Call]:
    """A trainer over the model, and its step; losses of all variants start from equal inputs."""
    from trl.trainer.utils import add_fused_lm_head

    from polaris_fast.model.tiny import tiny_model
    from tests.adapters.trl_rig import make_trainer, save_model

    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(save_model(Path(folder)), max_completion_length=tokens)
    model = tiny_model(
        "qwen3", vocab_size=V, hidden_size=D, num_layers=2, head_dim=64,
        max_position_embeddings=2 * tokens, dtype=torch.bfloat16,
    ).train()  # fmt: skip
    add_fused_lm_head(model, temperature=1.0, outputs=("log_probs", "entropy"))
    trainer.model = model
    trainer.current_gradient_accumulation_steps = 1
    ids = torch.randint(3, V, (1, tokens + 4), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    inputs = {
        "prompt_ids": ids[:, :4], "prompt_mask": mask[:, :4],
        "completion_ids": ids[:, 4:], "completion_mask": mask[:, 4:],
        "advantages": torch.tensor([1.0]), "num_items_in_batch": mask[:, 4:].sum(),
    }  # fmt: skip

    def step() -> float:
        loss = trainer._compute_loss(model, inputs)
        loss.backward()
        return float(loss.detach())

    return trainer, Call(step, prepare=lambda: model.zero_grad(set_to_none=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tokens", type=int, default=2048, help="completion tokens of the row")
    parser.add_argument("--rounds", type=int, default=3, help="rounds after the first")
    arguments = parser.parse_args()
    trainer, step = make_step(arguments.tokens)
    watch = Stopwatch(torch.device("cpu"))
    times: dict[str, list[float]] = {name: [] for name in NAMES}
    peaks: dict[str, float | None] = {}
    losses: dict[str, float] = {}
    for round_ in range(arguments.rounds + 1):
        for name, loss in NAMES.items():
            patch = None if loss is None else patch_grpo(trainer, loss=loss)
            if round_:
                times[name].append(watch.time_ms(step))
            else:
                step.once()
                trainer.model.zero_grad(set_to_none=True)
                release_workspace()
                losses[name], peaks[name] = run_with_peak(step, torch.device("cpu"))
            if patch is not None:
                patch.undo()
    gradients = sum(p.numel() * p.element_size() for p in trainer.model.parameters()) / 2**20
    theirs = statistics.median(times["TRL's own head"])
    for name, samples in times.items():
        peak = peaks[name]
        beyond = "not measured" if peak is None else f"{peak - gradients:,.0f} MiB"
        ms = statistics.median(samples)
        print(f"{name:26s} {ms:8,.0f} ms  {theirs / ms:5.1f}x  {beyond}  loss {losses[name]:.6f}")


if __name__ == "__main__":
    main()
