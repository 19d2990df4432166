"""The head's tests run once for each backend that works on the CPU."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from polaris_kernels import available_backends, backends
from polaris_kernels.backends import ENVIRONMENT_KEY
from polaris_kernels.backends.native_library import REBUILD


@pytest.fixture(scope="module", params=["torch", "native"])
def cpu_backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """The backend that calls without a `backend` argument get."""
    if request.param not in available_backends():
        pytest.skip(f"the native backend is not there: {REBUILD}")
    # one scope for hypothesis too, which refuses fixtures that are set up once a test
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(ENVIRONMENT_KEY, request.param)
        yield request.param


@pytest.fixture(scope="session")
def cuda_on_cpu(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The CUDA kernels compiled for this CPU; skips where there is no compiler."""
    from .cuda_emulator import compile_emulator

    return compile_emulator(tmp_path_factory.mktemp("emulator"))


@pytest.fixture(params=["torch", "native", "triton", "cuda"])
def every_backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The backend of CPU tensors: Triton's by its interpreter, and under Triton's name the CUDA
    kernels, compiled for the CPU."""
    name: str = request.param
    if name in ("triton", "cuda"):
        pytest.importorskip("triton")
        if torch.cuda.is_available():
            pytest.skip("Triton has no interpreter where it has a GPU; test_cuda.py runs there")
        from polaris_kernels.backends import triton_launch

        monkeypatch.setattr(triton_launch, "THREADS", 8)
    elif name not in available_backends():
        pytest.skip(f"the native backend is not there: {REBUILD}")
    if name == "cuda":
        from polaris_kernels.backends.row_kernels import CudaRows
        from polaris_kernels.backends.triton_chunked import TritonBackend

        from .cuda_emulator import Emulator

        library = request.getfixturevalue("cuda_on_cpu")
        made = TritonBackend(kernels=CudaRows(Emulator(library)))
        monkeypatch.setitem(backends._instances, "triton", made)
    monkeypatch.setenv(ENVIRONMENT_KEY, "triton" if name == "cuda" else name)
    return name
