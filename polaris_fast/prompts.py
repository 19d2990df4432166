"""Records to token ids: the chat prompt a policy sees, and the human row's completion.

The judge sees `record.prompt`; the policy sees it with the length sentence, inside the model's own
chat template. Human rows are closed by that template's own end-of-turn token.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from .config import Config
from .types import StoryRecord, UserError

_THINK_OPEN, _THINK_CLOSE = "<think>", "</think>"


def has_human_row(record: StoryRecord, config: Config) -> bool:
    """Whether this record gives a human row under `hri.mode` and `hri.missing_reasoning`.

    Raises:
        UserError: thinking is on, the reasoning is missing and that is an error.
    """
    if config.hri.mode == "off" or record.story is None:
        return False
    if not config.data.thinking or record.reasoning is not None:
        return True
    if config.hri.missing_reasoning == "error":
        raise UserError(
            f"hri.missing_reasoning: record {record.uid!r} has no reasoning while data.thinking is "
            "on; add it (polaris prepare --reasoning), set hri.missing_reasoning to skip or empty, "
            "or turn data.thinking off"
        )
    return config.hri.missing_reasoning == "empty"


@dataclass
class PromptBuilder:
    """Renders prompts and human completions for one tokenizer.

    Attributes:
        tokenizer: a transformers tokenizer.
        config: the run's configuration (limits, thinking, length sentence).
        model_stop_ids: further tokens that end a completion (the model's generation config).
        end_of_turn_id: token that closes an assistant turn.
        stop_ids: tokens that end a completion.
        opens_thinking: the template's generation prompt already contains an open `<think>`.
    """

    tokenizer: Any
    config: Config
    model_stop_ids: frozenset[int] = frozenset()
    end_of_turn_id: int = field(init=False)
    stop_ids: frozenset[int] = field(init=False)
    opens_thinking: bool = field(init=False)

    def __post_init__(self) -> None:
        self.end_of_turn_id = self._find_end_of_turn()
        eos = self.tokenizer.eos_token_id
        known = {self.end_of_turn_id, *self.model_stop_ids, *([] if eos is None else [eos])}
        self.stop_ids = frozenset(known)
        self.opens_thinking = self._render("x").rstrip().endswith(_THINK_OPEN)
        if self.opens_thinking and not self.config.data.thinking:
            raise UserError(
                "data.thinking: this model's chat template always opens <think>; set "
                "data.thinking to true, and give reasoning or set hri.missing_reasoning"
            )

    def prompt_ids(self, record: StoryRecord) -> list[int]:
        """Token ids of the prompt, ready for generation.

        Raises:
            UserError: longer than `max_prompt_length`.
        """
        ids = self._encode(self._render(self.request(record)))
        if len(ids) > self.config.max_prompt_length:
            raise UserError(
                f"max_prompt_length: the prompt of record {record.uid!r} has {len(ids)} tokens, "
                f"the limit is {self.config.max_prompt_length}; raise it or shorten the prompt"
            )
        return ids

    def bare_prompt_ids(self, request: str) -> list[int]:
        """Token ids of a request without a length sentence."""
        return self._encode(self._render(request))

    def request(self, record: StoryRecord) -> str:
        """What the user asks: the prompt and the length sentence."""
        sentence = self.config.data.length_sentence.format(words=record.target_word_count)
        return f"{record.prompt}\n{sentence}"

    def human_completion_ids(self, record: StoryRecord) -> list[int]:
        """Token ids of the human row: thinking (if on), story, end of turn.

        Raises:
            UserError: longer than `max_completion_length`.
        """
        assert record.story is not None
        text = record.story
        if self.config.data.thinking:
            gap = self.config.data.after_thinking
            text = f"{record.reasoning or ''}\n{_THINK_CLOSE}{gap}{text}"
            if not self.opens_thinking:
                text = f"{_THINK_OPEN}\n{text}"
        ids = [*self._encode(text), self.end_of_turn_id]
        limit = self.config.max_completion_length
        if limit is not None and len(ids) > limit:
            raise UserError(
                f"max_completion_length: the human story of record {record.uid!r} has {len(ids)} "
                f"tokens, the limit is {limit}; raise it, or leave the record out (training "
                "records by data.max_target_words)"
            )
        return ids

    def decode(self, completion_ids: list[int]) -> tuple[str, str]:
        """(thinking, story) of a completion; without `</think>` a thinking row has no story."""
        body = [i for i in completion_ids if i not in self.stop_ids]
        text = self.tokenizer.decode(body, skip_special_tokens=False)
        if not self.config.data.thinking:
            return "", text.strip()
        thinking, closed, story = text.partition(_THINK_CLOSE)
        thinking = thinking.replace(_THINK_OPEN, "", 1).strip()
        return thinking, story.strip() if closed else ""

    def _render(self, request: str) -> str:
        if self.tokenizer.chat_template is None:
            return f"{self.tokenizer.bos_token or ''}{request}\n\n"
        return str(
            self.tokenizer.apply_chat_template(
                [{"role": "user", "content": request}],
                tokenize=False,
                add_generation_prompt=True,
                enable_thinking=bool(self.config.data.thinking),
            )
        )

    def _find_end_of_turn(self) -> int:
        marker = "POLARIS-END-OF-TEXT"
        if self.tokenizer.chat_template is not None:
            rendered = self.tokenizer.apply_chat_template(
                [{"role": "user", "content": "x"}, {"role": "assistant", "content": marker}],
                tokenize=False,
            )
            tail = self._encode(str(rendered).rpartition(marker)[2])
            special = {*self.tokenizer.all_special_ids, *self.tokenizer.added_tokens_decoder}
            for token in tail:  # some templates put a space before it
                if token in special:
                    return int(token)
        if self.tokenizer.eos_token_id is None:
            raise UserError(
                "model_name_or_path: its tokenizer has neither a chat template with an "
                "end-of-turn token nor an eos_token; set tokenizer.eos_token"
            )
        return int(self.tokenizer.eos_token_id)

    def _encode(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])


def load_tokenizer(path: str) -> Any:
    """The tokenizer of a model folder or hub id.

    Raises:
        UserError: there is none, or it cannot be read.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError, KeyError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"model_name_or_path: {path!r} has no tokenizer that transformers can read ({first}); "
            "save one beside the model with tokenizer.save_pretrained"
        ) from error


def stop_ids_of(model: Any) -> frozenset[int]:
    """Tokens that the model's own generation config ends on."""
    ids = getattr(model.generation_config, "eos_token_id", None)
    return frozenset([ids] if isinstance(ids, int) else ids or [])
