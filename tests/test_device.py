"""The device of a process, and what a CPU must not call."""

import sys
from importlib.util import find_spec
from unittest import mock

import pytest
import torch

from polaris_fast.config_file import load_config
from polaris_fast.device import choose_device


@pytest.mark.parametrize("device", ["auto", "cpu"])
def test_on_a_cpu_kernels_of_gpus_count_as_not_installed(monkeypatch, tmp_path, device):
    """transformers calls fla for tensors on a CPU wherever it can be imported."""
    (tmp_path / "fla").mkdir()
    (tmp_path / "fla" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with mock.patch.dict(sys.modules):
        sys.modules.pop("fla", None)
        assert find_spec("fla") is not None
        assert choose_device(load_config("debug", {"device": device})).type == "cpu"
        assert find_spec("fla") is None
        with pytest.raises(ImportError):
            import fla  # noqa: F401
