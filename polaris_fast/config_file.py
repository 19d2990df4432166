"""Configuration files: YAML or a shipped name, dotted overrides, errors that name the key."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from .config import Config
from .config.judge import OF_ONE_ENDPOINT
from .judge_presets import preset_settings, url_from_environment
from .types import UserError


def load_config(path: str | Path | None = None, overrides: dict[str, str] | None = None) -> Config:
    """Read a YAML file (or a shipped config by name), apply dotted overrides, validate.

    Args:
        path: file, or the name of a shipped config such as `polaris_9b`; None: `default_cpu`, or
            for a model of the user's own the defaults of `Config`, which are the paper's: the
            learning rate of `default_cpu` is for its small model and would ruin any other.
        overrides: dotted key -> text, read as YAML ("3", "true", "[a, b]", "null"). With another
            address of the judge the file's key, sampling, limits and prices, which are those of
            its own address (`OF_ONE_ENDPOINT`), do not count.

    Raises:
        UserError: missing file, YAML fault, unknown key or value out of range; names the key,
            the value and the remedy.
    """
    given = {dotted: _value(dotted, text) for dotted, text in (overrides or {}).items()}
    tree = {} if path is None and names_model(overrides or {}) else _read_yaml(_resolve(path))
    for section in ("judge", "judge.fallback"):
        _forget_other_endpoint(tree, section, given)
    for dotted, value in given.items():
        _set(tree, dotted, value)
    for key in ("model_name_or_path", "resume_from_checkpoint"):
        tree[key] = _past_links(tree.get(key))
    return checked_config(tree)


def checked_config(tree: dict[str, Any]) -> Config:
    """The configuration of a tree of keys.

    Raises:
        UserError: unknown keys or values out of range; names the key, the value and the remedy.
    """
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise UserError(_explain(error)) from error


def _past_links(path: Any) -> Any:
    """A folder by its own name: `runs/latest` is another one as soon as this run has begun."""
    if not isinstance(path, str) or not Path(path).is_dir():
        return path
    real = os.path.realpath(path)
    if real == os.path.abspath(path):
        return path
    return real if os.path.isabs(path) else os.path.relpath(real)


def names_model(overrides: Mapping[str, str]) -> bool:
    """Whether a model of the user's own is to be trained."""
    return yaml.safe_load(overrides.get("model_name_or_path", "null")) is not None


def dump_config(config: Config) -> str:
    """The resolved configuration as YAML, in declaration order."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def shipped_configs() -> list[str]:
    """Names of the configurations that come with the package."""
    folder = resources.files(__package__) / "configs"
    return sorted(
        p.name.removesuffix(".yaml") for p in folder.iterdir() if p.name.endswith(".yaml")
    )


def known_keys(model: type[BaseModel] = Config, prefix: str = "") -> list[str]:
    """Every dotted key a configuration accepts."""
    keys: list[str] = []
    for name, info in model.model_fields.items():
        keys.append(prefix + name)
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            keys += known_keys(info.annotation, f"{prefix}{name}.")
    return keys


def _resolve(path: str | Path | None) -> Path:
    name = "default_cpu" if path is None else str(path)
    if name in shipped_configs():
        return Path(str(resources.files(__package__) / "configs" / f"{name}.yaml"))
    if not Path(name).is_file():
        raise UserError(
            f"--config: no such file {name!r}; give a YAML file or one of "
            + ", ".join(shipped_configs())
        )
    return Path(name)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"--config: cannot read {path} ({error.strerror})") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"--config: {path} is not valid YAML: {error}") from error
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise UserError(f"--config: {path} must hold `key: value` lines, got {type(tree).__name__}")
    return tree


def _forget_other_endpoint(tree: dict[str, Any], section: str, given: dict[str, Any]) -> None:
    """Drop from a judge's section of the file what belongs to an address or model it leaves.

    A run's own file names every setting, so that none of them tells what a person chose: the key of
    one provider would go to another. A file without an address leaves it to the command, and its
    settings are for whatever that names.
    """
    node: Any = tree
    for part in section.split("."):
        node = node.get(part) if isinstance(node, dict) else None
    if not isinstance(node, dict) or "base_url" not in node:
        return
    before, model = _plain_url(node["base_url"]), node.get("model")
    after = _plain_url(given.get(f"{section}.base_url", node["base_url"]))
    if after != before:
        # without an address the model's name would be no one's
        for key in (*OF_ONE_ENDPOINT, *(["model"] if after is None else [])):
            node.pop(key, None)
    elif section == "judge" and given.get("judge.model", model) != model:
        filled = preset_settings(before, model, node.get("preset", "auto"))
        for key in [key for key in filled if key in node and node[key] == filled[key]]:
            del node[key]


def _plain_url(value: Any) -> Any:
    """An address as it is used; of a variable that is not set, the text."""
    try:
        value = url_from_environment(value)
    except ValueError:
        pass  # the field says so under its own name
    return value.rstrip("/") if isinstance(value, str) else value


def _value(dotted: str, text: str) -> Any:
    if not text.strip():  # often a variable that is not set; YAML would read null
        raise UserError(f"--{dotted}: empty value; give one, or null")
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"--{dotted}: cannot read {text!r} as YAML ({reason}); put it in quotes"
        ) from error


def _set(tree: dict[str, Any], dotted: str, value: Any) -> None:
    *parents, leaf = dotted.split(".")
    for parent in parents:
        node = tree.setdefault(parent, {})
        if not isinstance(node, dict):
            raise UserError(f"unknown key {dotted!r}: {parent!r} is a value, not a section")
        tree = node
    tree[leaf] = value


def _explain(error: ValidationError) -> str:
    """One line a fault: the dotted key, the value, the rule."""
    lines = []
    for fault in error.errors(include_url=False):
        key = ".".join(str(part) for part in fault["loc"])
        if fault["type"] == "extra_forbidden" and "." in str(fault["loc"][-1]):
            nested = key.replace(".", ": {") + ": ..." + "}" * key.count(".")
            lines.append(f"unknown key {key!r}; a file nests it: write `{nested}`")
        elif fault["type"] == "extra_forbidden":
            near = difflib.get_close_matches(key, known_keys(), n=1, cutoff=0.0)
            lines.append(f"unknown key {key!r}; did you mean {near[0]!r}?")
        elif fault["type"] == "value_error":
            lines.append((f"{key}: " if key else "") + str(fault["ctx"]["error"]))
        else:
            lines.append(f"{key}: {fault['msg']}, got {fault['input']!r}")
    return "\n".join(lines)
