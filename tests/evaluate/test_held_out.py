"""The evaluation inside a training run takes the same measures as `polaris evaluate`."""

from __future__ import annotations

from pathlib import Path

import pytest

from polaris_fast.evaluate import evaluate
from polaris_fast.evaluate.held_out import write_evaluation
from polaris_fast.evaluate.measures import measure_text
from polaris_fast.progress import make_view
from polaris_fast.rollout import Completion
from polaris_fast.types import FinishReason, Scored, StoryRecord

STORIES = ("The old man sold his boat.", "The old man sold his boat.", "")


class Writes:
    """The three stories, one a row."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer

    def generate(self, requests, params, on_finish, on_token=None):
        for index in range(len(requests)):
            ids = self.tokenizer(STORIES[index])["input_ids"]
            on_finish(index, Completion(ids, None, None, FinishReason.STOP))


class Scores:
    """Every row at once."""

    def submit(self, row):
        row.outcome = Scored(0.5)

    def ready_groups(self, groups, *, fixed_order):
        return iter(groups)


def test_measures_of_the_text_are_logged_as_eval_text(tiny_writer):
    config = tiny_writer.config.model_copy(update={"num_eval_generations": 3})
    record = StoryRecord("s1", "Write a story.", 6)
    result = evaluate(
        [record],
        config,
        step=0,
        rollouts=Writes(tiny_writer.builder.tokenizer),
        builder=tiny_writer.builder,
        scorer=Scores(),
        view=make_view(False),
        check_stop=lambda: None,
    )
    metrics = result["metrics"]
    values = [measure_text(story, 6) for story in STORIES]
    assert metrics["eval/text/s_l"] == pytest.approx(sum(v["s_l"] for v in values) / 3) == 200 / 3
    assert metrics["eval/text/empty"] == pytest.approx(1 / 3)
    assert metrics["eval/text/distinct_1"] == values[0]["distinct_1"]  # of those with words
    # two are alike; the third is empty, and counts as little as in `polaris evaluate`
    assert metrics["eval/text/self_bleu"] == pytest.approx(1.0)


def test_an_evaluation_is_written_as_utf8_whatever_the_locale(tmp_path, monkeypatch):
    encodings = []
    write_text = Path.write_text

    def write(path, text, encoding=None, **rest):
        encodings.append(encoding)
        return write_text(path, text, encoding or "ascii", **rest)

    monkeypatch.setattr(Path, "write_text", write)
    write_evaluation(tmp_path, "end", {"story": "Zo\u00eb"})
    assert encodings == ["utf-8"]
    assert (tmp_path / "eval-end.json").read_bytes().decode() == '{"story": "Zo\u00eb"}'
