"""Refuses updates that would wreck the model: gradients that are not finite, or suddenly huge."""

from __future__ import annotations

import math
import statistics
from collections import deque

from ..config import GuardConfig
from ..types import UserError


class UpdateGuard:
    """Judges each gradient norm against the running median of the accepted ones."""

    def __init__(self, config: GuardConfig) -> None:
        self.config = config
        self.norms: deque[float] = deque(maxlen=config.window)
        self.consecutive_skips = 0

    def check(self, grad_norm: float) -> str | None:
        """None when the update may go ahead, else the reason it may not.

        Raises:
            UserError: `guard.max_consecutive_skips` updates in a row were refused.
        """
        reason = self._reason(grad_norm)
        if reason is None:
            self.norms.append(grad_norm)
            self.consecutive_skips = 0
            return None
        self.consecutive_skips += 1
        if self.consecutive_skips >= self.config.max_consecutive_skips:
            raise UserError(
                f"guard.max_consecutive_skips: {self.consecutive_skips} updates in a row were "
                f"refused ({reason}, gradient norm {grad_norm:.3g}); lower learning_rate, or "
                "resume from an earlier checkpoint"
            )
        return reason

    def _reason(self, grad_norm: float) -> str | None:
        if not math.isfinite(grad_norm):
            return "non_finite"
        if len(self.norms) >= self.config.window // 4:
            median = statistics.median(self.norms)
            if median > 0 and grad_norm > self.config.max_grad_norm_ratio * median:
                return "exploding"
        return None

    def state_dict(self) -> dict[str, object]:
        return {"norms": list(self.norms), "consecutive_skips": self.consecutive_skips}

    def load_state_dict(self, state: dict[str, object]) -> None:
        norms, skips = state["norms"], state["consecutive_skips"]
        assert isinstance(norms, list) and isinstance(skips, int)
        self.norms = deque(norms, maxlen=self.config.window)
        self.consecutive_skips = skips
