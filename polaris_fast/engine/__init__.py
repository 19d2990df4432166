"""Engines own the weights: gradients in, updated weights out."""

from .base import Engine, UpdateResult
from .single import SingleEngine

__all__ = ["Engine", "SingleEngine", "UpdateResult"]
