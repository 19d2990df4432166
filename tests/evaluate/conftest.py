"""A tiny model in a folder of its own, and the writer that asks it."""

from __future__ import annotations

from pathlib import Path

import pytest

from polaris_fast.config_file import load_config
from polaris_fast.data import load_samples
from polaris_fast.embedded import build_tokenizer
from polaris_fast.evaluate.models import find_models, with_fingerprints
from polaris_fast.evaluate.tasks import make_tasks
from polaris_fast.evaluate.writing import Writer, make_writer
from polaris_fast.model.tiny import tiny_model


def save_model(folder: Path, seed: int) -> Path:
    """An untrained Qwen3 with the embedded model's tokenizer."""
    texts = [text for r in load_samples("micro") for text in (r.prompt, r.story or "")]
    tokenizer = build_tokenizer(texts, 400)
    model = tiny_model("qwen3", vocab_size=len(tokenizer), seed=seed)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="package")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two of different weights."""
    folder = tmp_path_factory.mktemp("models")
    return save_model(folder / "one", 1), save_model(folder / "two", 2)


@pytest.fixture
def tiny_writer(tiny_models: tuple[Path, Path]) -> Writer:
    """Asks the first tiny model for two short stories."""
    from polaris_fast.prompts import load_tokenizer

    model = with_fingerprints(find_models([str(tiny_models[0])]))[0]
    tasks = make_tasks(load_samples("micro")[:2], words=None, num_prompts=None, num_samples=1, seed=0)  # fmt: skip # noqa: E501
    config = load_config(None, {"data.thinking": "false"})
    return make_writer(
        model, load_tokenizer(model.path), config, tasks, stop_ids=frozenset(), limit=None
    )
