"""What known providers of OpenAI-compatible endpoints want, by base URL and model name.

    preset_settings("https://api.deepseek.com/v1", "deepseek-chat")
    # {"api_key_env": "DEEPSEEK_API_KEY", "response_format": "json_object", ...}

`JudgeConfig` takes these where its keys are not given; the resolved configuration shows them. A
temperature of None is not sent: some models refuse it. Facts as documented in November 2026; `docs`
says where to look when a provider has moved on. No prices: they change faster.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

# The keys of JudgeConfig that a preset may set.
PRESET_KEYS = ("api_key_env", "temperature", "top_p", "max_tokens_parameter", "response_format")
_NO_SAMPLING = {"temperature": None, "top_p": None}
LOOPBACK = {"localhost", "127.0.0.1", "::1"}


@dataclass(frozen=True, slots=True)
class Preset:
    """One provider or server."""

    name: str
    docs: str
    settings: Mapping[str, Any]  # keys of JudgeConfig
    hosts: tuple[str, ...] = ()  # these and their subdomains
    local_port: int | None = None  # the server's default port on this machine
    models: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # pattern -> settings


PRESETS = (
    Preset(
        "openai",
        "https://platform.openai.com/docs/api-reference/chat/create",
        {
            "api_key_env": "OPENAI_API_KEY",
            "max_tokens_parameter": "max_completion_tokens",
            "response_format": "json_schema",
            **_NO_SAMPLING,  # reasoning models take the default only
        },
        hosts=("api.openai.com",),
        models={  # no reasoning, or none by default
            r"(chatgpt-|(ft:)?gpt-)(3|4)|gpt-5-chat|gpt-5\.[12](-\d|$)": {
                "temperature": 0.2,
                "top_p": 0.9,
            },
        },
    ),
    Preset(
        "anthropic",
        "https://platform.claude.com/docs/en/api/openai-sdk",
        {
            "api_key_env": "ANTHROPIC_API_KEY",
            "max_tokens_parameter": "max_tokens",
            "response_format": "none",  # ignored by the endpoint: the rubric asks for JSON
            **_NO_SAMPLING,  # refused from Claude 4.7 on
        },
        hosts=("api.anthropic.com",),
        models={  # 4.1 to 4.6 take one of the two
            r"claude-(3|(opus|sonnet|haiku)-4(-[0-6])?(-\d{8}|$))": {"temperature": 0.2},
        },
    ),
    Preset(
        "gemini",
        "https://ai.google.dev/gemini-api/docs/openai",
        {
            "api_key_env": "GEMINI_API_KEY",
            "max_tokens_parameter": "max_tokens",
            "response_format": "json_schema",
        },
        hosts=("generativelanguage.googleapis.com",),
        models={r"(models/)?gemini-[3-9]": _NO_SAMPLING},  # advised to run at the default
    ),
    Preset(
        "deepseek",
        "https://api-docs.deepseek.com/guides/json_mode",
        {
            "api_key_env": "DEEPSEEK_API_KEY",
            "max_tokens_parameter": "max_tokens",
            "response_format": "json_object",
        },
        hosts=("api.deepseek.com",),
    ),
    Preset(
        "mistral",
        "https://docs.mistral.ai/capabilities/structured-output/custom_structured_output/",
        {
            "api_key_env": "MISTRAL_API_KEY",
            "max_tokens_parameter": "max_tokens",
            "response_format": "json_schema",
        },
        hosts=("api.mistral.ai",),
    ),
    Preset(
        "openrouter",
        "https://openrouter.ai/docs/api-reference/overview",
        {
            "api_key_env": "OPENROUTER_API_KEY",
            "max_tokens_parameter": "max_tokens",
            "response_format": "json_schema",  # models that cannot leave it out
        },
        hosts=("openrouter.ai",),
    ),
    Preset(
        "together",
        "https://docs.together.ai/docs/openai-api-compatibility",
        {
            "api_key_env": "TOGETHER_API_KEY",
            "max_tokens_parameter": "max_tokens",
            "response_format": "json_schema",
        },
        hosts=("api.together.xyz", "api.together.ai"),
    ),
    Preset(
        "vllm",
        "https://docs.vllm.ai/en/latest/serving/openai_compatible_server.html",
        {"max_tokens_parameter": "max_tokens", "response_format": "json_schema"},
        local_port=8000,
    ),
    Preset(
        "sglang",
        "https://docs.sglang.ai/basic_usage/openai_api_completions.html",
        {"max_tokens_parameter": "max_tokens", "response_format": "json_schema"},
        local_port=30000,
    ),
    Preset(
        "ollama",
        "https://docs.ollama.com/api/openai-compatibility",
        {
            "api_key_env": "OLLAMA_API_KEY",  # of the cloud; a local server wants none
            "max_tokens_parameter": "max_tokens",
            "response_format": "json_schema",
        },
        hosts=("ollama.com",),
        local_port=11434,
    ),
)


def url_from_environment(value: Any) -> Any:
    """`$NAME` is what the environment variable NAME holds; anything else stays as it is.

    Raises:
        ValueError: the variable is not set, or empty.
    """
    if not isinstance(value, str) or not value.startswith("$"):
        return value
    name = value[1:].strip("{}")
    found = os.environ.get(name, "").strip()
    if not found:
        raise ValueError(f"environment variable {name!r} is not set; set it, or give the URL")
    return found


def find_preset(base_url: str | None, choice: str | None = "auto") -> Preset | None:
    """The preset called `choice`; for "auto" the one of the address; None for neither."""
    if choice != "auto":
        return next((preset for preset in PRESETS if preset.name == choice), None)
    try:
        parts = urlsplit(base_url or "")
        host, port = (parts.hostname or "").lower(), parts.port
    except ValueError:  # told when the address is used
        return None
    for preset in PRESETS:
        if any(host == known or host.endswith("." + known) for known in preset.hosts):
            return preset
        if host in LOOPBACK and port is not None and port == preset.local_port:
            return preset
    return None


def preset_settings(
    base_url: str | None, model: str | None, choice: str | None = "auto"
) -> dict[str, Any]:
    """Keys of the judge's section that the provider and the model want; {} when unknown."""
    preset = find_preset(base_url, choice)
    if preset is None:
        return {}
    settings = dict(preset.settings)
    for pattern, changes in preset.models.items():
        if re.match(pattern, (model or "").lower()):
            settings |= changes
    return settings
