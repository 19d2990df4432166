"""Counts the bytes of tensors that are alive, without any of them having memory.

Models on torch's `meta` device run their own code on shapes alone. The ledger sees every storage
that an operation makes and hears when its last tensor goes, so what autograd saves, for how long,
and what each operation needs beside it are read off the code that will run, not off a formula.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


class Ledger(TorchDispatchMode):
    """Live bytes of the storages made inside the `with` block, and their peak since `mark`."""

    def __init__(self, known: Iterable[Tensor] = ()) -> None:
        """
        Args:
            known: tensors that are there already (parameters, inputs): never counted.
        """
        super().__init__()
        self.live = 0
        self.peak = 0
        # A storage's address is its identity while it lives.
        self._sizes: dict[int, int] = {}
        self._known = {tensor.untyped_storage()._cdata for tensor in known}

    def mark(self) -> int:
        """Start a new peak here; returns the live bytes."""
        self.peak = self.live
        return self.live

    def __torch_dispatch__(
        self, func: Any, types: Sequence[Any], args: Any = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for value in tree_iter(out):
            if isinstance(value, Tensor):
                self._add(value)
        self.peak = max(self.peak, self.live)
        return out

    def _add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if tensor.device.type != "meta" or key in self._known or key in self._sizes:
            return
        self._sizes[key] = storage.nbytes()
        self.live += storage.nbytes()
        weakref.finalize(storage, self._drop, key)

    def _drop(self, key: int) -> None:
        self.live -= self._sizes.pop(key)
