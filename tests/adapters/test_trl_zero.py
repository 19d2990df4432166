"""DeepSpeed ZeRO-3 on two ranks: the head's weight is there in forward and in backward."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.ranks.launch import run

pytest.importorskip("trl")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("deepspeed") is None, reason="needs deepspeed"),
]
CASES = {"whole": {"beta": 0.1}, "frozen": {"freeze_head": True}}
STEPS = 3


@pytest.fixture(scope="module")
def logs(qwen3: Path) -> dict[str, dict[str, list[list[float]]]]:
    """Of both cases and all three losses, from one launch."""
    given = json.dumps(list(CASES.values()))
    status, output = run("tests.adapters.zero_ranks", str(qwen3), given)
    assert status == 0, output
    (line,) = [x for x in output.splitlines() if x.startswith('{"cases"')]
    return dict(zip(CASES, json.loads(line)["cases"], strict=True))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("loss", ["trl", "fused"])
def test_sharded_steps_agree(
    logs: dict[str, dict[str, list[list[float]]]], case: str, loss: str
) -> None:
    theirs = logs[case]["none"]
    assert len(theirs) == STEPS and all(norm > 0 for _, norm, _ in theirs)
    for mine, step in zip(logs[case][loss], theirs, strict=True):
        assert mine == pytest.approx(step, rel=1e-5, abs=1e-6)
