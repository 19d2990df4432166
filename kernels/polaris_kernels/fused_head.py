"""The head as a module: an `nn.Linear` that is given targets.

from polaris_kernels import FusedHead, LossRows, LossSpec
model.lm_head = FusedHead.from_linear(model.lm_head)
out = model.lm_head(hidden, targets=targets, rows=LossRows(...), spec=LossSpec(...))
out.loss.backward()
"""

from typing import Any, cast

from torch import Tensor, nn
from torch.nn import functional as F

from .exact_kl import KLLossOutput, linear_kl, linear_kl_loss
from .head import GRPOLossOutput, TokenLogps, linear_grpo_loss, linear_logps
from .rows import LossRows


class FusedHead(nn.Linear):
    """An `nn.Linear` that turns hidden states into log-probs or a loss when it is given targets.

    Calling it as a module is what lets ZeRO-3 and FSDP2 gather the weight, before forward and again
    before backward, and what keeps tied weights one parameter.
    """

    @classmethod
    def from_linear(cls, linear: nn.Linear) -> "FusedHead":
        """A head over the very parameters of `linear` (tied weights stay tied).

        A layer that changes its output by other means than weight and bias (an adapter, a
        parametrization, a quantized layer, a hook, a forward of its own) is refused: the fused pass
        would leave that out.
        """
        if names := _changes(linear):
            raise ValueError(
                f"{cls.__name__}.from_linear: the layer has {names}, which the head would not run; "
                "make the head first, and hook that"
            )
        if not cls._takes(linear):
            raise ValueError(
                f"{cls.__name__}.from_linear: got "
                f"{type(linear).__module__}.{type(linear).__qualname__}, "
                "not a plain nn.Linear; merge or remove its adapter or parametrization first"
            )
        head = cls(
            linear.in_features,
            linear.out_features,
            bias=linear.bias is not None,
            device="meta",
            dtype=linear.weight.dtype,
        )
        head.weight = linear.weight
        head.bias = linear.bias
        return head.train(linear.training)

    @classmethod
    def _takes(cls, linear: nn.Linear) -> bool:
        """True where weight and bias are all that the layer's logits are made of."""
        return type(linear) in (nn.Linear, cls)

    def forward(  # type: ignore[override]
        self,
        hidden: Tensor,
        *,
        targets: Tensor | None = None,
        rows: LossRows | None = None,
        ref_hidden: Tensor | None = None,
        **options: Any,
    ) -> Tensor | TokenLogps | GRPOLossOutput | KLLossOutput:
        """`TokenLogps` with targets, `GRPOLossOutput` with rows too; with `ref_hidden`, the exact
        KL to a reference; logits with neither.

        Args:
            hidden: (..., D).
            targets: (...) integers.
            rows: the loss's inputs.
            ref_hidden: (..., D_ref) of a reference model: the result is that of `linear_kl_loss`,
                or without rows of `linear_kl`. Takes no targets.
            options: keywords of `linear_logps`, `linear_grpo_loss`, `linear_kl` or
                `linear_kl_loss`, except `bias`. Without `ref_weight` the reference ends in this
                very head, as a model with its adapters off does.
        """
        if ref_hidden is not None:
            return self._kl(hidden, ref_hidden, targets, rows, options)
        if targets is None:
            if rows is not None or options:
                given = ", ".join((["rows"] if rows is not None else []) + sorted(options))
                raise ValueError(f"FusedHead: {given} given without targets; pass targets too")
            return F.linear(hidden, self.weight, self.bias)
        if rows is None:
            return linear_logps(hidden, self.weight, targets, bias=self.bias, **options)
        return linear_grpo_loss(hidden, self.weight, targets, rows=rows, bias=self.bias, **options)

    def _kl(
        self,
        hidden: Tensor,
        ref_hidden: Tensor,
        targets: Tensor | None,
        rows: LossRows | None,
        options: dict[str, Any],
    ) -> Tensor | KLLossOutput:
        if targets is not None:
            raise ValueError(
                "FusedHead: targets and ref_hidden given together; the exact KL has no targets: "
                "call the head once for the loss and once for the KL"
            )
        if options.get("ref_weight") is None:
            own = {"ref_weight": self.weight.detach()}
            own["ref_bias"] = None if self.bias is None else self.bias.detach()
            options = options | own
        weight, ref_weight = self.weight, options.pop("ref_weight")
        if rows is None:
            return linear_kl(hidden, weight, ref_hidden, ref_weight, bias=self.bias, **options)
        return linear_kl_loss(
            hidden, weight, ref_hidden, ref_weight, rows=rows, bias=self.bias, **options
        )

    def logps(self, hidden: Tensor, *, targets: Tensor, **options: Any) -> TokenLogps:
        """`linear_logps` through the module, hooks and all; options as there."""
        return cast(TokenLogps, self(hidden, targets=targets, **options))


def _changes(linear: nn.Module) -> str:
    """What a layer does besides its class's forward, in words; "" for nothing."""
    hooks = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
    found = [name.strip("_").replace("_", " ") for name in hooks if getattr(linear, name, None)]
    if "forward" in vars(linear):
        found.append("a forward of its own")
    return ", ".join(found)
