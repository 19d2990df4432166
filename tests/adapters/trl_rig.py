"""A real TRL GRPO trainer on a tiny model: ten steps on the CPU take about a second."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

V = 60
EOS, PAD = 1, 2


def save_model(folder: Path, family: str = "qwen3", **sizes: Any) -> Path:
    """A tiny model and its tokenizer, on disk: TRL loads the reference model from there."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from polaris_fast.model.tiny import tiny_model

    wide = {"vocab_size": V, "hidden_size": 32, "head_dim": 16, "linear_head_dim": 16,
            "num_layers": 4 if family == "qwen3_5" else 2, "initializer_range": 0.05,
            "eos_token_id": EOS, "pad_token_id": PAD}  # fmt: skip
    tiny_model(family, **(wide | sizes)).save_pretrained(folder)  # type: ignore[arg-type]
    words = {f"w{i}": i for i in range(V)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=f"w{EOS}", pad_token=f"w{PAD}", unk_token="w0"
    ).save_pretrained(folder)
    return folder


def reward(completion_ids: list[list[int]], **_: Any) -> list[float]:
    """The share of every third id: rows of a group differ, and the policy can learn it."""
    return [sum(token % 3 == 0 for token in ids) / len(ids) for ids in completion_ids]


def make_trainer(folder: Path, **options: Any) -> Any:
    """A `GRPOTrainer` on the model in `folder`, with updates large enough that ratios clip."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    peft = {"peft_config": options.pop("peft_config")} if "peft_config" in options else {}
    dtype = options.pop("dtype", torch.float32)
    trainer_class = options.pop("trainer_class", GRPOTrainer)
    config_class = options.pop("config_class", GRPOConfig)
    fixed: dict[str, Any] = {
        "output_dir": str(folder / "out"),
        "per_device_train_batch_size": 4,
        "num_generations": 4,
        "gradient_accumulation_steps": 2,
        "num_iterations": 2,
        "max_completion_length": 8,
        "max_steps": 10,
        # Adam divides by a gradient's own size and would blow rounding noise up to whole steps
        "optim": "sgd",
        "learning_rate": 0.05,
        "epsilon": 0.05,
        "temperature": 0.8,
        "logging_steps": 1,
        "report_to": [],
        "use_cpu": True,
        "bf16": False,
        "save_strategy": "no",
        "disable_tqdm": True,
        "gradient_checkpointing": False,
    }
    # prompts of different length: rows are padded on the left
    prompts = [f"w{5 + i} w{7 + i} w{9 + i}"[: 6 if i % 2 else None] for i in range(16)]
    return trainer_class(
        AutoModelForCausalLM.from_pretrained(folder, dtype=dtype),
        reward,
        args=config_class(**(fixed | options)),
        train_dataset=Dataset.from_dict({"prompt": prompts}),
        processing_class=AutoTokenizer.from_pretrained(folder),
        **peft,
    )


class Run:
    """What a training run left behind: every step's log and gradients."""

    def __init__(self, trainer: Any) -> None:
        from transformers import TrainerCallback

        self.gradients: list[dict[str, Tensor]] = []
        run = self

        class Watch(TrainerCallback):
            def on_pre_optimizer_step(self, args, state, control, model=None, **_):  # type: ignore[no-untyped-def]
                named = model.named_parameters()
                run.gradients.append({n: p.grad.clone() for n, p in named if p.grad is not None})

        trainer.add_callback(Watch())
        trainer.train()
        self.logs = trainer.state.log_history

    def metric(self, name: str) -> list[float]:
        """A metric of every step that has it."""
        return [log[name] for log in self.logs if name in log]


def largest_difference(a: Run, b: Run) -> dict[str, float]:
    """Per metric (and `gradient`), the largest difference at any step, over max(|value|, .1)."""
    assert len(a.logs) == len(b.logs) and len(a.gradients) == len(b.gradients) > 0
    worst: dict[str, float] = {}
    for ours, theirs in zip(a.logs, b.logs, strict=True):
        assert ours.keys() == theirs.keys()
        for name, value in theirs.items():
            if value is None or "time" in name or "per_second" in name or value != value:
                continue
            difference = abs(ours[name] - value) / max(abs(value), 0.1)
            worst[name] = max(worst.get(name, 0.0), difference)
    worst["gradient"] = max(
        gradient_difference(ours, theirs)
        for ours, theirs in zip(a.gradients, b.gradients, strict=True)
    )
    return worst


def gradient_difference(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    """||ours - theirs|| / ||theirs|| over all parameters together."""
    assert ours.keys() == theirs.keys()
    error = sum(float((ours[n] - g).double().square().sum()) for n, g in theirs.items())
    size = sum(float(g.double().square().sum()) for g in theirs.values())
    return (error / size) ** 0.5 if size else error
