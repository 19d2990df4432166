"""One long row through forward, loss and backward in a process of its own: its peak memory.

    python -m benchmarks.long_row --way ours --tokens 16384

A tiny Qwen3 in bf16 with the vocabulary of Qwen3.5, 248,320, so that the head is what counts.
Printed is JSON: `peak_mib`, what the process's resident memory rose by at its worst moment beyond
the model and what its gradients take; and the loss and the norm of the gradients, which all ways
share. TRL runs its own `_compute_loss` with the fused head that it installs for this.

T tokens . D hidden . V vocab.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from benchmarks.measure import Call, run_with_peak

V, PROMPT = 248_320, 16
SIZES = {"hidden_size": 64, "num_layers": 4, "vocab_size": V, "head_dim": 32,
         "intermediate_size": 1024, "tie_word_embeddings": True}  # fmt: skip
SWITCHES: dict[str, dict[str, Any]] = {
    "ours": {},
    "ours, gradient_checkpointing selective": {"gradient_checkpointing": "selective"},
    "ours, gradient_checkpointing": {"gradient_checkpointing": True},
    "ours, mlp_tile_tokens 1024": {"mlp_tile_tokens": 1024},
    "ours, checkpointing and tiles": {"gradient_checkpointing": True, "mlp_tile_tokens": 1024},
}
TRL = ("TRL 1.16", "TRL 1.16, gradient checkpointing")
WHOLE = "full logits"
WAYS = (*SWITCHES, *TRL, WHOLE)


def measured(way: str, tokens: int) -> dict[str, float]:
    """Run a way in a process of its own.

    Raises:
        RuntimeError: it failed; the message is the end of its output.
    """
    command = [sys.executable, "-m", "benchmarks.long_row", "--way", way, "--tokens", str(tokens)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{way}: status {done.returncode}\n{done.stderr[-2000:]}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def make_step(way: str, tokens: int) -> tuple[Any, Callable[[], float]]:
    """The model and a call that leaves gradients in it and returns the loss."""
    if way.startswith("TRL"):
        return _trl(tokens, checkpointing="checkpointing" in way)
    if way == WHOLE:
        return _full_logits(tokens)
    return _ours(tokens, SWITCHES[way])


def _model(tokens: int) -> Any:
    from polaris_fast.model.tiny import tiny_model

    return tiny_model(
        "qwen3", dtype=torch.bfloat16, max_position_embeddings=2 * tokens, **SIZES
    ).train()


def _ids(tokens: int) -> torch.Tensor:
    """(1, T) int64"""
    return torch.randint(3, V, (1, tokens), generator=torch.Generator().manual_seed(0))


def _ours(tokens: int, switches: dict[str, Any]) -> tuple[Any, Callable[[], float]]:
    from polaris_fast.config import Config
    from polaris_fast.engine.policy import Policy
    from polaris_fast.model.load import prepare_model
    from polaris_fast.model.memory import install_memory_savers
    from polaris_fast.packing import pack_rows
    from polaris_kernels import LossRows

    config = Config(**switches)
    model = prepare_model(_model(tokens))
    install_memory_savers(model, config)
    policy = Policy(model, config, config.loss_spec())
    ids = _ids(tokens)[0].tolist()
    row = SimpleNamespace(prompt_ids=ids[:PROMPT], completion_ids=ids[PROMPT:])

    def step() -> float:
        batch = pack_rows([row])
        rows = LossRows(
            row_of_token=batch.target_row, num_rows=1, advantages=torch.ones(1),
            is_human=torch.zeros(1, dtype=torch.bool), denominator=float(tokens - PROMPT),
        )  # fmt: skip
        loss = policy(batch, rows).loss
        loss.backward()
        return float(loss.detach())

    return model, step


def _trl(tokens: int, *, checkpointing: bool) -> tuple[Any, Callable[[], float]]:
    from trl.trainer.utils import add_fused_lm_head

    from tests.adapters.trl_rig import make_trainer, save_model

    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(save_model(Path(folder)), max_completion_length=tokens)
    model = _model(tokens)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    add_fused_lm_head(model, temperature=1.0, outputs=("log_probs", "entropy"))
    trainer.model = model
    trainer.current_gradient_accumulation_steps = trainer.args.steps_per_generation
    ids = _ids(tokens)
    mask = torch.ones_like(ids)
    inputs = {
        "prompt_ids": ids[:, :PROMPT], "prompt_mask": mask[:, :PROMPT],
        "completion_ids": ids[:, PROMPT:], "completion_mask": mask[:, PROMPT:],
        "advantages": torch.tensor([1.0]), "num_items_in_batch": mask[:, PROMPT:].sum(),
    }  # fmt: skip

    def step() -> float:
        loss = trainer._compute_loss(model, inputs)
        loss.backward()
        return float(loss.detach())

    return model, step


def _full_logits(tokens: int) -> tuple[Any, Callable[[], float]]:
    """The least that a loss from whole logits needs: bf16 logits, and log-probs by torch."""
    model, ids = _model(tokens), _ids(tokens)

    def step() -> float:
        logits = model(ids, use_cache=False).logits[0, PROMPT - 1 : -1]
        loss = torch.nn.functional.cross_entropy(logits, ids[0, PROMPT:])
        loss.backward()
        return float(loss.detach())

    return model, step


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--way", choices=WAYS, required=True)
    parser.add_argument("--tokens", type=int, default=16_384)
    arguments = parser.parse_args()
    model, step = make_step(arguments.way, arguments.tokens)
    small, warm = make_step(arguments.way, 64)  # what libraries allocate once is not the row's
    warm()
    del small, warm
    loss, peak = run_with_peak(Call(step), torch.device("cpu"))
    assert peak is not None, "needs Linux's /proc/self/clear_refs"
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    own = sum(g.numel() * g.element_size() for g in grads) / 2**20
    norm = float(torch.nn.utils.get_total_norm(grads))
    print(json.dumps({"peak_mib": round(peak - own, 1), "loss": loss, "grad_norm": norm}))


if __name__ == "__main__":
    main()
