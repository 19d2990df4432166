"""Whole runs with `rollout.engine: vllm`: launch, rollouts, judge, packing, update, sync, save."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from polaris_fast.data import load_samples
from polaris_fast.embedded import build_tokenizer
from polaris_fast.model.load import load_causal_lm
from polaris_fast.rollout import SamplingParams
from polaris_fast.rollout.vllm.fleet import Fleet
from tests.runs import metrics_of, train
from tests.whole_checkpoint import save_whole, stored

from .serving import vllm_config


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    """A Qwen3.5 checkpoint with vision and MTP weights, and a tokenizer."""
    folder = tmp_path / "base"
    tokenizer = build_tokenizer([r.story or "" for r in load_samples("micro")], 600)
    save_whole(folder, dtype=torch.bfloat16, vocab_size=len(tokenizer))
    tokenizer.save_pretrained(folder)
    return folder


def test_three_steps_of_qwen3_5_in_bf16_on_two_servers(
    whole: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    status = train(
        run,
        model_name_or_path=whole,
        rollout__engine="vllm",
        rollout__vllm__num_servers=2,
        dtype="bfloat16",
        max_steps=3,
        top_k=0,
        save_steps=3,
        progress="true",
    )
    assert status == 0
    assert "log-probs of rollout engine and trainer differ by" in "".join(capfd.readouterr())
    lines = metrics_of(run)
    assert [line["step"] for line in lines] == [1, 2, 3]
    # bf16 kernels of two programs on the same weights: stale weights differ by far more
    assert all(line["sampling/sampling_logp_difference/mean"] < 0.02 for line in lines)
    for number in range(2):
        log = (run / f"vllm-{number}.log").read_text()
        assert log.count("Successfully reset prefix cache") == 3  # once before each step
    saved = run / "checkpoint-3"
    before, after = stored(whole), stored(saved)
    assert before.keys() == after.keys()
    kept = {name for name in before if torch.equal(before[name], after[name])}
    assert {name for name in before if name.startswith(("mtp.", "model.visual."))} <= kept
    check_served(saved, tmp_path)


def check_served(checkpoint: Path, log_dir: Path) -> None:
    """A server that loads the checkpoint draws by its weights, without being sent any."""
    config = vllm_config().model_copy(update={"dtype": "bfloat16"})
    model = load_causal_lm(checkpoint, dtype="bfloat16")
    prompt, params = [5, 6, 7], SamplingParams(max_completion_length=24)
    with Fleet(config, str(checkpoint), log_dir=log_dir, backend="gloo", text_only=True) as fleet:
        fleet.wait_ready(lambda: None)
        row = fleet.call(fleet.clients[0].generate(tuple(prompt), params, 1, 60.0))
    with torch.no_grad():
        logits = model(torch.tensor([prompt + row.token_ids])).logits[0].float()
    expected = logits.log_softmax(-1)[len(prompt) - 1 : -1]
    expected = expected.gather(-1, torch.tensor(row.token_ids)[:, None])[:, 0]
    assert (expected - torch.tensor(row.logps)).abs().mean() < 0.02
