"""One whole training step, phase by phase: TRL 1.16's `GRPOTrainer` against this trainer.

    OMP_NUM_THREADS=2 pytest benchmarks/bench_step.py --benchmark-only -s
    OMP_NUM_THREADS=2 pytest benchmarks/bench_step.py --benchmark-only -s -k "qwen3_5 and small"

36 rows of the recipe's length mix in groups of 6, fp32, on the CPU. Both start from the same
weights and write, score and train the very same tokens (`step_rows`). The trainers take turns, each
in a process of its own. What they report must agree at every step, and the first step's gradients.
"""

from __future__ import annotations

import os
import statistics
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.result_table import Table
from benchmarks.step_ours import OurSteps, our_config
from benchmarks.step_phases import Sample
from benchmarks.step_rows import Script, Setting, make_script, write_model, write_records
from benchmarks.step_trl import TheirStep
from polaris_fast.config import Config
from polaris_fast.data import load_records, with_thinking
from polaris_fast.prompts import PromptBuilder

ROUNDS = 3
# The families' own vocabularies, and the embedded model's. Where the head is wide, rows are
# shorter and the body is narrower, or a step of TRL's takes minutes.
SETTINGS = {
    "qwen3_5-small": Setting("qwen3_5", 1_024, 128, scale=36.0),
    "qwen3-small": Setting("qwen3", 1_024, 128, scale=36.0),
    "qwen3_5-full": Setting("qwen3_5", 248_320, 64, scale=500.0),
    "qwen3-full": Setting("qwen3", 151_936, 64, scale=500.0),
}
TRL_BATCH_SIZE = 18  # rows of a forward and backward; the fastest of 4, 6, 12, 18 and 36 here
GOALS = {"generation": 1.3, "training": 2.0, "step": 1.5}
PHASES = {
    "generation": "generation",
    "reward": "reward",
    "forward": "log-probs and loss",
    "backward": "backward",
    "optimizer": "optimizer",
    "training": "log-probs to optimizer",
    "rest": "everything else",
    "step": "whole step",
}
LEAST_MS = 0.5
MOST_DIFFERENCE = 1e-3  # relative, of gradients and of what both sides report

pytestmark = [
    pytest.mark.timeout(1800),
    # what peers import warns of its own deprecations
    pytest.mark.filterwarnings("ignore"),
]


@dataclass
class Measured:
    """Samples of both sides in the order they were taken, without the first step's."""

    ours: list[Sample] = field(default_factory=list)
    theirs: list[Sample] = field(default_factory=list)
    gradient_difference: float = float("nan")

    def median(self, side: list[Sample], phase: str) -> float:
        return statistics.median(getattr(sample, phase) for sample in side)

    def ratio(self, phase: str) -> float:
        """TRL's median over ours."""
        return self.median(self.theirs, phase) / max(self.median(self.ours, phase), 1e-3)


@pytest.fixture(scope="module")
def table() -> Iterator[Table]:
    """Printed and kept when all settings are done."""
    columns = ("model", "phase", "TRL 1.16 ms", "polaris_fast ms", "TRL / ours", "goal", "verdict")
    threads = os.environ.get("OMP_NUM_THREADS", str(torch.get_num_threads()))
    title = (
        "One training step, the same 36 rows on both sides, fp32, CPU, "
        f"{threads} thread(s): medians of {ROUNDS}"
    )
    found = Table("step", title, columns, num_keys=2)
    yield found
    found.finish()


@pytest.mark.parametrize("name", SETTINGS)
def test_training_step(benchmark: Any, table: Table, name: str) -> None:
    pytest.importorskip("trl")
    setting = SETTINGS[name]
    found = benchmark.pedantic(measure, (setting,), {"rounds": ROUNDS}, rounds=1)
    for phase, title in PHASES.items():
        table.add(setting.name, title, *_cells(found, phase))
    benchmark.extra_info["gradient difference"] = found.gradient_difference
    for phase, goal in GOALS.items():
        assert found.ratio(phase) >= goal, (phase, found.ratio(phase))


def measure(setting: Setting, *, rounds: int, batch_size: int = TRL_BATCH_SIZE) -> Measured:
    """A first step of each side, then `rounds` of both in turns: O T, T O, O T, ..."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        tokenizer = write_model(folder, setting)
        script = make_script(setting, tokenizer)
        write_records(folder / "records.jsonl", script)
        config = our_config(folder, script)
        texts = index_prompts(script, config, tokenizer)
        found = Measured()
        with TheirStep(folder, texts, script, batch_size=batch_size) as theirs:
            order = "OT" + "".join("OT" if i % 2 == 0 else "TO" for i in range(rounds))
            turns = [len(part) for part in order.split("O")[1:]]

            def between(sample: Sample) -> bool:
                found.ours.append(sample)
                found.theirs += [theirs.step() for _ in range(turns[len(found.ours) - 1])]
                return len(found.ours) < len(turns)

            ours = OurSteps(config, script, between)
            ours.run()
            found.gradient_difference = check(found, ours.gradients, theirs.gradients())
    del found.ours[0], found.theirs[0]
    return found


def index_prompts(script: Script, config: Config, tokenizer: Any) -> list[str]:
    """Tell the script its prompts' token ids; returns their texts as TRL is to tokenize them."""
    records = load_records(config.data)
    data = with_thinking(config.data, records)
    builder = PromptBuilder(tokenizer, config.model_copy(update={"data": data}))
    prompts = [tuple(builder.prompt_ids(record)) for record in records]
    script.by_prompt = {prompt: i for i, prompt in enumerate(prompts)}
    texts = [tokenizer.decode(list(prompt)) for prompt in prompts]
    assert [tuple(ids) for ids in tokenizer(texts)["input_ids"]] == prompts
    return texts


def check(found: Measured, ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    """AssertionError where the sides differ; returns the difference of the first gradients."""
    from tests.adapters.trl_rig import gradient_difference

    for mine, other in zip(found.ours, found.theirs, strict=True):
        assert mine.facts == pytest.approx(other.facts, rel=MOST_DIFFERENCE, abs=1e-5)
    difference = gradient_difference(ours, theirs)
    assert difference <= MOST_DIFFERENCE
    return difference


def _cells(found: Measured, phase: str) -> tuple[str, ...]:
    """Both medians, their ratio and its spread over the rounds, and the verdict."""
    theirs, ours = (found.median(side, phase) for side in (found.theirs, found.ours))
    cells = [f"{theirs:,.1f}", f"{ours:,.1f}"]
    if ours < LEAST_MS:  # nothing to compare with
        return (*cells, "", "", "")
    pairs = zip(found.theirs, found.ours, strict=True)
    ratios = [getattr(t, phase) / getattr(o, phase) for t, o in pairs]
    goal = GOALS.get(phase)
    verdict = "" if goal is None else "met" if found.ratio(phase) >= goal else "missed"
    return (
        *cells,
        f"{found.ratio(phase):.2f}x ({min(ratios):.2f}-{max(ratios):.2f})",
        "" if goal is None else f"{goal}x",
        verdict,
    )
