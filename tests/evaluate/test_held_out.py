"""The evaluation inside a training run takes the same measures as `polaris evaluate`."""

from __future__ import annotations

from pathlib import Path

import pytest

from polaris_fast.evaluate import evaluate
from polaris_fast.evaluate.held_out import write_evaluation
from polaris_fast.evaluate.measures import measure_text
from polaris_fast.groups import row_seed
from polaris_fast.progress import make_view
from polaris_fast.rollout import Completion
from polaris_fast.types import FinishReason, Rejected, Scored, StoryRecord

STORIES = ("The old man sold his boat.", "The old man sold his boat.", "")


class Writes:
    """The three stories, one a row."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        self.seeds = []

    def generate(self, requests, params, on_finish, on_token=None):
        self.seeds.append([request.seed for request in requests])
        for index in range(len(requests)):
            ids = self.tokenizer(STORIES[index])["input_ids"]
            on_finish(index, Completion(ids, None, None, FinishReason.STOP))


class Scores:
    """Every row at once, but for those of a slot."""

    def __init__(self, refused=None):
        self.refused = refused

    def submit(self, row):
        row.outcome = Rejected("not here") if row.slot == self.refused else Scored(0.5)

    def ready_groups(self, groups, *, fixed_order, may_stop):
        assert not may_stop
        return iter(groups)


def look(writer, *, step=0, rollouts=None, scorer=None, view=None):
    """An evaluation of three stories to one prompt."""
    return evaluate(
        [StoryRecord("s1", "Write a story.", 6)],
        writer.config.model_copy(update={"num_eval_generations": 3}),
        step=step,
        rollouts=rollouts or Writes(writer.builder.tokenizer),
        builder=writer.builder,
        scorer=scorer or Scores(),
        view=view or make_view(False),
        check_stop=lambda: None,
    )


def test_every_evaluation_draws_the_same_luck_under_names_of_its_own(tiny_writer):
    rollouts = Writes(tiny_writer.builder.tokenizer)
    results = [look(tiny_writer, step=step, rollouts=rollouts) for step in (10, 20)]
    seed = tiny_writer.config.seed
    assert rollouts.seeds == [[row_seed(seed, f"eval/s1/{slot}") for slot in range(3)]] * 2
    names = [[story["row_id"] for story in result["stories"]] for result in results]
    assert names == [[f"eval/{step}/s1/{slot}" for slot in range(3)] for step in (10, 20)]


def test_stories_without_a_score_are_counted_and_told(tiny_writer, monkeypatch):
    view, warnings = make_view(False), []
    monkeypatch.setattr(view, "warn", warnings.append)
    assert look(tiny_writer, view=view)["num_scored"] == 3 and not warnings
    result = look(tiny_writer, step=4, scorer=Scores(refused=1), view=view)
    assert (result["num_scored"], result["num_stories"]) == (2, 3)
    (warning,) = warnings
    assert "step 4: 1 of 3 stories could not be scored (first reason: not here)" in warning


def test_measures_of_the_text_are_logged_as_eval_text(tiny_writer):
    metrics = look(tiny_writer)["metrics"]
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


def test_an_evaluation_with_half_a_surrogate_pair_is_written(tmp_path):
    write_evaluation(tmp_path, "end", {"reason": "a\ud800"})
    assert (tmp_path / "eval-end.json").read_text() == '{"reason": "a?"}'
