"""The end of a process."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

SCRIPT = """
import atexit
from polaris_fast.leaving import leave
atexit.register(print, "torn down")
print("said last", end=" ")
leave(3)
"""


@pytest.mark.parametrize(
    ("launched", "said"), [(False, "said last torn down\n"), (True, "said last ")]
)
def test_a_rank_leaves_at_once_with_its_status_and_its_last_words(
    launched: bool, said: str
) -> None:
    environment = {name: v for name, v in os.environ.items() if name != "WORLD_SIZE"}
    environment |= {"WORLD_SIZE": "2"} if launched else {}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (3, said), done.stderr
