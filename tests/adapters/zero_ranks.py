"""Run under torchrun: `zero_ranks FOLDER LOSS OPTIONS`, a TRL trainer under DeepSpeed ZeRO-3.

LOSS is `none` (TRL's own head), `trl` or `fused`; OPTIONS are JSON. Rank 0 prints the losses,
gradient norms and entropies of all steps as a line of JSON.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from pathlib import Path

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


def main(folder: str, loss: str, options: str) -> None:
    warnings.simplefilter("ignore")
    chosen = json.loads(options)
    freeze = chosen.pop("freeze_head", False)
    trainer = make_trainer(Path(folder), deepspeed=SHARDED, max_steps=4, **chosen)
    trainer.model.lm_head.weight.requires_grad_(not freeze)
    if loss != "none":
        patch_grpo(trainer, loss=loss)
    trainer.train()
    if int(os.environ["RANK"]) == 0:
        names = ("loss", "grad_norm", "entropy")
        logs = [
            [float(log[n]) for n in names] for log in trainer.state.log_history if "loss" in log
        ]
        print("\n" + json.dumps({"logs": logs}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
