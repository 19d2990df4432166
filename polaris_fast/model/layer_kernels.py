"""Liger's Triton kernels for what stands between a layer's matrix products.

RMS norms and the gate of the MLP, and for Qwen3 and Llama the rotary embedding; Liger has none for
the partial one of Qwen3.5, nor for the gated norm of its delta-net layers. The loss stays our own:
Liger's forward of a whole model, with its fused cross-entropy, is never put in.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch

from ..types import UserError

# transformers' model type -> Liger's function, and whether it has a rotary embedding for it
_FAMILIES: dict[str, tuple[str, bool]] = {
    "qwen3_5_text": ("apply_liger_kernel_to_qwen3_5", False),
    "qwen3": ("apply_liger_kernel_to_qwen3", True),
    "llama": ("apply_liger_kernel_to_llama", True),
}


def check_layer_kernels(device: torch.device) -> None:
    """`liger_kernels` can be switched on here.

    Raises:
        UserError: the device is the CPU, or the package is not installed.
    """
    if device.type == "cpu":
        raise UserError(
            "liger_kernels: Liger's kernels are Triton's, which runs on GPUs, and the device is "
            "the CPU; set liger_kernels to false"
        )
    _import_liger()


def install_layer_kernels(model: Any, *, rope: bool = True) -> None:
    """Put Liger's kernels into the layers of one model, in place; no parameter is renamed.

    Args:
        model: a causal LM of the Qwen3.5, Qwen3 or Llama family.
        rope: the rotary embedding too: transformers looks it up in the family's module, so all
            models of the family in this process share it.

    Raises:
        UserError: another family, or the package is not installed.
    """
    name, has_rope = family_of(model.config)
    apply: Callable[..., None] = getattr(_import_liger(), name)
    kept = ("apply_rotary_pos_emb",) if rope and has_rope else ()
    with _module_restored(sys.modules[type(model).__module__], but=kept):
        apply(
            rope=rope and has_rope,
            rms_norm=True,
            swiglu=True,
            cross_entropy=False,
            fused_linear_cross_entropy=False,
            model=model,
        )


def family_of(config: Any) -> tuple[str, bool]:
    """Liger's function for a model of this transformers config, and whether it knows its rotary
    embedding.

    Raises:
        UserError: not a family that it is used for here.
    """
    kind = config.get_text_config().model_type
    if kind not in _FAMILIES:
        raise UserError(
            f"liger_kernels: not used for models of type {kind!r}, only for {', '.join(_FAMILIES)};"
            " set liger_kernels to false"
        )
    return _FAMILIES[kind]


@contextmanager
def _module_restored(module: ModuleType, *, but: tuple[str, ...]) -> Iterator[None]:
    """Liger also replaces the family's classes, for models that are made later: undone."""
    before = dict(vars(module))
    yield
    for name, value in before.items():
        if name not in but:
            setattr(module, name, value)


def _import_liger() -> Any:
    try:
        import liger_kernel.transformers as liger
    except ImportError as error:
        raise UserError(
            f"liger_kernels: needs the liger-kernel package ({error}); install it with "
            "`pip install polaris-fast[flash]`, or set liger_kernels to false"
        ) from error
    return liger
