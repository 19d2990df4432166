"""A whole run with `rollout.engine: vllm`: launch, rollouts, judge, packing, update, sync."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.runs import metrics_of, train


def test_three_steps_of_qwen3_5_in_bf16_on_two_servers(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    status = train(
        run,
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
    assert (run / "checkpoint-3" / "config.json").is_file()
    for number in range(2):
        log = (run / f"vllm-{number}.log").read_text()
        assert log.count("Successfully reset prefix cache") == 3  # once before each step
