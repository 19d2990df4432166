"""A step's rows of one group share their judge, also when it refuses one of them late."""

from __future__ import annotations

import pytest

from benchmarks import scripted_endpoint as play
from benchmarks.scripted_endpoint import ScriptedServer
from polaris_fast.config_file import load_config
from polaris_fast.judge import Backoff, JudgePool
from polaris_fast.scoring import StepScorer
from polaris_fast.types import Group, Rejected, Row, RowKind, Scored, StoryRecord

RECORD = StoryRecord(uid="r", prompt="p", target_word_count=5)


def _groups() -> list[Group]:
    """Two groups; in the first, the last story to be answered is refused."""
    groups = []
    for g in range(2):
        rows = [Row(f"0/{g}/{s}", g, s, RowKind.POLICY, RECORD, [1]) for s in range(4)]
        for row in rows:
            row.story = f"A story, {g} {row.slot}."
        groups.append(Group(g, RECORD, rows))
    return groups


@pytest.mark.parametrize("fixed_order", [True, False])
@pytest.mark.parametrize("fallback_refuses_too", [False, True])
def test_a_refused_row_takes_its_whole_group_to_the_fallback(
    fixed_order: bool, fallback_refuses_too: bool
) -> None:
    refused = "A story, 0 3."
    late = [play.slow(0.05, play.refusal())] * 2
    also = [play.refusal()] * 2 if fallback_refuses_too else []
    with (
        ScriptedServer(lambda s: late if s == refused else [], default=play.ok(40)) as main,
        ScriptedServer(lambda s: also if s == refused else [], default=play.ok(70)) as other,
    ):
        config = load_config(
            None,
            {
                "judge.base_url": main.base_url,
                "judge.check_at_start": "false",
                "judge.max_failed_fraction": "0.2",
                "judge.fallback.base_url": other.base_url,
                "judge.fallback.model": "b",
            },
        )
        groups = _groups()
        with JudgePool(config.judge, backoff=Backoff(0.002, 0.02)) as pool:
            scorer = StepScorer(pool, config)
            for group in groups:
                for row in group.rows:
                    scorer.submit(row)
            ready = list(scorer.ready_groups(groups, fixed_order=fixed_order))
    assert sorted(group.index for group in ready) == [0, 1]
    first, second = ([row.outcome for row in group.rows] for group in groups)
    assert [o.quality for o in first[:3] if isinstance(o, Scored)] == pytest.approx([0.7] * 3)
    assert [o.quality for o in second if isinstance(o, Scored)] == pytest.approx([0.4] * 4)
    assert isinstance(first[3], Rejected if fallback_refuses_too else Scored)
    assert (groups[0].rows[3].reward is None) is fallback_refuses_too
