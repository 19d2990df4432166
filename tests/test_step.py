"""One step's gradients against plain transformers: whatever the order, whoever dropped out."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

import pytest
import torch

from polaris_fast.config import Config
from polaris_fast.config_file import load_config
from polaris_fast.embedded import build_tokenizer
from polaris_fast.engine import SingleEngine, UpdateResult
from polaris_fast.judge import JudgeJob
from polaris_fast.model.load import prepare_model
from polaris_fast.model.tiny import tiny_model
from polaris_fast.progress import make_view
from polaris_fast.prompts import PromptBuilder
from polaris_fast.rollout import Completion, RolloutRequest, SamplingParams
from polaris_fast.scoring import StepScorer
from polaris_fast.slots import Slots, SlotTrainer
from polaris_fast.step import GRPOStep, StepResult
from polaris_fast.types import (
    Failed,
    FinishReason,
    Outcome,
    Row,
    RowKind,
    Scored,
    StoryRecord,
    UserError,
)

RECORDS = [
    StoryRecord(f"r{i}", f"Write about {thing}.", 5, f"The {thing} was old. It slept.")
    for i, thing in enumerate(["the sea", "a dog", "rain"])
]
TOKENIZER = build_tokenizer([r.story or "" for r in RECORDS], 300)
Score = Callable[[str], Outcome]


class FixedRollouts:
    """Random completions that are the same in every test."""

    serves_all_ranks = False

    def close(self) -> None:
        """Nothing is held."""

    def generate(
        self,
        requests: Sequence[RolloutRequest],
        params: SamplingParams,
        on_finish: Callable[[int, Completion], None],
        on_token: Callable[[int], None] | None = None,
    ) -> None:
        for index, request in enumerate(requests):
            rng = random.Random(request.seed)
            ids = [rng.randrange(5, 290) for _ in range(rng.randrange(3, 40))]
            logps = [0.0] * len(ids)
            on_finish(index, Completion(ids, logps, logps, FinishReason.STOP))


class Scripted:
    """Outcomes by row id."""

    def __init__(self, score: Score) -> None:
        self.score = score

    def submit(self, job: JudgeJob) -> Future[Outcome]:
        future: Future[Outcome] = Future()
        future.set_result(self.score(job.job_id))
        return future

    def outdated(self, group: str) -> frozenset[str]:
        return frozenset()


class Recording(SingleEngine):
    """Keeps the gradients an update would have used, and does not update."""

    def update(self, grad_scale: float) -> UpdateResult:
        self.grads = {
            name: p.grad * grad_scale
            for name, p in self.model.named_parameters()
            if p.grad is not None
        }
        self.discard_gradients()
        return UpdateResult(1.0, None)


def step_config(**overrides: str) -> Config:
    keys = {
        "prompts_per_step": "3",
        "num_generations": "5",
        "temperature": "0.8",
        "repetition_penalty": "1.0",
        "packing.max_tokens_per_microbatch": "400",
        "max_prompt_length": "100",
        "max_completion_length": "64",
        "reward.function": "given:by_the_script",
        "hri.num_judge_samples": "1",
        "judge.max_failed_fraction": "0.9",
    }
    return load_config(None, keys | {k.replace("__", "."): v for k, v in overrides.items()})


def _good(row_id: str) -> Outcome:
    return Scored(quality=random.Random(row_id).uniform(-1, 1))


def make_engine(config: Config, kind: type[Recording] = Recording) -> Recording:
    model = prepare_model(tiny_model("qwen3_5", vocab_size=300, seed=1))
    return kind(model, config, config.loss_spec(), total_updates=10)


def _run(score: Score, config: Config, order: Any = None) -> tuple[StepResult, Recording]:
    engine = make_engine(config)
    return run_step(score, config, SlotTrainer(engine, config), order), engine


def run_step(
    score: Score,
    config: Config,
    slots: Slots,
    order: Any = None,
    rollouts: Any = None,
    check_stop: Callable[[], None] = lambda: None,
) -> StepResult:
    """One step over `RECORDS` with scripted outcomes."""

    class Ordered(StepScorer):
        def ready_groups(self, groups: Any, *, fixed_order: bool) -> Any:
            ready = list(super().ready_groups(groups, fixed_order=True))
            return iter(sorted(ready, key=order) if order else ready)

    step = GRPOStep(
        config,
        slots=slots,
        rollouts=rollouts or FixedRollouts(),
        builder=PromptBuilder(TOKENIZER, config),
        spec=config.loss_spec(),
        make_scorer=lambda clock: Ordered(Scripted(score), config, clock=clock),  # type: ignore[arg-type]
        view=make_view(False),
        check_stop=check_stop,
        fixed_order=True,
    )
    return step.run(20, 0.4, lambda n: RECORDS[n % 3])


def _expected(
    trained: dict[str, float], rows: list[Row], temperature: float, cap: float | None = None
) -> dict[str, Any]:
    """d/dw of -sum_t A log p(t) / N by transformers' own forward of each row alone.

    With `cap` a sampled token's term is weighted by min(p / p of the rollout engine, cap).
    """
    model = tiny_model("qwen3_5", vocab_size=300, seed=1)
    kept = [row for row in rows if row.row_id in trained]
    num_tokens = sum(len(row.completion_ids) for row in kept)
    for row in kept:
        ids = torch.tensor([row.prompt_ids + row.completion_ids])
        logits = model(ids, use_cache=False).logits[0] / temperature
        first = len(row.prompt_ids) - 1
        logps = logits[first:-1].log_softmax(-1)
        chosen = logps.gather(-1, torch.tensor(row.completion_ids)[:, None])
        if cap is not None and row.kind is RowKind.POLICY:
            ratio = (chosen.detach() - torch.tensor(row.rollout_logps)[:, None]).exp()
            chosen = chosen * ratio.clamp(max=cap)
        (-trained[row.row_id] * chosen.sum() / num_tokens).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def _advantages(rows: list[Row], human_weight: float) -> dict[str, float]:
    """Advantages with a human row (arXiv 2606.04095), by the statistics module."""
    result = {}
    for group in {row.group for row in rows}:
        scored = [r for r in rows if r.group == group and isinstance(r.outcome, Scored)]
        policy = [r.outcome.quality for r in scored if r.kind is RowKind.POLICY]
        if len(policy) < 3 or len(set(policy)) == 1:
            continue
        mean, std = statistics.fmean(policy), statistics.stdev(policy)
        for row in scored:
            weight = human_weight if row.kind is RowKind.HUMAN else 1.0
            result[row.row_id] = weight * (row.outcome.quality - mean) / (std + 1e-6)
    return result


def _assert_same(got: dict[str, Any], expected: dict[str, Any], tolerance: float) -> None:
    assert got.keys() == expected.keys()
    whole = torch.cat([g.flatten() for g in expected.values()]).norm()
    for name, grad in expected.items():
        # Gate gradients nearly vanish on random weights: rounding is measured against the whole.
        limit = tolerance * (grad.norm() + 1e-3 * whole)
        assert (got[name] - grad).norm() <= limit, name


def _failing(*bad: str) -> Score:
    return lambda row_id: Failed("timed out") if row_id in bad else _good(row_id)


CASES: dict[str, Score] = {
    "all scored": _good,
    "one row failed": _failing("20/1/2"),
    "a human row failed": _failing("20/0/4"),
    "a group has too few scored rows": _failing("20/1/0", "20/1/1"),
    "a group has no spread": lambda i: Scored(0.5) if i.startswith("20/2/") else _good(i),
}


@pytest.mark.parametrize("name", CASES)
def test_gradients_are_those_of_the_rows_that_count_over_their_tokens(name: str) -> None:
    config = step_config()
    result, engine = _run(CASES[name], config)
    trained = _advantages(result.rows, 0.4)
    assert {row.row_id for row in result.rows if row.trained} == trained.keys()
    _assert_same(engine.grads, _expected(trained, result.rows, config.temperature), 2e-4)


class DriftedRollouts(FixedRollouts):
    """Log-probs of an engine that is off by its own amount on every token."""

    def generate(self, requests: Any, params: Any, on_finish: Any, on_token: Any = None) -> None:
        def finish(index: int, completion: Completion) -> None:
            rng = random.Random(index)
            logps = [-rng.uniform(4, 8) for _ in completion.completion_ids]
            on_finish(index, replace(completion, rollout_logps=logps))

        super().generate(requests, params, finish, on_token)


def test_tokens_are_corrected_for_what_the_rollout_engine_gave_them() -> None:
    config = step_config(is_correction="token_truncate", is_cap="1.5", loss_type="reinforce")
    engine = make_engine(config)
    result = run_step(_good, config, SlotTrainer(engine, config), rollouts=DriftedRollouts())
    trained = _advantages(result.rows, 0.4)
    expected = _expected(trained, result.rows, config.temperature, cap=1.5)
    _assert_same(engine.grads, expected, 2e-4)


def test_a_correction_without_the_engines_log_probs_stops() -> None:
    class Silent(FixedRollouts):
        def generate(self, requests: Any, params: Any, on_finish: Any, on_token: Any = None) -> Any:
            drop = lambda i, c: on_finish(i, replace(c, rollout_logps=None, sampler_logps=None))
            super().generate(requests, params, drop, on_token)

    config = step_config(is_correction="geometric_mask")
    slots = SlotTrainer(make_engine(config), config)
    with pytest.raises(UserError, match="but row 20/0/0 came without any; set them to none"):
        run_step(_good, config, slots, rollouts=Silent())


@pytest.mark.parametrize("name", ["all scored", "a group has too few scored rows"])
def test_the_order_of_groups_does_not_change_the_gradient(name: str) -> None:
    in_order = _run(CASES[name], step_config())[1].grads
    reverse = _run(CASES[name], step_config(), order=lambda group: -group.index)[1].grads
    _assert_same(reverse, in_order, 1e-6)


def test_the_token_budget_does_not_change_the_gradient() -> None:
    small = _run(_good, step_config())[1].grads
    large = _run(_good, step_config(packing__max_tokens_per_microbatch="100000"))[1].grads
    _assert_same(small, large, 1e-5)


def test_luffy_counts_the_human_row_in_the_statistics() -> None:
    result, _ = _run(_good, step_config(hri__mode="luffy"))
    for group in result.groups:
        rewards = [r.outcome.quality for r in group.rows if isinstance(r.outcome, Scored)]
        mean, std = statistics.fmean(rewards), statistics.stdev(rewards)
        for row in group.rows:
            assert isinstance(row.outcome, Scored)
            expected = (row.outcome.quality - mean) / (std + 1e-6)
            assert row.advantage == pytest.approx(expected, rel=1e-5)


def test_flat_groups_are_replaced_by_new_prompts_when_asked() -> None:
    def score(row_id: str) -> Outcome:
        return Scored(0.5) if row_id.split("/")[1] in "01" else _good(row_id)

    result, _ = _run(score, step_config(zero_spread_resample_rounds="2"))
    assert [g.dropped for g in result.groups] == ["zero_spread"] * 2 + [None] * 3
    assert result.prompts_used == 5


def test_a_step_that_is_abandoned_leaves_no_gradient() -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    config = step_config()
    model = prepare_model(tiny_model("qwen3_5", vocab_size=300))
    engine = Recording(model, config, config.loss_spec(), total_updates=1)
    healthy, calls = engine.backward, []

    def second_fails(*parts: Any) -> Any:
        calls.append(1)
        return stop() if len(calls) > 1 else healthy(*parts)

    engine.backward = second_fails  # type: ignore[method-assign]
    step = GRPOStep(
        config,
        slots=SlotTrainer(engine, config),
        rollouts=FixedRollouts(),
        builder=PromptBuilder(TOKENIZER, config),
        spec=config.loss_spec(),
        make_scorer=lambda clock: StepScorer(Scripted(_good), config, clock=clock),  # type: ignore[arg-type]
        view=make_view(False),
        check_stop=lambda: None,
        fixed_order=True,
    )
    with pytest.raises(KeyboardInterrupt):
        step.run(20, 0.4, lambda n: RECORDS[n])
    assert all(p.grad is None for p in model.parameters())
