"""Provider presets: found by address, filled in where nothing is given, shown when resolved."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest
import yaml

from polaris_fast.config import FallbackConfig, JudgeConfig
from polaris_fast.config_file import dump_config, load_config
from polaris_fast.judge_presets import PRESET_KEYS, PRESETS, find_preset, preset_settings
from polaris_fast.types import UserError


@pytest.mark.parametrize(
    ("base_url", "name"),
    [
        ("https://api.openai.com/v1", "openai"),
        ("https://eu.api.openai.com/v1", "openai"),
        ("https://api.anthropic.com/v1/", "anthropic"),
        ("https://generativelanguage.googleapis.com/v1beta/openai", "gemini"),
        ("https://API.DeepSeek.com", "deepseek"),
        ("https://api.mistral.ai/v1", "mistral"),
        ("https://openrouter.ai/api/v1", "openrouter"),
        ("https://api.together.xyz/v1", "together"),
        ("http://localhost:8000/v1", "vllm"),
        ("http://127.0.0.1:30000/v1", "sglang"),
        ("http://[::1]:11434/v1", "ollama"),
    ],
)
def test_the_provider_is_known_by_its_address(base_url: str, name: str) -> None:
    preset = find_preset(base_url)
    assert preset is not None
    assert preset.name == name


@pytest.mark.parametrize(
    "base_url",
    [
        None,
        "",
        "no address",
        "http://gpu-7:8000/v1",  # another machine may run anything
        "https://notapi.openai.com.example/v1",
        "https://evil-openrouter.ai/v1",
        "http://localhost:port/v1",
    ],
)
def test_other_addresses_have_no_preset(base_url: str | None) -> None:
    assert find_preset(base_url) is None
    assert preset_settings(base_url, "gpt-5") == {}


@pytest.mark.parametrize(
    ("base_url", "model", "temperature", "top_p"),
    [
        ("https://api.openai.com/v1", "gpt-4.1-mini", 0.2, 0.9),
        ("https://api.openai.com/v1", "chatgpt-4o-latest", 0.2, 0.9),
        ("https://api.openai.com/v1", "ft:gpt-4o:mine", 0.2, 0.9),
        ("https://api.openai.com/v1", "gpt-5.1", 0.2, 0.9),
        ("https://api.openai.com/v1", "gpt-5-chat-latest", 0.2, 0.9),
        ("https://api.openai.com/v1", "gpt-5", None, None),
        ("https://api.openai.com/v1", "gpt-5-mini", None, None),
        ("https://api.openai.com/v1", "gpt-5.15", None, None),
        ("https://api.openai.com/v1", "o4-mini", None, None),
        ("https://api.anthropic.com/v1", "claude-sonnet-4-5-20250929", 0.2, None),
        ("https://api.anthropic.com/v1", "claude-opus-4-6", 0.2, None),
        ("https://api.anthropic.com/v1", "claude-opus-4-20250514", 0.2, None),
        ("https://api.anthropic.com/v1", "claude-opus-4-7", None, None),
        ("https://api.anthropic.com/v1", "claude-sonnet-5", None, None),
        ("https://generativelanguage.googleapis.com/v1beta/openai", "gemini-3.5-flash", None, None),
        ("https://generativelanguage.googleapis.com/v1beta/openai", "gemini-2.5-pro", 0.2, 0.9),
    ],
)
def test_models_that_refuse_a_temperature_are_sent_none(
    base_url: str, model: str, temperature: float | None, top_p: float | None
) -> None:
    judge = JudgeConfig(base_url=base_url, model=model)
    assert (judge.temperature, judge.top_p) == (temperature, top_p)


def test_only_keys_that_are_not_given_are_filled() -> None:
    judge = JudgeConfig(base_url="https://api.deepseek.com/v1", model="deepseek-chat")
    assert (judge.api_key_env, judge.response_format) == ("DEEPSEEK_API_KEY", "json_object")
    own = JudgeConfig(
        base_url="https://api.deepseek.com/v1",
        model="deepseek-chat",
        api_key_env="MY_KEY",
        response_format="none",
    )
    assert (own.api_key_env, own.response_format) == ("MY_KEY", "none")
    assert own.max_tokens_parameter == "max_tokens"


def test_a_preset_can_be_named_or_turned_off() -> None:
    proxy = "https://proxy.example/v1"
    assert JudgeConfig(base_url=proxy, model="m").api_key_env == "OPENAI_API_KEY"
    assert JudgeConfig(base_url=proxy, model="m", preset="mistral").api_key_env == "MISTRAL_API_KEY"
    plain = JudgeConfig(base_url="https://api.mistral.ai/v1", model="m", preset=None)
    assert plain.api_key_env == "OPENAI_API_KEY"


def test_the_resolved_configuration_shows_them_and_reads_back_the_same(tmp_path) -> None:
    overrides = {
        "judge.base_url": "https://api.anthropic.com/v1",
        "judge.model": "claude-sonnet-5",
    }
    config = load_config(None, overrides)
    shown = yaml.safe_load(dump_config(config))["judge"]
    assert shown["api_key_env"] == "ANTHROPIC_API_KEY"
    assert shown["temperature"] is None
    path = tmp_path / "resolved.yaml"
    path.write_text(dump_config(config))
    assert load_config(path) == config


DEEPSEEK = {"judge.base_url": "https://api.deepseek.com/v1", "judge.model": "deepseek-chat"}


def run_file(tmp_path: Path, **overrides: str) -> Path:
    """The `config.yaml` of a run with such a judge: every key is named in it."""
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(load_config(None, {f"judge.{k}": v for k, v in overrides.items()})))
    return path


@pytest.mark.parametrize(
    "judge",
    [
        {},  # the local one
        {
            "base_url": "https://api.openai.com/v1",
            "model": "gpt-5",
            "price_input": "1",
            "price_output": "10",
            "requests_per_minute": "5",
            "context_length": "4096",
        },
    ],
    ids=["local", "openai"],
)
def test_no_key_price_or_limit_of_a_run_goes_to_another_address(tmp_path, judge) -> None:
    found = load_config(run_file(tmp_path, **judge), DEEPSEEK).judge
    assert found == load_config(None, DEEPSEEK).judge
    assert found.api_key_env == "DEEPSEEK_API_KEY" and found.price_input is None


def test_no_key_of_a_file_by_hand_goes_to_another_address(tmp_path) -> None:
    path = tmp_path / "mine.yaml"
    judge = "base_url: https://judge.example/v1\n  model: m\n  api_key_env: MY_KEY\n"
    path.write_text(f"judge:\n  {judge}  preset: openai\n  timeout_s: 99\n")
    found = load_config(path, DEEPSEEK).judge
    assert (found.api_key_env, found.response_format) == ("DEEPSEEK_API_KEY", "json_object")
    assert found.timeout_s == 99  # not of one address
    kept = load_config(path, {"judge.base_url": "https://judge.example/v1/"}).judge
    assert kept.api_key_env == "MY_KEY"  # the same address
    given = load_config(path, DEEPSEEK | {"judge.api_key_env": "OTHER"}).judge
    assert given.api_key_env == "OTHER"


def test_a_file_without_an_address_sets_the_judge_that_the_command_names(tmp_path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("judge:\n  api_key_env: MY_KEY\n  price_input: 1\n  price_output: 2\n")
    found = load_config(path, DEEPSEEK).judge
    assert (found.api_key_env, found.price_input) == ("MY_KEY", 1)


@pytest.mark.parametrize(("key", "value"), [("model", "gpt-5"), ("preset", "openai")])
def test_a_judge_without_an_address_is_not_taken_for_the_local_one(key: str, value: str) -> None:
    with pytest.raises(UserError, match=rf"judge\.{key} \({value}\) needs judge\.base_url"):
        load_config(None, {f"judge.{key}": value})
    own = {f"judge.{key}": value, "reward.function": "package.module:f"}
    assert getattr(load_config(None, own).judge, key) == value


def test_a_file_that_loses_its_judges_address_has_the_local_judge(tmp_path: Path) -> None:
    local = {"judge.base_url": "null", "judge.fallback.base_url": "null"}
    assert load_config("polaris_9b", local).judge.model == "local-heuristic"
    path = run_file(
        tmp_path,
        base_url="https://api.openai.com/v1",
        model="gpt-5",
        preset="openai",
        **{"fallback.base_url": "https://api.mistral.ai/v1", "fallback.model": "m"},
    )
    found = load_config(path, local).judge
    assert (found.model, found.preset, found.fallback) == (
        "local-heuristic",
        "auto",
        FallbackConfig(),
    )


def test_no_key_of_a_runs_fallback_goes_to_another_address(tmp_path) -> None:
    path = run_file(
        tmp_path,
        base_url="http://judge.example/v1",
        **{
            "fallback.base_url": "https://api.openai.com/v1",
            "fallback.model": "gpt-5",
            "fallback.api_key_env": "OPENAI_API_KEY",
        },
    )
    other = {"judge.fallback.base_url": "https://api.mistral.ai/v1", "judge.fallback.model": "m"}
    assert load_config(path, other).judge.for_fallback().api_key_env == "MISTRAL_API_KEY"


def test_another_model_at_a_runs_address_gets_the_sampling_it_takes(tmp_path) -> None:
    path = run_file(tmp_path, base_url="https://api.openai.com/v1", model="gpt-4.1")
    assert load_config(path).judge.temperature == 0.2
    assert load_config(path, {"judge.model": "gpt-5"}).judge.temperature is None
    chosen = run_file(
        tmp_path, base_url="https://api.openai.com/v1", model="gpt-4.1", temperature="0.7"
    )
    assert load_config(chosen, {"judge.model": "gpt-4o"}).judge.temperature == 0.7


def test_a_fallback_takes_its_own_providers_settings() -> None:
    judge = JudgeConfig(
        base_url="https://api.openai.com/v1",
        model="gpt-5",
        fallback=FallbackConfig(base_url="https://api.deepseek.com/v1", model="deepseek-chat"),
    )
    second = judge.for_fallback()
    assert (second.api_key_env, second.response_format) == ("DEEPSEEK_API_KEY", "json_object")
    assert second.max_tokens_parameter == "max_tokens"


def test_every_preset_sets_known_keys_to_valid_values_and_can_be_named() -> None:
    named = {name for union in get_args(JudgeConfig.model_fields["preset"].annotation)
             for name in get_args(union) or (union,)}  # fmt: skip
    for preset in PRESETS:
        assert preset.name in named
        assert preset.docs.startswith("https://")
        for settings in (preset.settings, *preset.models.values()):
            assert settings.keys() <= JudgeConfig.model_fields.keys()
            assert settings.keys() <= set(PRESET_KEYS)
            JudgeConfig(base_url="http://judge.example/v1", model="m", **settings)


def test_the_address_may_come_from_an_environment_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", "https://api.deepseek.com/v1")
    assert load_config(None, {}).judge.base_url is None  # only where it is asked for
    keys = {"judge.base_url": "$OPENAI_BASE_URL", "judge.fallback.base_url": "${OPENAI_BASE_URL}"}
    judge = load_config(None, keys | {"judge.fallback.model": "m"}).judge
    assert judge.base_url == judge.fallback.base_url == "https://api.deepseek.com/v1"
    assert judge.api_key_env == "DEEPSEEK_API_KEY"  # the provider's preset


@pytest.mark.parametrize("key", ["judge.base_url", "judge.fallback.base_url"])
def test_an_address_from_a_variable_that_is_not_set_is_refused(
    key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", " ")
    with pytest.raises(
        UserError, match=f"{key}: environment variable 'OPENAI_BASE_URL' is not set"
    ):
        load_config(None, {key: "$OPENAI_BASE_URL", "judge.fallback.model": "m"})
