"""Load a Hugging Face causal LM, ready for packed rows and the fused head."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from polaris_fast.model.packed import install_packing
from polaris_fast.types import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


def load_causal_lm(
    path: str | Path,
    *,
    dtype: torch.dtype | str = torch.bfloat16,
    device: torch.device | str = "cpu",
    attn_implementation: str | None = None,
) -> PreTrainedModel:
    """The causal LM of a folder or hub id, with packed forward and fused head installed.

    Of a checkpoint with vision (Qwen3.5) the text model is loaded; `carried` saves it whole again.
    What `save_pretrained` writes loads anywhere: no parameter is renamed, tied weights stay tied.

    Args:
        path: folder with config.json and weights, or a hub id such as "Qwen/Qwen3.5-9B".
        dtype: of parameters and activations, as torch.dtype or its name.
        device: where the parameters go.
        attn_implementation: None for the project's varlen attention, or transformers' own names.
    Returns:
        the model in eval mode.
    Errors: UserError naming `model_name_or_path` when the folder, its config or its weights cannot
        be read, `dtype` for an unknown name.
    """
    from transformers import AutoModelForCausalLM

    dtype = _dtype(dtype)
    config = read_config(str(path))
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(str(path), config=config, dtype=dtype)
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(
            f"model_name_or_path: {str(path)!r} has a config but no loadable causal-LM weights "
            f"({_first_line(error)}); give a complete Hugging Face causal-LM folder or hub id"
        ) from error
    _make_saveable(model)
    model.to(torch.device(device))
    return prepare_model(model, attn_implementation=attn_implementation).eval()


def quiet_transformers() -> None:
    """No bars and no advice on kernels that we replace."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def prepare_model(
    model: PreTrainedModel, *, attn_implementation: str | None = None
) -> PreTrainedModel:
    """Install packed forward and fused head on a model in memory; returns the same model."""
    install_packing(model, attn_implementation=attn_implementation)
    return install_fused_head(model)


def install_fused_head(model: PreTrainedModel) -> PreTrainedModel:
    """Replace lm_head by a FusedHead that shares its Parameter; returns the same model.

    Errors: UserError when the model has no linear output head.
    """
    from polaris_kernels import FusedHead

    head = model.get_output_embeddings()
    if isinstance(head, FusedHead):
        return model
    if not isinstance(head, nn.Linear):
        raise UserError(
            f"model_name_or_path: {type(model).__name__} has no linear lm_head (found "
            f"{type(head).__name__}); give a causal LM of the Qwen3.5, Qwen3 or Llama family"
        )
    model.set_output_embeddings(FusedHead.from_linear(head))
    return model


def read_config(path: str) -> PreTrainedConfig:
    """The model's config: says early, and cheaply, that a path is wrong.

    Errors: UserError naming `model_name_or_path`, the value and the remedy.
    """
    from transformers import AutoConfig

    folder = Path(path).expanduser()
    looks_local = folder.is_absolute() or path.startswith((".", "~")) or path.count("/") != 1
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise UserError(
                f"model_name_or_path: the folder {path!r} has no config.json; give the folder that "
                "save_pretrained wrote"
            )
    elif looks_local:
        raise UserError(
            f"model_name_or_path: there is no folder {path!r}; check the path, or give a hub id "
            "such as Qwen/Qwen3.5-9B"
        )
    try:
        return AutoConfig.from_pretrained(path)
    except (OSError, ValueError, KeyError, TypeError) as error:
        remedy = (
            "repair its config.json"
            if folder.is_dir()
            else "check the id and the network, or give the folder of a downloaded model"
        )
        raise UserError(
            f"model_name_or_path: cannot read the config of {path!r} "
            f"({_first_line(error)}); {remedy}"
        ) from error


def is_multimodal(config: PreTrainedConfig) -> bool:
    """Whether a config describes more than a text model, such as Qwen3.5's with vision."""
    return config.get_text_config() is not config


def _make_saveable(model: PreTrainedModel) -> None:
    """Some published models sample by settings that `do_sample: false` forbids to save."""
    generation = model.generation_config
    try:
        if generation is not None:
            generation.validate(strict=True)
    except ValueError:
        generation.do_sample = True


def _dtype(dtype: torch.dtype | str) -> torch.dtype:
    found: Any = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise UserError(f"dtype: must be float32, bfloat16 or float16, got {dtype!r}")
    return found


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
