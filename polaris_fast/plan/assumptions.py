"""What the planner cannot know: every number here is an assumption, printed and replaceable."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

from ..types import UserError


@dataclass(frozen=True)
class Assumptions:
    """Shares of the data sheet's rates, latencies and sizes; none was measured on a GPU."""

    mfu: float = 0.40
    """Share of the peak FLOP/s that forward and backward of the body reach."""
    head_mfu: float = 0.70
    """The same for the fused head, which is three large GEMMs."""
    bandwidth_share: float = 0.70
    """Share of the memory bandwidth that decoding and the optimizer reach."""
    link_share: float = 0.60
    """Share of the link bandwidth that collectives reach."""
    decode_layer_us: float = 600.0
    """Kernel launches and Python of one layer in one decode step, microseconds."""
    vllm_layer_us: float = 40.0
    """The same of a vLLM server, whose decode steps are CUDA graphs."""
    host_bandwidth_gb: float = 20.0
    """Bytes per second, in GB, of an optimizer in CPU memory."""
    judge_latency_s: float = 30.0
    """Time of one judgement."""
    judge_rubric_tokens: float = 3_000.0
    """Prompt tokens of a judgement besides the story."""
    judge_answer_tokens: float = 1_800.0
    """Completion tokens of a judgement, reasoning included."""
    judge_cached_share: float = 0.0
    """Share of the rubric's tokens that the provider's cache holds."""
    num_prompts: float = 1_388.0
    """Training prompts, where `data.path` does not tell: the paper's."""
    longest_story_words: float = 12_000.0
    """Words of the longest human story, where `max_completion_length` is left to data that is not
    on this machine; at most `data.max_target_words`."""
    gpu_hour_usd: float = 0.0
    """Price of one GPU for one hour; 0: unknown."""

    def with_changes(self, changes: Sequence[str]) -> Assumptions:
        """Apply `NAME=VALUE` texts.

        Raises:
            UserError: an unknown name, or a value that is no number above or equal to 0.
        """
        known = [field.name for field in fields(self)]
        found: dict[str, float] = {}
        for change in changes:
            name, _, text = change.partition("=")
            try:
                found[name] = float(text)
            except ValueError:
                found[name] = -1.0
            if name not in known or not 0 <= found[name] < float("inf"):
                raise UserError(
                    f"--assume: {change!r} must be NAME=VALUE, a number of at least 0, with NAME "
                    f"one of {', '.join(known)}"
                )
        return replace(self, **found)
