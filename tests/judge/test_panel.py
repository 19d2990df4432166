"""Rows of one group are scored by one judge."""

from __future__ import annotations

from polaris_fast.judge.flow import panel as panel_module
from polaris_fast.judge.flow.panel import GroupPanel, Tier


def test_a_refusal_moves_the_whole_group() -> None:
    panel = GroupPanel(has_fallback=True)
    for job_id in ("0/1/0", "0/1/1", "0/1/2"):
        assert panel.assign("0/1", job_id) is Tier.MAIN
    panel.scored("0/1", "0/1/0", Tier.MAIN, "a")
    panel.scored("0/2", "0/2/0", Tier.MAIN, "a")
    assert panel.refused("0/1")
    assert panel.assign("0/1", "0/1/1") is Tier.FALLBACK
    assert panel.assign("0/2", "0/2/1") is Tier.MAIN
    assert panel.outdated("0/1") == {"0/1/0"}
    assert panel.outdated("0/2") == panel.outdated("unknown") == frozenset()
    panel.scored("0/1", "0/1/2", Tier.MAIN, "a")  # was under way when the group moved
    assert panel.outdated("0/1") == {"0/1/0", "0/1/2"}
    for job_id in ("0/1/0", "0/1/2"):
        assert panel.assign("0/1", job_id) is Tier.FALLBACK
    assert panel.outdated("0/1") == frozenset()  # asked for again: it may fail, but is not due


def test_without_a_fallback_nothing_moves() -> None:
    panel = GroupPanel(has_fallback=False)
    panel.scored("0/1", "0/1/0", Tier.MAIN, "a")
    assert not panel.refused("0/1")
    assert panel.assign("0/1", "0/1/1") is Tier.MAIN
    assert panel.outdated("0/1") == frozenset()


def test_a_snapshot_that_changes_within_a_group_is_told() -> None:
    panel = GroupPanel(has_fallback=True)
    assert not panel.scored("0/1", "0/1/0", Tier.MAIN, "model-05")
    assert not panel.scored("0/2", "0/2/0", Tier.MAIN, "model-06")
    assert panel.scored("0/1", "0/1/1", Tier.MAIN, "model-06")
    panel.refused("0/1")
    assert not panel.scored("0/1", "0/1/0", Tier.FALLBACK, "other")  # its own judge's first


def test_jobs_without_a_group_stand_alone() -> None:
    panel = GroupPanel(has_fallback=True)
    assert panel.refused(None)
    assert panel.assign(None, "x") is Tier.MAIN
    assert not panel.scored(None, "x", Tier.FALLBACK, "a")


def test_old_groups_are_forgotten(monkeypatch) -> None:
    monkeypatch.setattr(panel_module, "REMEMBERED", 10)
    panel = GroupPanel(has_fallback=True)
    for n in range(100):
        panel.assign(str(n), f"{n}/0")
    assert len(panel._groups) == 10


def test_groups_of_a_fallback_that_was_given_up_go_back() -> None:
    panel = GroupPanel(has_fallback=True)
    panel.scored("0/1", "0/1/0", Tier.MAIN, "a")
    panel.refused("0/1")
    panel.scored("0/1", "0/1/1", Tier.FALLBACK, "b")
    panel.lose_fallback()
    assert panel.outdated("0/1") == {"0/1/1"}
    assert panel.assign("0/1", "0/1/1") is Tier.MAIN
    assert not panel.scored("0/1", "0/1/1", Tier.MAIN, "a")
    assert not panel.refused("0/1")
    assert panel.assign("0/1", "0/1/2") is Tier.MAIN
