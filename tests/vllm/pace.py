"""A logits processor that a test's server loads: it changes no logit, and waits where told to.

So a test decides how long rows take, and no machine is too fast or too slow for it.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import torch
from vllm.v1.sample.logits_processor import LogitsProcessor


class Pace(LogitsProcessor):
    """Waits before each token while the file is there that says how many seconds."""

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
        self._file = Path(os.environ["POLARIS_TEST_PACE_FILE"])

    def is_argmax_invariant(self) -> bool:
        return True

    def update_state(self, batch_update: Any) -> None:
        pass

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        try:
            time.sleep(float(self._file.read_text()))
        except FileNotFoundError:
            pass
        return logits
