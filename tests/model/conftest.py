"""Rows of random tokens and the plain forward that packed results are held to."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import pytest
import torch

# Many short rows with single tokens among them, and few rows longer than several chunks.
ROW_LENGTHS = {
    "short": (7, 1, 12, 3, 1, 2, 30, 5, 4, 9, 1, 17, 6, 2, 33, 64, 65),
    "long": (150, 1, 97),
}


@dataclass
class TokenIds:
    prompt_ids: list[int]
    completion_ids: list[int]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The tensors here are tiny: waiting for a second thread on a busy machine costs far more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def make_rows() -> Callable[..., list[TokenIds]]:
    """make_rows(lengths, vocab_size=1024, seed=0): rows with one prompt token each at least."""

    def make(lengths: Sequence[int], vocab_size: int = 1024, seed: int = 0) -> list[TokenIds]:
        generator = torch.Generator().manual_seed(seed)
        rows = []
        for length in lengths:
            ids = torch.randint(vocab_size, (length,), generator=generator).tolist()
            prompt = max(1, length // 3)
            rows.append(TokenIds(ids[:prompt], ids[prompt:]))
        return rows

    return make


@pytest.fixture(params=ROW_LENGTHS)
def lengths(request: pytest.FixtureRequest) -> tuple[int, ...]:
    return ROW_LENGTHS[request.param]
