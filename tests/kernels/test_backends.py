"""The backend is chosen in the open: by device, by argument, by environment, never in silence."""

import pytest
import torch

from polaris_kernels import active_backend, available_backends, linear_logps, release_workspace
from polaris_kernels.backends import ENVIRONMENT_KEY, get_backend
from polaris_kernels.backends.workspace import borrowed

from .cases import make_head


def test_the_device_has_a_default(monkeypatch):
    monkeypatch.delenv(ENVIRONMENT_KEY, raising=False)
    assert active_backend("cpu") in available_backends()


def test_a_missing_backend_from_the_environment_is_an_error(monkeypatch):
    monkeypatch.setenv(ENVIRONMENT_KEY, "abacus")
    head = make_head()
    with pytest.raises(ValueError, match=f"{ENVIRONMENT_KEY} asks for backend 'abacus'"):
        linear_logps(head.hidden, head.weight, head.targets)


def test_the_argument_wins_over_the_environment(monkeypatch):
    monkeypatch.setenv(ENVIRONMENT_KEY, "abacus")
    assert get_backend(torch.device("cpu"), "torch").name == "torch"


def test_borrowed_buffers_do_not_overlap_and_are_reused():
    release_workspace()
    like = torch.empty(0)
    with borrowed(((2, 3), (4, 3)), like) as (a, b):
        address = a.data_ptr()
        assert b.data_ptr() == address + a.numel() * 4
        with borrowed(((2, 3),), like) as (nested,):
            assert nested.data_ptr() not in (a.data_ptr(), b.data_ptr())
    release_workspace()


@pytest.mark.usefixtures("cpu_backend")
def test_memory_stays_within_the_budget(monkeypatch):
    from polaris_kernels.backends import chunks, native, torch_chunked

    seen = []

    def watch(shapes, like):
        seen.append(shapes[0][0] * shapes[0][1] * like.element_size())
        return borrowed(shapes, like)

    for module in (torch_chunked, chunks, native):
        monkeypatch.setattr(module, "borrowed", watch)
    head = make_head(300, 4, 5000, dtype=torch.float32)
    budget = 2**20
    linear_logps(head.hidden, head.weight, head.targets, chunk_bytes=budget).logps.sum().backward()
    assert seen and max(seen) <= budget
