"""LoRA adapters (arXiv 2106.09685) by peft, inside a model that stays what it was.

The base weights are frozen; with the adapters off the model is its own reference, so a KL term
needs no second copy. Checkpoints hold the merged weights, which load anywhere, and the adapters,
which training goes on from.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..config import LoraConfig
from ..merging import Adapted, Weight, whole
from ..types import UserError

_NAME = "default"  # peft's name of a model's only adapter
_FOLDER = "adapter"


class Adapters:
    """The adapters of one model; they are put into it when this is made."""

    def __init__(self, model: Any, config: LoraConfig) -> None:
        """
        Args:
            model: a causal LM with packing and fused head installed; changed in place.
            config: `lora.*`, its r above 0.

        Raises:
            UserError: peft is not installed, or `lora.target_modules` names nothing that fits, the
                head, or a layer that is not linear.
        """
        peft = import_peft()
        targets = config.target_modules
        try:
            self._peft = peft.get_peft_model(
                model,
                peft.LoraConfig(
                    r=config.r,
                    lora_alpha=config.alpha,
                    lora_dropout=config.dropout,
                    target_modules=targets if isinstance(targets, str) else list(targets),
                    task_type="CAUSAL_LM",
                ),
                # products of the model's type: the fp32 copies are the engines' masters
                autocast_adapter_dtype=False,
            )
        except ValueError as error:
            raise UserError(
                f"lora.target_modules: {targets!r} fits no layer of this model ({error}); give "
                "'all-linear' or names of its linear layers, such as [q_proj, v_proj]"
            ) from error
        self.model = model
        # LoRA layer -> factor of B A
        self._scaling = {
            name: float(module.scaling[_NAME])
            for name, module in model.named_modules()
            if hasattr(module, "lora_A") and hasattr(module, "scaling")
        }
        if any(name.endswith("lm_head") for name in self._scaling):
            raise UserError(
                f"lora.target_modules: {targets!r} puts an adapter on lm_head, which the fused "
                "head would leave out; name the layers of the body only"
            )
        for name in self._scaling:
            layer: Any = model.get_submodule(name)
            base = layer.get_base_layer()
            # `to_merge` knows W + B A only
            if not (isinstance(layer, peft.tuners.lora.Linear) and isinstance(base, nn.Linear)):
                raise UserError(
                    f"lora.target_modules: {targets!r} puts an adapter on {name}, "
                    f"whose {type(base).__name__} no checkpoint could merge; name linear "
                    "layers only, such as [q_proj, v_proj]"
                )

    @contextmanager
    def off(self) -> Iterator[None]:
        """The reference model: inside the block the model computes with its base weights alone."""
        with self._peft.disable_adapter():
            yield

    def merged(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A plain model's state dict from this model's: W + scaling B A, summed in fp32.

        Args:
            state: whole tensors of all parameters and buffers, adapters included.
        """
        return {name: whole(weight) for name, weight in self.to_merge(state).items()}

    def to_merge(self, state: Mapping[str, Tensor]) -> dict[str, Weight]:
        """`merged` without its sums: `whole` makes them one by one.

        Args:
            state: as for `merged`.
        """
        result: dict[str, Weight] = {}
        for name, value in state.items():
            if ".lora_" in name:
                continue
            if ".base_layer." not in name:
                result[name] = value
                continue
            layer, part = name.split(".base_layer.")
            if part == "weight":
                A = state[f"{layer}.lora_A.{_NAME}.weight"]
                B = state[f"{layer}.lora_B.{_NAME}.weight"]
                result[f"{layer}.weight"] = Adapted(value, A, B, self._scaling[layer])
            else:
                result[f"{layer}.{part}"] = value
        return result

    def save(self, folder: Path, state: Mapping[str, Tensor]) -> None:
        """Write the adapters in peft's own form into `folder/adapter`.

        Args:
            state: as for `merged`.
        """
        self._peft.save_pretrained(folder / _FOLDER, state_dict=dict(_as_peft(state)))
        (folder / _FOLDER / "README.md").unlink(missing_ok=True)  # a form to be filled in

    def load(self, folder: Path) -> None:
        """Restore what `save` wrote, bit for bit.

        Raises:
            UserError: the checkpoint has no adapters, or others.
        """
        from safetensors.torch import load_file

        path = folder / _FOLDER / "adapter_model.safetensors"
        if not path.is_file():
            raise UserError(
                f"resume_from_checkpoint: {folder} holds no adapters, but lora.r is above 0; "
                "resume with the settings the run had, or start a new run from its weights"
            )
        peft = import_peft()
        found = peft.set_peft_model_state_dict(self._peft, load_file(path))
        if found.unexpected_keys:
            raise UserError(
                f"resume_from_checkpoint: {path} holds adapters that this model has not "
                f"({found.unexpected_keys[0]}); keep lora.r and lora.target_modules as they were"
            )


def whole_state(model: Any) -> dict[str, Tensor]:
    """The model's state dict, detached: views of the parameters, not copies."""
    state: dict[str, Tensor] = {k: v.detach() for k, v in model.state_dict().items()}
    return state


def _as_peft(state: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    for name, value in state.items():
        yield f"base_model.model.{name}", value


def import_peft() -> Any:
    """The package; UserError names `lora.r` when it is not there."""
    try:
        import peft
    except ImportError as error:
        raise UserError(
            f"lora.r: adapters need the peft package ({error}); install it with "
            "`pip install polaris-fast[lora]`, or set lora.r to 0"
        ) from error
    return peft
