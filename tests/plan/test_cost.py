"""A run's steps, judgements and money, by hand."""

from __future__ import annotations

import pytest

from polaris_fast.config import Config, HRIConfig, JudgeConfig
from polaris_fast.plan.assumptions import Assumptions
from polaris_fast.plan.balance import Balance
from polaris_fast.plan.cost import run_cost
from polaris_fast.plan.hardware import parse_gpus
from polaris_fast.plan.timing import StepTime
from polaris_fast.types import UserError

STEP = StepTime(
    (("generation", 60.0), ("forward and backward", 30.0)),
    Balance(4, 0.0, 0.0, 4.0, 1.0, 1.0),
    rollout_tokens=48 * 1_000.0,
    train_tokens=48 * 1_200.0,
)
PRICED = JudgeConfig(base_url="https://judge.example/v1", price_input=2.0, price_output=10.0)


def test_a_run_by_hand() -> None:
    config = Config(prompts_per_step=8, num_generations=6, judge=PRICED)
    assumed = Assumptions(gpu_hour_usd=2.0, judge_rubric_tokens=3000, judge_answer_tokens=500)
    cost = run_cost(config, parse_gpus("4xA100-80G"), STEP, assumed, num_records=80)
    assert cost.num_steps == 10
    assert cost.hours == pytest.approx(10 * 90 / 3600)
    assert cost.gpu_usd == pytest.approx(4 * cost.hours * 2.0)
    # 6 rollouts of each prompt in the first step, 5 in the others; 80 human stories 3 times
    assert cost.judgements == 8 * 6 + 9 * 8 * 5 + 80 * 3
    assert cost.judge_prompt_tokens == cost.judgements * 4000
    assert cost.judge_usd == pytest.approx(cost.judgements * (4000 * 2 + 500 * 10) / 1e6)
    assert cost.total_usd == pytest.approx(cost.gpu_usd + cost.judge_usd)  # type: ignore[operator]


def test_cached_rubrics_cost_less() -> None:
    judge = PRICED.model_copy(update={"price_cached_input": 0.5})
    config = Config(judge=judge, hri=HRIConfig(mode="off"), max_steps=1)
    machine = parse_gpus("A100-80G")
    full = run_cost(config, machine, STEP, Assumptions(judge_cached_share=0))
    cached = run_cost(config, machine, STEP, Assumptions(judge_cached_share=1))
    assert full.judge_usd is not None and cached.judge_usd is not None
    assert full.judge_usd - cached.judge_usd == pytest.approx(48 * 3000 * 1.5 / 1e6)


def test_what_has_no_price_stays_unknown() -> None:
    judge = PRICED.model_copy(update={"price_input": None, "price_output": None})
    cost = run_cost(Config(judge=judge), parse_gpus("A100-80G"), STEP, Assumptions())
    assert (cost.gpu_usd, cost.judge_usd, cost.total_usd) == (None, None, None)


def test_the_local_judge_is_free() -> None:
    assert run_cost(Config(), parse_gpus("A100-80G"), STEP, Assumptions()).judge_usd == 0.0


@pytest.mark.parametrize("change", ["mfu", "mfu=fast", "mfu=-1", "speed=2", "mfu=inf"])
def test_a_wrong_assumption_is_refused_with_the_names(change: str) -> None:
    with pytest.raises(UserError, match=r"--assume.*NAME=VALUE.*mfu, head_mfu"):
        Assumptions().with_changes([change])
