"""Full collections pass over what set-up made, and over nothing that a step made."""

from __future__ import annotations

import gc
import weakref

from polaris_fast.collector import setup_spared
from polaris_fast.trainer import Trainer
from tests.runs import train


class Knot:
    """Freed by the collector alone."""

    def __init__(self) -> None:
        self.me = self


def test_full_collections_look_at_later_objects_only():
    early = Knot()
    with setup_spared():
        late = Knot()
        seen = {id(thing) for thing in gc.get_objects()}
        assert id(late) in seen
        assert id(early) not in seen
    assert any(thing is early for thing in gc.get_objects())


def test_garbage_of_before_and_after_is_freed():
    before = weakref.ref(Knot())
    with setup_spared():
        assert before() is None
        after = weakref.ref(Knot())
        gc.collect()
        assert after() is None


def test_a_run_spares_its_setup_until_its_end(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(Trainer, "_setup", lambda self, stack: None)
    monkeypatch.setattr(Trainer, "_loop", lambda self: seen.append(gc.get_freeze_count()))
    assert train(tmp_path / "run", reward__function="tests.user_rewards:constant") == 0
    assert seen[0] > 0
    assert gc.get_freeze_count() == 0
