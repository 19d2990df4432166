"""Which stories count as training stories, and what is said of prompts that a model has seen."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from polaris_fast.config_file import load_config
from polaris_fast.data import load_samples, with_thinking
from polaris_fast.evaluate.known_data import find_data
from polaris_fast.evaluate.models import ModelRef
from polaris_fast.evaluate.options import Options
from polaris_fast.types import UserError

HUB = ModelRef("hub", "some/model", None)


def write_data(path: Path, names: str, **more: Any) -> str:
    lines = [
        {"uid": name, "prompt": f"About {name}.", "story": f"It was {name}.", **more}
        for name in names
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def trained(folder: Path, data: str | None, **settings: Any) -> ModelRef:
    """A checkpoint of a run on this data."""
    folder.mkdir()
    tree = {"data": {"path": data, "eval_fraction": 0.0, **settings}}
    (folder / "config.yaml").write_text(json.dumps(tree))
    return ModelRef(folder.name, str(folder / "checkpoint-1"), folder)


def find(models: list[ModelRef], config: str | Path | None = None, **options: Any) -> Any:
    runs = [model.run_dir / "config.yaml" for model in models if model.run_dir is not None]
    given = Options([model.path for model in models], config=config and str(config), **options)
    loaded = load_config(config or (runs[0] if runs else None), given.overrides)
    return find_data(given, loaded, models)


def stories(found: Any) -> list[str]:
    return [record.story for record in found.training]


def test_the_bundled_samples_are_no_training_stories_of_a_hub_model(tmp_path):
    found = find([HUB], data=write_data(tmp_path / "test.jsonl", "xy"))
    assert found.training == []
    assert any("no training stories are known" in note for note in found.notes)
    with pytest.raises(UserError, match="--memorisation: needs training stories, and none are"):
        find([HUB], data=str(tmp_path / "test.jsonl"), memorisation=5)
    bare = find([HUB])
    assert bare.training == [] and not bare.held_out
    assert any("the prompts are of the bundled samples" in note for note in bare.notes)
    # a preset that names no data tells nothing, either
    assert find([HUB], "polaris_9b", data=str(tmp_path / "test.jsonl")).training == []


def test_a_run_without_data_was_trained_on_the_samples(tmp_path):
    known = {record.story for record in load_samples("micro")}
    found = find([trained(tmp_path / "run", None)])
    assert found.training and {record.story for record in found.training} <= known


def test_training_stories_are_named_by_an_option_or_the_run(tmp_path):
    own, other = write_data(tmp_path / "a.jsonl", "ab"), write_data(tmp_path / "c.jsonl", "c")
    test = write_data(tmp_path / "test.jsonl", "xy")
    config = tmp_path / "named.yaml"
    config.write_text(json.dumps({"data": {"path": own, "eval_fraction": 0.0}}))
    run = trained(tmp_path / "run", other)
    both = ["It was a.", "It was b."]
    assert stories(find([HUB], config, data=test)) == both
    overrides = {"data.path": own, "data.eval_fraction": "0"}
    assert stories(find([HUB], data=test, overrides=overrides)) == both
    assert stories(find([HUB], data=test, train_data=own)) == both
    assert stories(find([HUB, run], data=test)) == ["It was c."]
    assert stories(find([run], data=test, train_data=own)) == both


def test_reasoning_of_the_prompts_settles_thinking_for_a_model_without_a_run(tmp_path):
    test = write_data(tmp_path / "test.jsonl", "xy", reasoning="First x, then y.")
    train = write_data(tmp_path / "train.jsonl", "ab")
    found = find([HUB], data=test, train_data=train)
    config = load_config("polaris_9b", {"data.thinking": "null"}).data
    assert with_thinking(config, found.thinking).thinking is True
    run = find([trained(tmp_path / "run", train)], data=test)  # trained without
    assert with_thinking(config, run.thinking).thinking is False


def test_runs_that_share_their_stories_have_an_overlap_others_have_none(tmp_path):
    data = [
        write_data(tmp_path / f"{i}.jsonl", names) for i, names in enumerate(("ab", "ba", "cd"))
    ]
    one, same, other = (trained(tmp_path / f"run{i}", path) for i, path in enumerate(data))
    test = write_data(tmp_path / "test.jsonl", "xy")
    assert stories(find([one, same], data=test)) == ["It was a.", "It was b."]
    found = find([one, other], data=test)
    assert found.training == []
    assert any("the runs do not share their training stories" in note for note in found.notes)
    named = find([one, other], data=test, train_data=data[2])
    assert stories(named) == ["It was c.", "It was d."]
    with pytest.raises(UserError, match="the runs do not share them; name them: --train-data"):
        find([one, other], data=test, memorisation=5)


def test_held_out_prompts_that_another_run_was_trained_on_are_told(tmp_path):
    data = write_data(tmp_path / "data.jsonl", "abcd")
    one = trained(tmp_path / "one", data, eval_fraction=0.5)
    all_of_it = trained(tmp_path / "all", data)
    assert not any("are training prompts" in note for note in find([one]).notes)
    notes = find([one, all_of_it]).notes
    assert any("2 of the 2 prompts of the run's held-out data are training" in n for n in notes)


def test_a_training_story_under_another_prompt_and_uid_is_known(tmp_path):
    run = trained(tmp_path / "run", write_data(tmp_path / "train.jsonl", "ab"))
    lines = [
        {"uid": "other", "prompt": "Another.", "story": "It  was\na."},
        {"uid": "new", "prompt": "New.", "story": "It was new."},
    ]
    test = tmp_path / "test.jsonl"
    test.write_text("".join(json.dumps(line) + "\n" for line in lines))
    notes = find([run], data=str(test)).notes
    assert any(note.startswith("1 of the 2 prompts of") for note in notes)
