"""The training-step benchmark: both trainers take the very same step, and the gate would tell."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.bench_step import PHASES, Measured, check, measure
from benchmarks.step_phases import Sample
from benchmarks.step_rows import GROUP, Setting, make_script, raise_next, reward, write_model

TINY = Setting("qwen3_5", 1_024, 32, scale=1_200.0)


@pytest.mark.filterwarnings("ignore")
def test_both_trainers_take_the_same_steps() -> None:
    pytest.importorskip("trl")
    found = measure(TINY, rounds=1)
    assert found.gradient_difference <= 1e-3
    for side in (found.ours, found.theirs):
        assert len(side) == 1
        assert all(getattr(side[0], phase) >= 0 for phase in PHASES)
        assert side[0].generation + side[0].training <= side[0].step
    assert found.ours[0].facts["gradient norm"] > 0


@pytest.mark.parametrize("fact", ["reward", "gradient norm"])
def test_the_gate_sees_another_step(fact: str) -> None:
    sample = Sample(1, 1, 1, 1, 1, 6, {"reward": 40.0, "gradient norm": 0.3})
    other = replace(sample, facts=sample.facts | {fact: 1.01 * sample.facts[fact]})
    side = {"w": torch.ones(3)}
    assert check(Measured([sample], [sample]), side, side) == 0
    with pytest.raises(AssertionError):
        check(Measured([sample], [other]), side, side)
    with pytest.raises(AssertionError):
        check(Measured([sample], [sample]), side, {"w": torch.tensor([1.0, 1.0, 1.1])})


def test_the_script_s_rows(tmp_path: Path) -> None:
    tokenizer = write_model(tmp_path, TINY)
    script = make_script(TINY, tokenizer)
    script.by_prompt = {(i,): i for i in range(len(script.prompts))}
    rows = [(i,) for i in range(len(script.prompts)) for _ in range(GROUP)]
    table = script.table(rows[::-1])
    assert table.shape == (script.num_rows, max(map(len, script.completions[-1])))
    assert table[0, : len(script.completions[-1][0])].tolist() == script.completions[-1][0]
    assert all(row[-1] == tokenizer.eos_token_id for group in script.completions for row in group)
    logits = 50 * torch.randn(script.num_rows, TINY.vocab_size)
    raise_next(logits, table[:, 0])
    assert torch.equal(logits.softmax(-1).max(-1).indices, table[:, 0])
    assert logits.softmax(-1).gather(-1, table[:, :1]).eq(1).all()


def test_the_reward_counts_vowels() -> None:
    assert reward(["", ""], ["Aab b", ""]) == [50.0, 0.0]
