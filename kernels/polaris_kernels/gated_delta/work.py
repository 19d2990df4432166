"""What a profiler is told of each launch: operations of the products, and bytes.

Every chunk counts as a full one. Each tensor is counted as moved once, and twice where a kernel
writes over what it reads; what several blocks of a head read again comes from cache.

Shapes: `C chunk . K, V head dims . G value heads a key head`.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor

Work = Callable[[Any, Any, Any], dict[str, Any]]


def _of_chunks(flops: Callable[[int, int, int, int], int], over: tuple[str, ...] = ()) -> Work:
    """From the operations of one program of grid's first two dimensions, given C, K, V and G."""

    def metadata(grid: Any, kernel: Any, args: Any) -> dict[str, Any]:
        sizes = (args[name] for name in ("CHUNK", "K", "V", "G"))
        work = {"flops": grid[0] * grid[1] * flops(*sizes), "bytes": _bytes(args, over)}
        return {"name": f"{kernel.name}_N{grid[0]}", **work}

    return metadata


def _of_scans(products: int) -> Work:
    """From the number of (C, K) and (K, V) products a chunk."""

    def metadata(grid: Any, kernel: Any, args: Any) -> dict[str, Any]:
        tokens, heads = args["write_ptr"].shape[:2]
        flops = 2 * products * tokens * heads * args["K"] * args["V"]
        moved = _bytes(args, ("write_ptr",))
        return {"name": f"{kernel.name}_T{tokens}", "flops": flops, "bytes": moved}

    return metadata


def _bytes(args: Any, over: tuple[str, ...]) -> int:
    """Of all tensors, those named in `over` twice."""
    tensors = {name: x for name, x in args.items() if isinstance(x, Tensor)}
    sizes = {name: x.numel() * x.element_size() for name, x in tensors.items()}
    return sum(sizes.values()) + sum(sizes[name] for name in over)


def _inverse(C: int) -> int:
    """The inverses of two halves by doubling, and what connects them."""
    half = C // 2
    return (4 * (half.bit_length() - 2) + 2) * 2 * half**3


system_work = _of_chunks(lambda C, K, V, G: 3 * C * C * K // 2 + G * _inverse(C))
solve_work = _of_chunks(lambda C, K, V, G: 2 * C * C * (K + V))
scan_work = _of_scans(2)
output_work = _of_chunks(lambda C, K, V, G: 2 * C * (K * V + C * (K + V)))
inner_gradient_work = _of_chunks(lambda C, K, V, G: 2 * C * C * (K + 2 * V))
reverse_scan_work = _of_scans(3)
value_gradient_work = _of_chunks(
    lambda C, K, V, G: 2 * C * C * (K + 2 * V), over=("grad_write_ptr", "grad_c_ptr")
)
state_gradient_work = _of_chunks(lambda C, K, V, G: 6 * G * C * K * (V + C))
# of each element of q and k: its share in a sum of squares, and in the gradient
finish_work = _of_chunks(lambda C, K, V, G: 10 * C * K)
