"""Warps, pipeline stages and tile widths of every kernel.

Found by compiling ahead of time (`make kernels-report`): with these no kernel spills a register on
sm_80, sm_90 or sm_100. Not yet timed on a GPU.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

_LEAST_BLOCK = 16  # of a product on tensor cores


@dataclass(frozen=True)
class Sizes:
    """Of one kernel."""

    num_warps: int
    num_stages: int = 1
    most: Mapping[str, int] = field(default_factory=dict)
    """columns of its tiles where heads are wide enough, by the name of the kernel's argument"""


# value columns of a program that scans are few, as such programs are all that runs at a time; a
# head's key columns that are not cut, 128, are on chip whole
SIZES = {
    "system": Sizes(2, 1, {"BLOCK_K": 32}),
    "solve": Sizes(4, 1, {"BLOCK": 64}),
    "scan": Sizes(4, 2, {"BLOCK_K": 128, "BLOCK_V": 32}),
    "output": Sizes(4, 2, {"BLOCK_K": 128, "BLOCK_V": 64}),
    "inner_gradient": Sizes(8, 1, {"BLOCK": 32}),
    "reverse_scan": Sizes(8, 2, {"BLOCK_K": 128, "BLOCK_V": 32}),
    "value_gradient": Sizes(8, 1, {"BLOCK": 32}),
    "state_gradient": Sizes(8, 1, {"BLOCK_K": 64, "BLOCK_V": 32, "BLOCK_C": 32}),
    "finish": Sizes(16, 1, {"BLOCK_K": 128}),
}


def block(width: int, most: int) -> int:
    """A power of two that covers `width` columns, or `most` if that is less."""
    return max(_LEAST_BLOCK, min(1 << max(0, width - 1).bit_length(), most))
