"""The compiled CUDA kernels are used only after they have agreed with float64 on this very device.

They are built for chips that the machine that builds them need not have, so a driver, a compiler or
a chip that does not do what the sources say must be found before it trains a model.

Shapes: `C rows . V vocab`.
"""

from functools import partial

import torch
from torch import Tensor

from ..foreseen import RowRule
from ..objective import TokenGradients
from .cuda_library import PATH, CudaLibrary
from .native_library import LibraryError, NotNow
from .row_kernels import CudaRows
from .triton_launch import RowState, Scaling, narrow_view

# fp32 arithmetic of approximate exponentials, and a rounding to bf16 where the gradient is
_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 1e-2}
# a row in one block and one over a whole cluster on Hopper, neither a whole number of vectors
_WIDTHS = (1_003, 151_931)
_MIN_CAPABILITY = 8


def checked_rows(device: torch.device) -> CudaRows:
    """The compiled row kernels, tried on `device`, whichever is the current one.

    Raises:
        LibraryError: the device is too old, the library does not load or launch, or its numbers are
            wrong; the message says which.
    """
    if not torch.cuda.is_available():
        raise LibraryError("polaris_kernels: torch finds no CUDA device")
    with torch.cuda.device(device):
        return _checked_rows(device)


def _checked_rows(device: torch.device) -> CudaRows:
    major, minor = torch.cuda.get_device_capability(device)
    if major < _MIN_CAPABILITY:
        raise LibraryError(f"polaris_kernels: {PATH.name} needs compute capability 8.0 or more, "
                           f"{device} has {major}.{minor}")  # fmt: skip
    if torch.cuda.is_current_stream_capturing():
        raise NotNow(
            "polaris_kernels: the first call came inside a graph capture, where the CUDA kernels "
            "cannot be tried; run one step before"
        )
    kernels = CudaRows(CudaLibrary())
    for width in _WIDTHS:
        for dtype in _TOLERANCE:
            try_rows(kernels, device, width, dtype)
    return kernels


def try_rows(kernels: CudaRows, device: torch.device, width: int, dtype: torch.dtype) -> None:
    """LibraryError unless `kernels` agree with float64 on three rows of this width, a gradient of
    bf16 in the logits' memory, by one kernel and by two."""
    # the first call may come from anywhere, and float64's gradient is autograd's: checkpointing
    # would count what it saves among the tensors of the region that it makes again
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x),
    ):
        _try_rows(kernels, device, width, dtype)


def _try_rows(kernels: CudaRows, device: torch.device, width: int, dtype: torch.dtype) -> None:
    raw, targets, given = _rows(device, width, dtype)
    exact, exact_gradient = _exact(raw, targets, given)
    for how in ("one read", "two reads"):
        logits = _aligned_copy(raw)
        state = RowState.empty(3, logits)
        out = narrow_view(logits, torch.bfloat16)
        scaling = Scaling.make(1.0)
        if how == "one read":
            kernels.both(logits, targets, scaling, state, RowRule(given), out)
        else:
            kernels.statistics(logits, targets, scaling, state)
            kernels.gradients(logits, targets, scaling, state, given, out)
        found = torch.stack((state.logp, state.entropy, state.lse))
        pairs = ((found, exact, torch.float32), (out, exact_gradient, torch.bfloat16))
        for ours, theirs, rounded in pairs:
            error = float((ours - theirs).norm() / theirs.norm())
            # not: error > tolerance, which nan is not
            if not error <= _TOLERANCE[rounded]:
                raise LibraryError(
                    f"polaris_kernels: the CUDA kernels ({how}, {width} columns of {dtype}) are "
                    f"off by {error:.1e} against float64 on {device}; Triton's are used"
                )


def _rows(
    device: torch.device, width: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, TokenGradients]:
    g = torch.Generator("cpu").manual_seed(width)
    # whatever torch's defaults are: the generator is the host's
    normal = partial(torch.randn, generator=g, dtype=torch.float32, device="cpu")
    raw = (4 * normal(3, width)).to(dtype)
    parts = [normal(3).to(device) for _ in range(3)]
    targets = torch.tensor([0, width // 2, width - 1], device="cpu")
    # a likely token, so that its log-prob is not all that counts
    raw[torch.arange(3, device="cpu"), targets] = 12.0
    return raw.to(device), targets.to(device), TokenGradients(*parts)


def _exact(raw: Tensor, targets: Tensor, given: TokenGradients) -> tuple[Tensor, Tensor]:
    """Log-probs, entropies and lse (3, C), and d loss / d logits (C, V), in float64."""
    z = raw.detach().double().requires_grad_()
    log_p = z.log_softmax(1)
    outputs = (
        log_p.gather(1, targets[:, None])[:, 0],
        -(log_p.exp() * log_p).sum(1),
        z.logsumexp(1),
    )
    (gradient,) = torch.autograd.grad(
        outputs,
        z,
        [g.double() for g in (given.logp, given.entropy, given.lse) if g is not None],
    )
    return torch.stack(outputs).detach(), gradient


def _aligned_copy(raw: Tensor) -> Tensor:
    """The rows at multiples of 16 bytes, nan behind each."""
    C, V = raw.shape
    rows = raw.new_full((C, -(-V // 16) * 16), torch.nan)[:, :V]
    return rows.copy_(raw)
