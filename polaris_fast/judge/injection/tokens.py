"""Shapes that no prose has: chat-template tokens, thinking tags, answer keys, end marks, notes."""

from __future__ import annotations

import re

from .appeals import GRADING
from .rules import Rule, any_of, regex

ROLE_TOKEN, THINK_TAG, SCHEMA_KEY = "role_token", "think_tag", "schema_key"
END_MARKER, META_NOTE, HIDDEN = "end_marker", "meta_note", "hidden_text"

_ROLE_TOKENS = {
    # ChatML, Llama 3, Qwen, Phi, GLM, DeepSeek, gpt-oss, Cohere; Gemma 4 with one bar
    r"<\|[^|<>\n]{1,40}\|?>|<[a-z_]{2,30}\|>": any_of("<|", "|>"),
    # Llama 2, Mistral
    r"\[/?(?:inst|system_prompt|available_tools|tool_calls|tool_results)\]|<{1,2}/?sys>{1,2}": (
        any_of("inst]", "prompt]", "tools]", "calls]", "results]", "sys>")
    ),
    # sentence marks, Gemma 2 and 3, Seed, MiniMax
    r"</?(?:s|bos|eos|pad|unk|sop|eop)>|\[gmask\]|<(?:start|end)_of_turn>": (
        any_of("<", "[gmask]")
    ),
    r"</?seed:[a-z_]{2,20}>|\]~!?b[\[\]]": any_of("seed:", "]~"),
    # roles as markup
    r"</?(?:system|assistant|user|human|instructions?|system[_-]prompt|tool_call|tool_response|"
    r"function_calls?|im_start|im_end)\b[^<>\n]{0,40}>": any_of("<"),
}
_THINK_TAGS = (
    r"</?(?:ant|antml:)?(?:think|thinking|thoughts?|reasoning|scratchpad|reflection|analysis|"
    r"final_answer|answer)>|\[/?think\]"
)
_KEY = (
    r"[\"'](?:p[1-6]|n10|n[1-9]|bonus|penalty|overall|justification|quotes|score|summary)[\"']"
    r"\s{0,4}:\s{0,4}[\[{\"'\d-]"
)
_BARE_SCORES = (  # P1: 15, P2: 20
    r"\b(?:p[1-6]|n10|n[1-9]) ?[:=] ?\d{1,2}\b[^a-z0-9\n]{1,5}"
    r"(?:p[1-6]|n10|n[1-9]|bonus|penalty) ?[:=] ?\d{1,2}\b"
)
_OPEN = r"^[\[(*_#> ]{0,6}"
_CLOSE = r"[\])*_ ]{0,4}[:\-]"
_AUTHOR = any_of("author", "writer")

RULES = (
    *(Rule(ROLE_TOKEN, regex(pattern), needs=(words,)) for pattern, words in _ROLE_TOKENS.items()),
    Rule(  # Alpaca
        ROLE_TOKEN,
        regex(r"^ {0,3}#{2,4} ?(?:instruction|response|input|system prompt)s? ?:"),
        "line",
        needs=(any_of("##"),),
    ),
    Rule(  # Vicuna and plain transcripts: a stage play has such labels too
        ROLE_TOKEN,
        regex(r"^\W{0,6}(?:system|assistant|user|human)(?: message)?\W{0,4}:"),
        "line",
        (GRADING,),
        needs=(any_of(":"), any_of("system", "assistant", "user", "human")),
    ),
    Rule(THINK_TAG, regex(_THINK_TAGS), needs=(any_of("<", "think]"),)),
    Rule(SCHEMA_KEY, regex(_KEY), "line", needs=(any_of(":"),)),
    Rule(SCHEMA_KEY, regex(_BARE_SCORES), "line", needs=(any_of(":", "="),)),
    Rule(  # what stands between the keys: brackets, fences, quotes in a list
        SCHEMA_KEY,
        regex(r"^ {0,8}(?:```(?:json)?|[\[{}\]],?) {0,4}$|^ {2,8}\"[^\n]{1,200}\",?$"),
        "line",
        (regex(_KEY),),
        needs=(any_of(":"),),
    ),
    Rule(
        END_MARKER,
        regex(
            r"<{1,3} ?/?(?:end|begin|start)?[ _-]?(?:of[ _-])?"
            r"(?:story|prompt|text|material|submission)[ _a-f0-9-]{0,24}>{1,3}"
        ),
        needs=(any_of("<"), any_of(">")),
    ),
    Rule(  # ruled or bracketed: a bare "End of story." is an idiom
        END_MARKER,
        regex(
            r"^ {0,4}[-=*#\[(~_]{1,40} {0,2}(?:the )?(?:end|begin|start)(?:ning)? of "
            r"(?:the |this )?(?:story|text|submission|response|output|prompt|document|material|"
            r"evaluation|completion)\b[^\n]{0,20}$"
        ),
        "line",
        needs=(any_of(" of "), any_of(*"-=*#[(~_")),
    ),
    Rule(
        END_MARKER,
        regex(r"\bboundary code of this request\b"),
        "sentence",
        needs=(any_of("boundary code of this request"),),
    ),
    Rule(
        META_NOTE,
        regex(rf"{_OPEN}(?:author|writer)(?:'s|s'|s)? (?:notes?|comments?){_CLOSE}"),
        "line",
        needs=(_AUTHOR,),
    ),
    Rule(
        META_NOTE,
        regex(r"^[\[(*_ ]{1,6}(?:author|writer)(?:'s|s'|s)? notes?\b"),
        "line",
        needs=(_AUTHOR,),
    ),
    Rule(
        META_NOTE,
        regex(rf"{_OPEN}(?:a/n|notes? (?:from|by) the author){_CLOSE}"),
        "line",
        needs=(any_of("a/n", "the author"),),
    ),
    Rule(
        META_NOTE,
        regex(
            rf"{_OPEN}(?:total |final |approximate )?word[ -]?count\b[^a-z0-9\n]{{1,8}}"
            r"~?\d[\d,]{0,6}[^a-z\n]{0,6}(?:words?)?[^a-z\n]{0,6}$"
        ),
        "line",
        needs=(any_of("count"),),
    ),
    Rule(
        META_NOTE,
        regex(r"^[\[(*]{1,4}(?:~|approx\.? ?|about )?\d[\d,]{1,6} words[.\])*]{1,4}$"),
        "line",
        needs=(any_of(" words"),),
    ),
    Rule(
        META_NOTE,
        regex(r"\bas an? (?:ai|large|artificial)(?: intelligence)? (?:language )?model\b"),
        "sentence",
        in_speech=False,
        needs=(any_of(" model"), any_of("as a")),
    ),
)

_TAGS = r"\U000e0020-\U000e007f"
HIDDEN_RUN = re.compile(  # in the text as written
    rf"(?<![\U0001f3f4{_TAGS}])[{_TAGS}]{{3,}}"  # letters only a machine reads; not a flag's
    r"|[\u200b\u2060\ufeff]{4,}"  # data in zero-width characters
    r"|[\u202d\u202e]"  # order that only a screen shows
)
