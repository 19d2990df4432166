"""Run under torchrun: `zero_ranks FOLDER CASES`, TRL trainers under DeepSpeed ZeRO-3.

CASES is a JSON list of options. Each case is trained with TRL's own head (`none`), with this one
(`trl`) and with the loss inside it (`fused`), one after the other in the same processes. Rank 0
prints a line of JSON: for each case {LOSS: [loss, gradient norm and entropy of each step]}.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import deepspeed
import torch.distributed as dist
from accelerate.state import AcceleratorState

from polaris_fast.leaving import leave
from polaris_kernels.adapters.trl import patch_grpo
from tests.adapters.trl_rig import make_trainer

SHARDED = {
    # nothing is too small to be cut up, so that the head's weight is empty between uses
    "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0},
    "train_micro_batch_size_per_gpu": "auto",
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
    "zero_force_ds_cpu_optimizer": False,
    "zero_allow_untested_optimizer": True,
}
NAMES = ("loss", "grad_norm", "entropy")


def steps(folder: Path, loss: str, options: dict[str, Any]) -> list[list[float]]:
    """What each step of one training run logged."""
    frozen = options.get("freeze_head", False)
    rest = {name: value for name, value in options.items() if name != "freeze_head"}
    trainer = make_trainer(folder, deepspeed=SHARDED, max_steps=3, **rest)
    head = trainer.model.lm_head.weight
    head.requires_grad_(not frozen)
    if loss != "none":
        patch_grpo(trainer, loss=loss)
    trainer.train()
    assert head.numel() == 0, "the head was never cut up"
    return [[float(x[n]) for n in NAMES] for x in trainer.state.log_history if "loss" in x]


def main(folder: str, cases: str) -> None:
    warnings.simplefilter("ignore")
    # compiled at the first collective, and a lock of a killed compilation is waited for without end
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    found = []
    for options in json.loads(cases):
        found.append({})
        for loss in ("none", "trl", "fused"):
            found[-1][loss] = steps(Path(folder), loss, options)
            gc.collect()
            # the next trainer brings a DeepSpeed configuration of its own
            AcceleratorState._reset_state()
    if int(os.environ["RANK"]) == 0:
        print("\n" + json.dumps({"cases": found}), flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
    leave(0)
