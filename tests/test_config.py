"""The configuration: what it accepts, and how it refuses."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from polaris_fast.config import Config
from polaris_fast.config_file import dump_config, known_keys, load_config, shipped_configs
from polaris_fast.types import UserError


@pytest.mark.parametrize("name", shipped_configs())
def test_every_shipped_config_loads_and_survives_a_round_trip(name: str, tmp_path: Path) -> None:
    config = load_config(name)
    copy = tmp_path / "copy.yaml"
    copy.write_text(dump_config(config))
    assert load_config(copy) == config


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("learning_rat", "learning_rate"),
        ("num_generation", "num_generations"),
        ("data.pth", "data.path"),
        ("hri.warmup", "hri.warmup_steps"),
        ("judge.max_concurency", "judge.max_concurrency"),
    ],
)
def test_an_unknown_key_names_the_nearest_one(key: str, nearest: str) -> None:
    with pytest.raises(UserError, match=f"unknown key '{key}'; did you mean '{nearest}'"):
        load_config(None, {key: "1"})


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("learning_rate", "-1"),
        ("top_p", "0"),
        ("top_p", "1.5"),
        ("temperature", "0"),
        ("prompts_per_step", "many"),
        ("hri.mode", "sometimes"),
        ("judge.max_failed_fraction", "1"),
        ("loss_type", "ppo2"),
        ("reward.function", "no_colon"),
        ("data.length_sentence", "'Be long.'"),
    ],
)
def test_a_value_out_of_range_names_key_and_value(key: str, text: str) -> None:
    with pytest.raises(UserError) as error:
        load_config(None, {key: text})
    assert key.split(".")[-1] in str(error.value)
    assert text.strip("'") in str(error.value)


@pytest.mark.parametrize("key", ["judge.base_url", "data.path", "max_completion_length"])
@pytest.mark.parametrize("text", ["", " "])
def test_an_empty_value_is_not_taken_for_null(key: str, text: str) -> None:
    with pytest.raises(UserError, match=rf"^--{key}: empty value; give one, or null$"):
        load_config(None, {key: text})


@pytest.mark.parametrize(
    "key", ["judge.base_url", "judge.fallback.base_url", "data.path", "data.eval_path"]
)
def test_a_blank_text_of_a_file_is_not_taken_for_null(key: str, tmp_path: Path) -> None:
    *sections, leaf = key.split(".")
    text = "".join(f"{section}: {{" for section in sections) + f"{leaf}: ' '" + "}" * len(sections)
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(UserError, match=rf"{key}: empty value ' '; give one, or null"):
        load_config(tmp_path / "mine.yaml")


@pytest.mark.parametrize(
    "key", ["learning_rate", "max_steps", "max_completion_length", "is_cap", "judge.price_input"]
)
def test_true_is_no_number(key: str, tmp_path: Path) -> None:
    """It is what a key has whose value was forgotten."""
    with pytest.raises(UserError, match=rf"{key}: needs a number, got true"):
        load_config(None, {key: "true"})
    *sections, leaf = key.split(".")
    text = "".join(f"{section}: {{" for section in sections) + f"{leaf}: false"
    (tmp_path / "mine.yaml").write_text(text + "}" * len(sections))
    with pytest.raises(UserError, match=rf"{key}: needs a number, got false"):
        load_config(tmp_path / "mine.yaml")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"loss_options.dro_bta": "1"}, "unknown option 'dro_bta'; did you mean 'dro_beta'"),
        ({"loss_options.is_cap": "3"}, "is_cap belongs to the key is_cap"),
        ({"loss_options.human_ratio": "luffy"}, "belongs to the key hri.mode"),
        ({"loss_options.dro_beta": "-1"}, "dro_beta=-1.0 is not possible"),
        ({"loss_options.dro_beta": "null"}, "loss_options.dro_beta: None is no float"),
        ({"loss_options.kl_cov_ratio": "some"}, "loss_options.kl_cov_ratio: 'some' is no float"),
        ({"loss_type": "cispo"}, "epsilon_high=0.28 .* give 1 or more"),
        ({"is_correction": "token_mask", "is_floor": "3"}, "is_floor=3.0"),
        (
            {
                "is_correction": "token_mask",
                "rollout.engine": "vllm",
                "temperature": "0.8",
                "top_k": "20",
            },
            r"is_correction \(token_mask\) .* set temperature to 1",
        ),
    ],
)
def test_losses_that_cannot_be_are_refused_at_the_start(
    overrides: dict[str, str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        load_config(None, overrides)


@pytest.mark.parametrize(
    ("key", "text", "message"),
    [
        ("band_high_min", "2000", r"band_high_min \(2000\) must not exceed band_high_max \(1500"),
        ("repetition_window_stride", "1001", r"stride \(1001\) must not exceed .*words \(1000\)"),
    ],
)
def test_rewards_that_contradict_themselves_are_refused(key: str, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_config(None, {f"reward.{key}": text})


def test_a_number_that_yaml_reads_as_text_is_a_number() -> None:
    keys = {"loss_type": "kl_cov", "loss_options": "{kl_cov_ratio: 2e-4}"}
    assert load_config(None, keys).loss_spec().kl_cov_ratio == 2e-4


def test_every_field_of_the_loss_can_be_set() -> None:
    keys = {
        "loss_type": "gmpo",
        "kl_estimator": "k3+",
        "is_correction": "geometric_mask",
        "is_cap": "null",
        "is_floor": "0.5",
        "top_entropy_quantile": "0.2",
        "off_policy_mask_threshold": "0.1",
        "loss_options.aggregation": "token_mean",
    }
    spec = load_config(None, keys).loss_spec()
    assert (spec.loss_type, spec.kl_estimator, spec.aggregation) == ("gmpo", "k3+", "token_mean")
    assert (spec.is_correction, spec.is_cap, spec.is_floor) == ("geometric_mask", None, 0.5)
    assert (spec.top_entropy_quantile, spec.off_policy_mask_threshold) == (0.2, 0.1)


def test_too_few_generations_for_a_human_row_say_what_to_do() -> None:
    with pytest.raises(UserError, match=r"num_generations must be at least 4 .* hri.mode=off"):
        load_config(None, {"num_generations": "3"})
    assert load_config(None, {"num_generations": "3", "hri.mode": "off"}).num_generations == 3


def test_overrides_win_over_the_file_and_keep_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("learning_rate: 2.0e-5\nhri: {weight: 0.7}\n")
    config = load_config(path, {"hri.warmup_steps": "3", "learning_rate": "1e-4"})
    assert (config.learning_rate, config.hri.weight, config.hri.warmup_steps) == (1e-4, 0.7, 3)


def test_the_faithful_preset_holds_the_papers_settings() -> None:
    config = load_config("polaris_9b")
    assert (config.learning_rate, config.epsilon, config.epsilon_high) == (1e-6, 0.2, 0.28)
    assert (config.prompts_per_step, config.num_generations, config.num_iterations) == (8, 6, 1)
    assert (config.temperature, config.top_p, config.top_k) == (1.0, 0.95, 20)
    assert (config.repetition_penalty, config.max_prompt_length) == (1.10, 256)
    assert (config.max_completion_length, config.beta, config.save_steps) == (8192, 0.0, 5)
    assert (config.hri.weight, config.hri.warmup_steps, config.data.thinking) == (0.4, 15, True)
    reward = config.reward
    assert (reward.repetition_weight, reward.length_weight, reward.blank_weight) == (1.5, 0.8, 1.0)
    assert (reward.word_counter, reward.min_reward, reward.max_reward) == ("word_chars", -2.0, 2.0)
    # the paper's reward has no term for stories that speak to the judge; our presets have
    assert (config.judge.scans(), reward.injection_penalty) == (False, 0.0)
    for ours in ("polaris_9b_12k", "polaris_9b_lora_1gpu"):
        assert load_config(ours).judge.scans() and load_config(ours).reward.injection_penalty > 0


def test_trackers_are_given_as_one_name_none_or_a_list() -> None:
    for text, expected in (("tensorboard", ["tensorboard"]), ("none", []), ("[wandb]", ["wandb"])):
        assert load_config(None, {"report_to": text}).report_to == expected


def test_a_missing_or_broken_file_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no such file 'nowhere\.yaml'"):
        load_config("nowhere.yaml")
    broken = tmp_path / "broken.yaml"
    broken.write_text("a: [1")
    with pytest.raises(UserError, match="not valid YAML"):
        load_config(broken)


@pytest.mark.parametrize(
    ("line", "nested"),
    [
        ("data.path: x", "data: {path: ...}"),
        ("judge: {fallback.model: x}", "judge: {fallback: {model: ...}}"),
    ],
)
def test_a_dotted_key_of_a_file_is_told_to_be_nested(
    line: str, nested: str, tmp_path: Path
) -> None:
    (tmp_path / "mine.yaml").write_text(line)
    with pytest.raises(UserError, match=f"a file nests it: write `{re.escape(nested)}`"):
        load_config(tmp_path / "mine.yaml")


@pytest.mark.parametrize("key", ["model_name_or_path", "data.path"])
def test_a_value_that_is_no_yaml_is_one_clear_error(key: str) -> None:
    with pytest.raises(UserError, match=f"^--{key}: cannot read '@x' as YAML .* in quotes"):
        load_config(None, {key: "@x"})


def test_every_field_is_described() -> None:
    def check(model: type, prefix: str = "") -> list[str]:
        missing = []
        for name, info in model.model_fields.items():
            inner = info.annotation
            if isinstance(inner, type) and hasattr(inner, "model_fields"):
                missing += check(inner, f"{prefix}{name}.")
            elif not info.description:
                missing.append(prefix + name)
        return missing

    assert check(Config) == []
    assert len(known_keys()) == len(set(known_keys()))
    assert yaml.safe_load(dump_config(Config())).keys() == Config.model_fields.keys()


def test_a_row_that_no_microbatch_can_hold_is_refused_at_once() -> None:
    with pytest.raises(UserError, match=r"packing\.max_tokens_per_microbatch \(1000\) must hold"):
        load_config("polaris_9b", {"packing.max_tokens_per_microbatch": "1000"})


def test_a_completion_limit_left_to_the_data_has_room_for_its_longest_story() -> None:
    config = load_config(None, {"max_completion_length": "null", "max_prompt_length": "100"})
    assert config.with_room_for(20).max_completion_length == 256
    long = config.with_room_for(5000)
    assert long.max_completion_length == 10000
    assert long.packing.max_tokens_per_microbatch == 10100
    fixed = load_config("polaris_9b")
    assert fixed.with_room_for(5000) is fixed


def test_without_a_config_a_model_of_ones_own_has_the_papers_settings() -> None:
    own = load_config(None, {"model_name_or_path": "some/model", "max_steps": "3"})
    assert own == Config(model_name_or_path="some/model", max_steps=3)
    assert own.learning_rate == load_config("polaris_9b").learning_rate == 1e-6
    embedded = load_config(None, {"model_name_or_path": "null"})
    assert embedded == load_config("default_cpu") and embedded.learning_rate == 1.2e-3
