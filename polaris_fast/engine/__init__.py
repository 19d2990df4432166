"""Engines own the weights: gradients in, updated weights out."""

from .base import Engine, UpdateResult
from .replicated import ReplicatedEngine
from .single import SingleEngine

__all__ = ["Engine", "ReplicatedEngine", "SingleEngine", "UpdateResult"]
