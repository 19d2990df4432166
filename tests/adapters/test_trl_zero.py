"""DeepSpeed ZeRO-3 on two ranks: the head's weight is there in forward and in backward."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.ranks.launch import run

pytest.importorskip("trl")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("deepspeed") is None, reason="needs deepspeed"),
]


def logs(folder: Path, loss: str, options: dict[str, Any]) -> list[list[float]]:
    status, output = run("tests.adapters.zero_ranks", str(folder), loss, json.dumps(options))
    assert status == 0, output
    (line,) = [x for x in output.splitlines() if x.startswith('{"logs"')]
    found: list[list[float]] = json.loads(line)["logs"]
    return found


@pytest.mark.parametrize("options", [{"beta": 0.1}, {"freeze_head": True}], ids=["whole", "frozen"])
def test_sharded_steps_agree(qwen3: Path, options: dict[str, Any]) -> None:
    theirs = logs(qwen3, "none", options)
    assert len(theirs) == 4 and all(step[1] > 0 for step in theirs)
    for loss in ("trl", "fused"):
        for mine, step in zip(logs(qwen3, loss, options), theirs, strict=True):
            assert mine == pytest.approx(step, rel=1e-5, abs=1e-6)
