"""What is measured of a training step, alike for every trainer."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Sample:
    """One step; milliseconds."""

    generation: float
    reward: float
    forward: float
    """log-probs and loss"""
    backward: float
    optimizer: float
    """clip, update, zero"""
    step: float
    """from the start of the step to the start of the next"""
    facts: dict[str, float] = field(default_factory=dict)
    """what both sides must agree on"""

    @property
    def training(self) -> float:
        """Log-probs, loss, backward and optimizer."""
        return self.forward + self.backward + self.optimizer

    @property
    def rest(self) -> float:
        """What no phase counts: tokenizing, padding or packing, advantages, metrics, logs."""
        return self.step - self.generation - self.reward - self.training
