"""TRL's GRPO trainer with this head.

    from polaris_kernels.adapters.trl import patch_grpo
    trainer = GRPOTrainer(...)
    patch_grpo(trainer)
    trainer.train()

By default only the log-probs and entropies come from here; TRL's loss, corrections, metrics and
model forward run unchanged. `loss="fused"` computes the loss inside the head too, see `trl_loss`.
"""

from typing import Any

from .host import Host
from .trl_head import HeadSwitch
from .trl_loss import FusedLoss

TRL = Host("trl", (1, 16), (1, 16))
LOSSES = ("trl", "fused")
_MARK = "_polaris_patch"


class Patch:
    """What `patch_grpo` did; `undo()`, or the end of a `with` block, takes it back."""

    def __init__(self, parts: list[HeadSwitch | FusedLoss], trainer: Any) -> None:
        self._parts = parts
        self._trainer = trainer
        for part in parts:
            part.on()
        setattr(trainer, _MARK, self)

    def undo(self) -> None:
        """TRL's own head and loss again; a second call does nothing."""
        parts, self._parts = self._parts, []
        for part in reversed(parts):
            part.off()
        if getattr(self._trainer, _MARK, None) is self:
            delattr(self._trainer, _MARK)

    def __enter__(self) -> "Patch":
        return self

    def __exit__(self, *error: object) -> None:
        self.undo()


class ClassPatch:
    """What `patch_grpo` did to a class: every trainer made from now on is patched."""

    def __init__(self, cls: type, options: dict[str, Any]) -> None:
        self._cls = cls
        self._own = cls.__dict__.get("__init__")
        theirs = cls.__init__  # type: ignore[misc]

        def __init__(trainer: Any, *args: Any, **kwargs: Any) -> None:
            theirs(trainer, *args, **kwargs)
            patch_grpo(trainer, **options)

        __init__.__wrapped__ = theirs  # type: ignore[attr-defined]
        cls.__init__ = __init__  # type: ignore[misc]

    def undo(self) -> None:
        """New trainers are TRL's own again; those made meanwhile keep their patch."""
        cls, self._cls = self._cls, object
        if cls is object:
            return
        if self._own is None:
            del cls.__init__  # type: ignore[misc]
        else:
            cls.__init__ = self._own  # type: ignore[misc]

    def __enter__(self) -> "ClassPatch":
        return self

    def __exit__(self, *error: object) -> None:
        self.undo()


def patch_grpo(
    target: Any,
    *,
    loss: str = "trl",
    logits_dtype: str = "fp32",
    chunk_bytes: int | None = None,
    backend: str | None = None,
) -> Patch | ClassPatch:
    """Give a TRL trainer, or every trainer of a class, this head.

    Args:
        target: a `GRPOTrainer` (or `RLOOTrainer`, or a subclass) before its `train()`, or such a
            class. Policy and reference model are patched.
        loss: "trl": TRL's loss on this head's log-probs; "fused": GRPO's loss inside the head.
        logits_dtype: "fp32", or "bf16" to round raw logits as TRL's head does in bf16.
        chunk_bytes: budget of the logits that exist at a time; None: by device.
        backend: name of a backend; None: the environment's or the device's.

    Raises:
        ImportError: TRL is missing or its version was not tested.
        ValueError: the trainer's head is adapted (LoRA), the trainer is patched already or has
            wrapped its model, or `loss="fused"` with options that it does not reproduce.
    """
    caller = "patch_grpo"
    if loss not in LOSSES:
        raise ValueError(f"{caller}: loss={loss!r} is unknown; use one of {', '.join(LOSSES)}")
    grpo = TRL.load("trl.trainer.grpo_trainer", caller).GRPOTrainer
    options = {"logits_dtype": logits_dtype, "chunk_bytes": chunk_bytes, "backend": backend}
    method = "_get_per_token_logps_and_entropies"
    if not hasattr(target, method):
        raise ValueError(
            f"{caller}: {target!r} has no {method}; give a GRPOTrainer, an RLOOTrainer or a "
            "subclass of one, as an instance or as a class"
        )
    if isinstance(target, type):
        return ClassPatch(target, {"loss": loss, **options})
    if hasattr(target, _MARK):
        raise ValueError(f"{caller}: this trainer is patched already; undo() the first patch")
    if loss == "fused" and type(target)._compute_loss is not grpo._compute_loss:
        raise ValueError(
            f"{caller}: loss='fused' is GRPOTrainer's loss, and {type(target).__qualname__} has "
            "its own; use loss='trl'"
        )
    # whose loss code is TRL's own differentiates the entropy for the bonus alone
    needs_entropy = (
        type(target)._compute_loss is not grpo._compute_loss or target._entropy_bonus_enabled
    )
    return _patch(target, loss, needs_entropy, options)


def _patch(trainer: Any, loss: str, needs_entropy: bool, options: dict[str, Any]) -> Patch:
    policy = trainer.accelerator.unwrap_model(trainer.model)
    if hasattr(policy, "get_base_model"):
        policy = policy.get_base_model()
    head = policy.get_output_embeddings()
    if hasattr(head, "base_layer"):
        raise ValueError(
            "patch_grpo: the output head carries an adapter "
            f"({type(head).__qualname__}), which a product with its weight alone would leave out; "
            "merge it, or take the head out of the adapter's target modules"
        )
    switches: list[HeadSwitch] = []
    losses: list[FusedLoss] = []
    try:
        switches.append(HeadSwitch(policy, options))
        if getattr(trainer, "ref_model", None) is not None:
            reference = trainer.accelerator.unwrap_model(trainer.ref_model)
            switches.append(HeadSwitch(reference, options, is_reference=True))
        kernel = switches[0].kernel
        kernel.entropy_gradient = needs_entropy
        if loss == "fused":
            losses.append(FusedLoss(trainer, kernel))
    except ValueError:
        for switch in switches:
            switch.off()
        raise
    return Patch([*switches, *losses], trainer)
