"""How far the rollout engine's numbers are from the trainer's, where it gives only some of them."""

from __future__ import annotations

import pytest
import torch

from polaris_fast.config import Config
from polaris_fast.packing import pack_rows
from polaris_fast.slots import Slot, sampling_gap
from polaris_fast.step_metrics import _sampling_metrics
from polaris_fast.types import Row, RowKind, StoryRecord

TRAINER = torch.tensor([-1.1, -2.0, -3.0])


def metrics(sampler_logps: list[float] | None) -> dict[str, float]:
    row = Row("1/0/0", 0, 0, RowKind.POLICY, StoryRecord("r", "Write.", 5), [1, 2], [3, 4, 5])
    row.rollout_logps, row.sampler_logps = [-1.0, -2.0, -3.0], sampler_logps
    slot = Slot(pack_rows([row], torch.device("cpu")), [row], None)
    return _sampling_metrics(sampling_gap(slot, TRAINER, Config()), corrected=False)


def test_the_filters_gain_is_left_out_where_the_engine_does_not_tell_it() -> None:
    told = metrics(None)
    assert "sampling/filter_gain" not in told
    assert told["sampling/sampling_logp_difference/mean"] == pytest.approx(0.1 / 3)


def test_the_filters_gain_is_the_mean_of_what_the_engine_tells() -> None:
    assert metrics([-0.7, -2.0, -2.7])["sampling/filter_gain"] == pytest.approx(0.2)
