"""A run's steps, judgements and money, by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from polaris_fast.config import Config, HRIConfig, JudgeConfig
from polaris_fast.plan.assumptions import Assumptions
from polaris_fast.plan.balance import Balance
from polaris_fast.plan.cost import num_evaluations, run_cost
from polaris_fast.plan.hardware import parse_gpus
from polaris_fast.plan.lengths import draw_steps, story_tokens
from polaris_fast.plan.timing import StepTime
from polaris_fast.run_evaluations import RunEvaluations
from polaris_fast.types import UserError

STEP = StepTime(
    (("generation", 60.0), ("forward and backward", 30.0)),
    Balance(4, 0.0, 0.0, 4.0, 1.0, 1.0),
    rollout_tokens=48 * 1_600.0,
    story_tokens=48 * 1_000.0,
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


def test_evaluations_and_canaries_are_judged_too() -> None:
    hri = HRIConfig(mode="off")
    judge = PRICED.model_copy(update={"canary_steps": 4, "injection_scan": False})
    plain = Config(judge=PRICED, hri=hri, max_steps=10)
    watched = Config(judge=judge, hri=hri, max_steps=10)
    evaluated = Config(judge=PRICED, hri=hri, max_steps=10, eval_steps=5, eval_on_end=True)
    machine = parse_gpus("A100-80G")
    costs = [
        run_cost(config, machine, STEP, Assumptions(), num_held_out=7)
        for config in (plain, watched, evaluated)
    ]
    # four samples of five canaries before the first step, one at the steps 4 and 8
    assert costs[1].judgements - costs[0].judgements == 5 * (4 + 2)
    # after step 5 and at the end
    assert costs[2].judgements - costs[0].judgements == 2 * 7 * evaluated.num_eval_generations
    each = (costs[2].judge_prompt_tokens - costs[0].judge_prompt_tokens) / (2 * 7 * 4)
    assert each == pytest.approx(4000)


@pytest.mark.parametrize(
    ("changes", "num_evaluations_of_ten"),
    [
        ({}, 0),
        ({"eval_on_start": True, "eval_on_end": True}, 2),
        ({"eval_steps": 5}, 2),
        ({"eval_steps": 5, "eval_on_end": True}, 2),
        ({"eval_steps": 3, "eval_on_end": True}, 4),
    ],
)
def test_evaluations_are_those_of_a_run(
    changes: dict[str, Any], num_evaluations_of_ten: int, tmp_path: Path
) -> None:
    config, done = Config.model_validate(changes), []
    run = RunEvaluations(
        config, tmp_path, evaluate=lambda: done.append(1) or {"metrics": {}},
        save=lambda: None, note=lambda line: None,
    )  # fmt: skip
    run.at_start()
    for step in range(1, 11):
        run.after_step(step, is_last=step == 10)
    run.at_end(10)
    assert num_evaluations(config, 10) == len(done) == num_evaluations_of_ten


def test_what_nobody_can_know_is_named() -> None:
    judge = {"resample_below_sigmas": 2.0, "noise_std": 0.05}
    changes = {"zero_spread_resample_rounds": 1, "eval_on_end": True, "max_steps": 10}
    config = Config.model_validate(changes | {"judge": PRICED.model_dump() | judge})
    cost = run_cost(config, parse_gpus("A100-80G"), STEP, Assumptions(), num_held_out=None)
    found = {key: item.words for item in cost.not_counted for key in item.keys}
    assert list(found) == [
        "zero_spread_resample_rounds", "eval_on_end", "judge.resample_below_sigmas",
        "judge.injection_scan", "judge.retry_budget", "judge.hedge_budget",
    ]  # fmt: skip
    assert "at most 80 more groups" in found["zero_spread_resample_rounds"]
    assert "at most 408" in found["judge.injection_scan"]
    local = run_cost(Config(), parse_gpus("A100-80G"), STEP, Assumptions())
    assert local.not_counted == ()


def test_the_judge_reads_no_thinking() -> None:
    lengths = [2_000, 1_000, 300]
    assert story_tokens(Config.model_validate({"data": {"thinking": False}}), lengths) == 3_300
    thinking = Config.model_validate({"data": {"thinking": True}})
    assert story_tokens(thinking, lengths) == pytest.approx(3_000 - 2 * 650, abs=2)
    targets = [1_500]
    drawn = {
        on: [
            n
            for step in draw_steps(
                Config.model_validate({"data": {"thinking": on}}), 50, targets=targets
            )
            for group in step
            for n in group
        ]
        for on in (False, True)
    }
    assert story_tokens(thinking, drawn[True]) == pytest.approx(sum(drawn[False]), rel=0.02)


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
