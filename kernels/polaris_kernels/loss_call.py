"""One loss call between its public function and autograd: tokens chosen, loss made, one pass run.

Eager calls (`autograd.LossFunction`) and compiled ones (`ops`) both go through here, so that they
give the same numbers.

Shapes: `N tokens . K tokens with loss . D hidden . V vocab`.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .backends import get_backend
from .backends.base import Coefficients, HeadBackend, HeadGradients, Statistics, Wanted
from .backends.vocab_sharded import ShardedBackend
from .foreseen import Foreseen, RowRule, rule_of
from .metrics import Metrics
from .objective import CallbackObjective, Objective, SpecObjective, TokenGradients
from .problem import (
    HeadOptions,
    HeadProblem,
    accumulation_dtype,
    check_temperature,
    compute_dtype_of,
    make_problem,
)
from .rows import LossFn, LossRows, TokenView, scatter_tokens, select_tokens, view_rows
from .spec import LossSpec


@dataclass
class LossCall:
    """The loss of one call, ready to run."""

    problem: HeadProblem
    objective: Objective
    backend: HeadBackend
    wanted: Wanted
    view: TokenView
    index: Tensor | None
    """(K,) positions of the problem's tokens among the N; None: K is N"""
    num_tokens: int
    """N"""
    grad_scale: float | Tensor = 1.0
    weight_into: Tensor | None = None
    """(V, D) the weight gradient is added to it instead of being returned"""

    def run(self) -> tuple[Tensor, Metrics, Statistics, HeadGradients]:
        """The loss times `grad_scale`, its gradients, and metrics and statistics without it."""
        statistics, gradients = self._passes()
        loss, metrics = self.objective.finish(statistics.logp, statistics.entropy)
        return times_scale(loss, self.grad_scale), metrics, statistics, gradients

    def scatter(self, values: Tensor) -> Tensor:
        """(K,) -> (N,): 0 where a token carries no loss."""
        return scatter_tokens(values, self.index, self.view.kept, self.num_tokens)

    def _passes(self) -> tuple[Statistics, HeadGradients]:
        problem, objective, backend = self.problem, self.objective, self.backend
        if not self.wanted.any:
            return backend.statistics(problem), HeadGradients(None, None, None)
        if not objective.needs_whole_rows or backend.num_chunks(problem) <= 1:
            return self._gradients(
                lambda tokens, s: objective.gradients(tokens, s.logp, s.entropy),
                lambda tokens: rule_of(objective, tokens, self.grad_scale),
                entropy_gradient=objective.uses_entropy_gradient,
            )
        # two phases: log-probs of all rows, their coefficients, then the gradients
        first = backend.statistics(problem)
        whole = objective.gradients(slice(0, problem.num_tokens), first.logp, first.entropy)
        _, gradients = self._gradients(
            lambda tokens, _: cut_gradients(whole, tokens),
            lambda tokens: RowRule(scale_gradients(cut_gradients(whole, tokens), self.grad_scale)),
            entropy_gradient=whole.entropy is not None,
        )
        return first, gradients

    def _gradients(
        self,
        coefficients: Coefficients,
        rule: Callable[[slice], RowRule | None],
        *,
        entropy_gradient: bool,
    ) -> tuple[Statistics, HeadGradients]:
        return self.backend.gradients(
            self.problem,
            Foreseen(
                lambda tokens, s: scale_gradients(coefficients(tokens, s), self.grad_scale), rule
            ),
            self.wanted,
            entropy_gradient=entropy_gradient,
            weight_into=self.weight_into,
        )


def prepare_loss(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    rows: LossRows,
    spec: LossSpec,
    options: HeadOptions,
    wanted: Wanted,
    *,
    loss_fn: LossFn | None = None,
    loss_fn_needs_whole_rows: bool = False,
    caller: str = "linear_grpo_loss",
) -> tuple[LossCall, Tensor]:
    """Check everything, keep the tokens that carry loss, and look their inputs up.

    Args:
        hidden: (N, D); targets (N,).

    Returns:
        The call, and its hidden states (K, D), still in the caller's graph.
    """
    num_tokens = targets.shape[0]
    rows.validate(num_tokens, hidden.device, caller)
    if loss_fn is None:
        check_inputs_of_spec(rows, spec, caller)
    index, kept = select_tokens(rows, num_tokens)
    compute = options.compute_dtype or compute_dtype_of(hidden, weight)
    acc = accumulation_dtype(compute)
    view = view_rows(rows, index, kept, spec, acc)
    temperature = check_temperature(options.temperature, num_tokens, hidden.device, acc, caller)
    # first compaction: index_select's own backward scatters the hidden gradient back
    if index is not None:
        hidden, targets = hidden.index_select(0, index), targets.index_select(0, index)
        if isinstance(temperature, Tensor):
            temperature = temperature.index_select(0, index)
    elif kept is not None:
        # 0 times an inf under the mask would be nan
        hidden = torch.where(kept.unsqueeze(1), hidden, 0.0)
        targets = targets.masked_fill(~kept, 0)
        if isinstance(temperature, Tensor):
            temperature = torch.where(kept, temperature, 1.0)
    if isinstance(temperature, Tensor):
        options = replace(options, temperature=temperature)
    problem, backend = prepare_head(hidden, weight, bias, targets, options, caller)
    call = LossCall(
        problem=problem,
        objective=build_objective(spec, loss_fn, loss_fn_needs_whole_rows, view),
        backend=backend,
        wanted=wanted,
        view=view,
        index=index,
        num_tokens=num_tokens,
    )
    return call, hidden


def prepare_head(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    options: HeadOptions,
    caller: str,
) -> tuple[HeadProblem, HeadBackend]:
    """The validated problem of hidden (N, D) and targets (N,), and who solves it."""
    vocab = options.vocab
    if vocab is not None:
        vocab.check(weight, caller)
    problem = make_problem(
        hidden,
        weight,
        targets,
        bias=bias,
        temperature=options.temperature,
        softcap=options.softcap,
        logit_scale=options.logit_scale,
        logits_dtype=options.logits_dtype,
        chunk_bytes=options.chunk_bytes,
        caller=caller,
        compute_dtype=options.compute_dtype,
        total_vocab=None if vocab is None else vocab.total,
    )
    backend = get_backend(hidden.device, options.backend)
    return problem, backend if vocab is None else ShardedBackend(backend, vocab)


def build_objective(
    spec: LossSpec, loss_fn: LossFn | None, needs_whole_rows: bool, view: TokenView
) -> Objective:
    """The loss of one call: the user's when there is one, else the spec's."""
    if loss_fn is None:
        return SpecObjective(spec, view)
    return CallbackObjective(loss_fn, view, whole_rows=needs_whole_rows)


def check_inputs_of_spec(rows: LossRows, spec: LossSpec, caller: str) -> None:
    """ValueError when the spec needs a field that the rows do not have."""
    if spec.beta > 0 and rows.ref_logps is None:
        raise ValueError(
            f"{caller}: spec.beta={spec.beta} needs rows.ref_logps, got None; pass the reference "
            "model's log-probs or set beta to 0"
        )
    if spec.is_correction != "none" and rows.rollout_logps is None:
        raise ValueError(
            f"{caller}: spec.is_correction={spec.is_correction!r} needs rows.rollout_logps, got "
            "None; pass the engine's log-probs or set is_correction to 'none'"
        )
    if spec.human_ratio == "luffy" and rows.is_human is None:
        raise ValueError(
            f"{caller}: spec.human_ratio='luffy' needs rows.is_human, got None; mark the rows or "
            "set human_ratio to 'same'"
        )
    if rows.entropy_threshold is not None and spec.top_entropy_quantile == 1.0:
        raise ValueError(
            f"{caller}: rows.entropy_threshold is given but spec.top_entropy_quantile is 1.0, "
            "which keeps every token; set the share that the threshold stands for, or drop it"
        )


def cut_gradients(whole: TokenGradients, tokens: slice) -> TokenGradients:
    """The part of `whole` that belongs to some tokens."""
    parts = (whole.logp, whole.entropy, whole.lse)
    return TokenGradients(*(None if part is None else part[tokens] for part in parts))


def scale_gradients(found: TokenGradients, scale: float | Tensor) -> TokenGradients:
    """`found` times a number or a () tensor."""
    parts = (found.logp, found.entropy, found.lse)
    return TokenGradients(*(None if part is None else times_scale(part, scale) for part in parts))


def times_scale(value: Tensor, scale: float | Tensor) -> Tensor:
    """`value` in its own dtype times a number or a () tensor."""
    if isinstance(scale, Tensor):
        # two scalars of different dtypes would promote
        return value * scale.to(value.dtype)
    return value if scale == 1.0 else value * scale
