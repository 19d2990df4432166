"""Generation with the training model in place, through transformers' own forward and cache.

R rows of a wave · B of them in flight · P prompts · L padded prompt length · V vocabulary · C
completion limit. Rows of one prompt share its prefill; finished rows leave the batch. Prompts are
left-padded here only: padding never leaves this file. A token costs one transfer from the device,
the tokens themselves; log-probs follow when their row ends.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from ..types import FinishReason
from .base import Completion, RolloutRequest, SamplingParams
from .cache import growing_cache
from .sampling import Draw, draw

# The cache is copied when rows leave, so they leave in batches of at least this share.
_COMPACT_SHARE = 0.125


class HFEngine:
    """Rollouts by a decode loop over a `transformers` causal LM."""

    serves_all_ranks = False

    def __init__(
        self,
        model: Any,
        max_batch_size: int,
        whole_weights: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        """
        Args:
            whole_weights: entered around a generation, where weights are kept in shards.
        """
        self.model, self.max_batch_size = model, max_batch_size
        self.whole_weights = whole_weights
        self.wave_type: type[Wave] = Wave  # decodes a batch of rows

    def sync(self, version: int, check_stop: Callable[[], None]) -> None:
        """The weights are the trainer's own."""

    def mend(self, version: int, check_stop: Callable[[], None]) -> None:
        """Nothing can be lost."""

    def close(self) -> None:
        """Nothing is held."""

    @torch.no_grad()
    def generate(
        self,
        requests: Sequence[RolloutRequest],
        params: SamplingParams,
        on_finish: Callable[[int, Completion], None],
        on_token: Callable[[int], None] | None = None,
    ) -> None:
        """Draw one completion a request, in waves of `max_batch_size`; see `RolloutEngine`."""
        was_training = self.model.training
        self.model.eval()
        try:
            with self.whole_weights():
                for start in range(0, len(requests), self.max_batch_size):
                    wave = requests[start : start + self.max_batch_size]
                    self.wave_type(self.model, wave, params, start).run(on_finish, on_token)
        finally:
            self.model.train(was_training)


class Wave:
    """One batch of rows from prefill to their last token."""

    def __init__(
        self,
        model: Any,
        requests: Sequence[RolloutRequest],
        params: SamplingParams,
        first: int,  # index of the first request among all
    ) -> None:
        self.model, self.params, self.device, self.first = model, params, model.device, first
        num_rows = len(requests)
        prompts = list(dict.fromkeys(r.prompt_ids for r in requests))
        row_prompt = [prompts.index(r.prompt_ids) for r in requests]
        self.uniforms = torch.stack(
            [_stream(r.seed, params.max_completion_length) for r in requests]
        )
        shape = (num_rows, params.max_completion_length)
        self.tokens = torch.zeros(shape, dtype=torch.long)  # (R, C), as the next two
        self.rollout_logps = torch.zeros(shape, device=self.device)
        self.sampler_logps = torch.zeros(shape, device=self.device)
        self.rows = torch.arange(num_rows)  # (B,) request index of each row of the batch

        logits, cache, mask = _prefill(model, prompts)
        expand = torch.tensor(row_prompt, device=self.device)
        cache.reorder_cache(expand)
        self.cache, self.logits = cache, logits[expand]
        self.width = mask.shape[1]  # tokens of a row in the cache, padding included
        room = mask.new_ones(num_rows, params.max_completion_length)
        self.mask = torch.cat([mask[expand], room], dim=1)  # (B, L + C), of which `width` count
        self.position = mask[expand].sum(-1)  # (B,) position of the next token
        self.seen = self._seen(requests) if params.repetition_penalty != 1.0 else None

    def run(
        self,
        on_finish: Callable[[int, Completion], None],
        on_token: Callable[[int], None] | None,
    ) -> None:
        stop = torch.tensor(sorted(self.params.stop_ids), dtype=torch.long)
        alive = torch.ones(len(self.rows), dtype=torch.bool)
        for step in range(self.params.max_completion_length):
            drawn = draw(
                self.logits,
                self.seen,
                self.uniforms[self.rows, step].to(self.device),
                self.params,
            )
            tokens = drawn.tokens.cpu()
            self._record(step, tokens, drawn)
            stopped = torch.isin(tokens, stop)
            last = step + 1 == self.params.max_completion_length
            for i in (alive & (stopped | last)).nonzero()[:, 0].tolist():
                row = int(self.rows[i])
                reason = FinishReason.STOP if stopped[i] else FinishReason.LENGTH
                on_finish(self.first + row, self._completion(row, step + 1, reason))
            alive &= ~stopped
            num_alive = int(alive.sum())
            if on_token is not None:
                on_token(num_alive)
            if num_alive == 0 or last:
                return
            next_tokens = drawn.tokens
            if num_alive <= (1 - _COMPACT_SHARE) * len(alive):
                next_tokens = self._keep(alive, next_tokens)
                alive = alive[alive]
            self._decode(next_tokens)

    def _decode(self, tokens: torch.Tensor) -> None:
        """One forward of one token a row; leaves the next logits in `self.logits`."""
        self.width += 1
        if self.seen is not None:
            self.seen.scatter_(1, tokens[:, None], True)
        out = self.model(
            input_ids=tokens[:, None],
            attention_mask=self.mask[:, : self.width],
            position_ids=self.position[:, None],
            past_key_values=self.cache,
            use_cache=True,
        )
        self.position = self.position + 1
        self.logits = out.logits[:, -1]

    def _keep(self, alive: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Drop finished rows from the batch; returns the tokens of those that stay."""
        index = alive.nonzero()[:, 0]
        self.rows = self.rows[index]
        index = index.to(self.device)
        self.cache.reorder_cache(index)
        self.mask, self.position = self.mask[index], self.position[index]
        if self.seen is not None:
            self.seen = self.seen[index]
        return tokens[index]

    def _record(self, step: int, tokens: torch.Tensor, drawn: Draw) -> None:
        """Keep a step's draws, those of finished rows too: nobody reads them."""
        self.tokens[self.rows, step] = tokens
        rows = self.rows.to(self.device)
        self.rollout_logps[rows, step] = drawn.rollout_logps
        self.sampler_logps[rows, step] = drawn.sampler_logps

    def _completion(self, row: int, length: int, reason: FinishReason) -> Completion:
        return Completion(
            self.tokens[row, :length].tolist(),
            self.rollout_logps[row, :length].tolist(),
            self.sampler_logps[row, :length].tolist(),
            reason,
        )

    def _seen(self, requests: Sequence[RolloutRequest]) -> torch.Tensor:
        seen = torch.zeros(len(requests), self.logits.shape[-1], dtype=torch.bool)
        for row, request in enumerate(requests):
            seen[row, list(request.prompt_ids)] = True
        return seen.to(self.device)


def _stream(seed: int, length: int) -> torch.Tensor:
    """(length,) fp64 uniforms of one row; fp64 so that rare tokens are not lost in rounding."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(length, dtype=torch.float64, generator=generator)


def _prefill(model: Any, prompts: list[tuple[int, ...]]) -> tuple[torch.Tensor, Any, torch.Tensor]:
    """Logits after each prompt (P, V), the cache, and the mask (P, L) of real tokens."""
    longest = max(len(p) for p in prompts)
    ids = torch.zeros(len(prompts), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, prompt in enumerate(prompts):
        ids[i, longest - len(prompt) :] = torch.tensor(prompt)
        mask[i, longest - len(prompt) :] = 1
    ids, mask = ids.to(model.device), mask.to(model.device)
    position = (mask.cumsum(-1) - 1).clamp(min=0)
    cache = growing_cache(model.config)
    out = model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=position,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    )
    return out.logits[:, -1], cache, mask
