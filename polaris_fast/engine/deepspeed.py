"""DeepSpeed ZeRO over the ranks: optimizer state, gradients and weights in shards.

The rule for gradients is the same on every engine. A micro-batch's loss is divided by the global
batch's count; DeepSpeed averages over ranks, so the loss is multiplied by their number; a step
whose groups dropped out late is rescaled once, before the norm is taken.

Loss tokens differ from micro-batch to micro-batch and their number from step to step, so DeepSpeed
does not manage accumulation (`managed_gradient_accumulation: false`): `backward` adds up, `step` is
the boundary. The guard sits in DeepSpeed's own norm computation: a refused update takes DeepSpeed's
overflow path, which leaves weights and moments as they were. The sums of gradients are cleared
here, since that path (0.19.8) leaves those that it moves to CPU memory at ZeRO-2 in bfloat16.

T packed tokens · N targets · D hidden.
"""

from __future__ import annotations

import json
import math
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from polaris_kernels import GRPOLossOutput, LossRows, LossSpec

from ..config import Config
from ..model.lora import Adapters, whole_state
from ..packing import PackedBatch
from ..types import UserError
from .base import UpdateResult
from .guard import UpdateGuard
from .optimizer import adamw, advance, learning_rate_schedule, restore_schedule
from .policy import Policy, reference_logps, save_model

_STATE = "deepspeed"  # DeepSpeed's own folder inside a checkpoint


class DeepSpeedEngine:
    """`Engine` over ZeRO-1, 2 or 3; every call is made by all ranks, in the same order."""

    def __init__(
        self,
        model: Any,
        config: Config,
        spec: LossSpec,
        *,
        total_updates: int,
        reference: Any | None = None,
        adapters: Adapters | None = None,
    ) -> None:
        """
        Args: as `SingleEngine`; the model is whole on every rank and is sharded here.

        Raises:
            UserError: DeepSpeed is not installed, or refuses the settings.
        """
        deepspeed = import_deepspeed(model.device.type)
        self.model, self.config, self.spec = model, config, spec
        self.reference, self.adapters = reference, adapters
        model.train()
        self.guard = UpdateGuard(config.guard)
        self.stage = config.engine.zero_stage
        optimizer = adamw([p for p in model.parameters() if p.requires_grad], config)
        self.scheduler = learning_rate_schedule(optimizer, config, total_updates)
        self.engine, self.optimizer, _, _ = deepspeed.initialize(
            model=Policy(model, config, spec),
            optimizer=optimizer,
            config=deepspeed_config(config, dist.get_world_size()),
        )
        self._world_size = dist.get_world_size()
        self._has_gradients = False
        self._verdict: str | None = None
        self._norm = float("nan")
        self._grad_scale = 1.0
        self._must_refuse = False
        self._install_guard()

    @property
    def device(self) -> torch.device:
        device: torch.device = self.engine.device
        return device

    @property
    def num_updates(self) -> int:
        return int(self.scheduler.last_epoch)

    def ref_logps(self, batch: PackedBatch) -> torch.Tensor:
        return reference_logps(self.model, self.reference, self.adapters, batch, self.config)

    def backward(self, batch: PackedBatch, rows: LossRows) -> GRPOLossOutput:
        out: GRPOLossOutput = self.engine(batch, rows)
        self.engine.backward(out.loss * self._world_size, scale_wrt_gas=False)
        self._has_gradients = True
        return out

    def update(self, grad_scale: float) -> UpdateResult:
        learning_rate = float(self.scheduler.get_last_lr()[0])
        self._step(grad_scale)
        self.skip_updates(1)  # the schedule follows the count of updates, refused ones too
        return UpdateResult(
            grad_norm=self._norm, skipped=self._verdict, learning_rate=learning_rate
        )

    def skip_updates(self, count: int) -> None:
        advance(self.scheduler, count)

    def discard_gradients(self) -> None:
        if self._has_gradients:
            self._must_refuse = True
            try:
                self._step(1.0)
            finally:
                self._must_refuse = False

    @contextmanager
    def whole_weights(self) -> Iterator[None]:
        """Every rank holds the whole model inside the block; ZeRO-3 gathers it.

        Its hooks would give each layer's weights back after every forward, so they are off inside.
        """
        if self.stage < 3:
            yield
            return
        import deepspeed

        offload = self.optimizer.parameter_offload
        with deepspeed.zero.GatheredParameters(list(self.model.parameters())):
            for hook in (*offload.forward_hooks, *offload.backward_hooks):
                hook.remove()
            offload.forward_hooks, offload.backward_hooks = [], []
            try:
                yield
            finally:
                offload._register_deepspeed_module(offload.module)

    def save(self, folder: Path) -> None:
        """Weights for `from_pretrained` by rank 0; each rank's shard of the optimizer state."""
        is_first = dist.get_rank() == 0
        if self.stage == 3:  # all ranks give their shards
            state = _without_prefix(self.engine._zero3_consolidated_16bit_state_dict() or {})
        else:
            state = whole_state(self.model)
        if is_first:
            base = self.config.model_name_or_path
            save_model(self.model, self.adapters, state, folder, base)
        self.engine.save_checkpoint(
            str(folder / _STATE),
            tag="shards",
            client_state={
                "scheduler": self.scheduler.state_dict(),
                "guard": self.guard.state_dict(),
            },
            exclude_frozen_parameters=True,
        )

    def load(self, folder: Path) -> None:
        """Everything of a run saved under the same stage and number of ranks.

        Raises:
            UserError: the checkpoint was written by another engine or another number of ranks.
        """
        shards = folder / _STATE / "shards"
        found = len(list(shards.glob("*optim_states.pt"))) if shards.is_dir() else 0
        if found != self._world_size:
            raise UserError(
                f"resume_from_checkpoint: {folder} holds DeepSpeed state of {found} ranks, this "
                f"run has {self._world_size}; start with the number of ranks (and engine.kind) "
                "that wrote it, or give its weights as model_name_or_path to a new run"
            )
        _, client = self.engine.load_checkpoint(
            str(folder / _STATE),
            tag="shards",
            load_module_strict=self.adapters is None,  # frozen weights are not in the shards
        )
        position = client["scheduler"]["last_epoch"]
        restore_schedule(self.scheduler, self.optimizer, self.config, position)
        self.guard.load_state_dict(client["guard"])

    def _step(self, grad_scale: float) -> None:
        self._grad_scale, self._norm, self._verdict = grad_scale, float("nan"), None
        # DeepSpeed divides by its loss scale before it clips
        self.optimizer.override_loss_scale(1.0 / grad_scale)
        try:
            self.engine.step()
            if math.isnan(self._norm) and not self._must_refuse:
                # in bfloat16 it looks for such gradients first, and then takes no norm of them
                assert self.optimizer.overflow
                self._judge(math.inf)
        finally:
            self.optimizer.override_loss_scale(1.0)
            self._has_gradients = False
            if self.stage < 3:
                for group in self.optimizer.averaged_gradients:
                    self.optimizer.averaged_gradients[group] = None

    def _install_guard(self) -> None:
        """Let the guard read the norm before DeepSpeed uses it; refused means infinite."""
        if self.stage < 3:
            self.optimizer.scaled_global_norm = self._guarded(self.optimizer.scaled_global_norm)
        else:
            norm_groups = self.optimizer._get_norm_groups

            def one_norm() -> torch.Tensor:
                from deepspeed.runtime.utils import combine_grad_norm_groups

                norm: torch.Tensor = combine_grad_norm_groups(norm_groups())
                return norm

            guarded = self._guarded(one_norm)
            self.optimizer._get_norm_groups = lambda: [guarded()]

    def _guarded(self, compute: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
        def norm() -> torch.Tensor:
            found = compute()
            refused = torch.full_like(found, torch.inf)
            if self._must_refuse:
                return refused
            self._judge(float(found) * self._grad_scale)
            return found if self._verdict is None else refused

        return norm

    def _judge(self, norm: float) -> None:
        self._norm = norm
        self._verdict = self.guard.check(norm)


def deepspeed_config(config: Config, world_size: int) -> dict[str, Any]:
    """The run's settings in DeepSpeed's terms, under what `engine.deepspeed` says."""
    on_gpu = config.device != "cpu" and torch.cuda.is_available()
    zero: dict[str, Any] = {
        "stage": config.engine.zero_stage,
        # DeepSpeed refuses to start ZeRO-1 with it
        "overlap_comm": on_gpu and config.engine.zero_stage > 1,
        "contiguous_gradients": True,
    }
    for name in ("optimizer", "param"):
        if getattr(config.engine, f"offload_{name}"):
            zero[f"offload_{name}"] = {"device": "cpu", "pin_memory": on_gpu}
    if config.engine.zero_stage == 3:
        zero["stage3_param_persistence_threshold"] = 1e5 if on_gpu else 0
    ours: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "train_batch_size": world_size,
        "managed_gradient_accumulation": False,
        "gradient_clipping": config.max_grad_norm,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "data_types": {"grad_accum_dtype": "fp32"},
        "steps_per_print": 10**9,
    }
    if config.dtype == "bfloat16":
        ours["bf16"] = {"enabled": True, "check_grad_overflow": True}
    return _merged(ours, read_user_config(config))


def read_user_config(config: Config) -> dict[str, Any]:
    """What `engine.deepspeed_config` names; empty without it.

    Raises:
        UserError: no such file, or settings that must not be changed.
    """
    tree = _user_config(config)
    _check_user_config(tree, config)
    return tree


def _check_user_config(tree: Mapping[str, Any], config: Config) -> None:
    """Without these DeepSpeed would train on in silence: on wrong gradients, or past the guard."""
    in_bfloat16 = config.dtype == "bfloat16"
    needed: dict[str, tuple[Any, str]] = {
        "zero_optimization.stage": (config.engine.zero_stage, "set engine.zero_stage"),
        "zero_optimization.compute_grad_norm": (True, "leave it out"),
        "bf16.enabled": (in_bfloat16, "set dtype"),
        "bf16.check_grad_overflow": (True, "leave it out"),
        "fp16.enabled": (False, "set dtype to bfloat16 or float32"),
        "torch_autocast.enabled": (False, "set dtype to bfloat16 or float32"),
        "managed_gradient_accumulation": (False, "leave it out"),
        "gradient_accumulation_steps": (1, "leave it out"),
    }
    for key, (value, remedy) in needed.items():
        section, _, name = key.rpartition(".")
        inner = tree.get(section, {}) if section else tree
        found = inner.get(name, value) if isinstance(inner, Mapping) else inner
        if found != value:
            raise UserError(
                f"engine.deepspeed_config: {key} is {found!r} in "
                f"{config.engine.deepspeed_config!r} and must be {value!r}; {remedy}"
            )


def _user_config(config: Config) -> dict[str, Any]:
    path = config.engine.deepspeed_config
    if path is None:
        return {}
    try:
        tree = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise UserError(
            f"engine.deepspeed_config: cannot read {path!r} ({error}); give a DeepSpeed JSON file"
        ) from error
    if not isinstance(tree, dict):
        raise UserError(f"engine.deepspeed_config: {path!r} holds no JSON object")
    return tree


def _merged(below: dict[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(below)
    for key, value in above.items():
        mine = result.get(key)
        result[key] = (
            _merged(mine, value) if isinstance(mine, dict) and isinstance(value, dict) else value
        )
    return result


def _without_prefix(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.removeprefix("model."): value for name, value in state.items()}


def import_deepspeed(device_type: str) -> Any:
    """The package, ready for use on "cpu" or "cuda".

    Raises:
        UserError: it cannot be used; names `engine.kind`.
    """
    os.environ.setdefault("DS_ACCELERATOR", device_type)
    try:
        import deepspeed
    except ImportError as error:
        raise UserError(
            f"engine.kind: 'deepspeed' needs the deepspeed package ({error}); install it with "
            "`pip install polaris-fast[deepspeed]`, or set engine.kind to replicated"
        ) from error
    # torch 2.13 renamed what it calls at every collective
    warnings.filterwarnings(
        "ignore", category=FutureWarning, message=".*torch.distributed.*_single"
    )
    # its shared-memory operator would be compiled for minutes at the first collective
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if not dist.is_initialized():
        raise UserError(
            "engine.kind: 'deepspeed' runs under a launcher, with one process too; start with "
            "`torchrun --nproc-per-node N -m MODULE ...`, where MODULE is polaris_fast.train or "
            "polaris_fast.sft"
        )
    if not deepspeed.comm.is_initialized():
        deepspeed.init_distributed(dist_init_required=False)
    return deepspeed
