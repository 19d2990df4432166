"""The head's tests run once for each backend that works on the CPU."""

from collections.abc import Iterator

import pytest

from polaris_kernels import available_backends
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
