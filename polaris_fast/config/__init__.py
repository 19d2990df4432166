"""The run's configuration: typed and validated; `config_file` reads it.

Keys carry the names TRL and transformers use where they mean the same thing. An unknown key is an
error that names the nearest one; every range is checked before anything is loaded.
"""

from __future__ import annotations

from .data import DataConfig, EmbeddedConfig
from .judge import FallbackConfig, JudgeConfig
from .reward import HRIConfig, RewardConfig
from .rollout import RolloutConfig, VLLMConfig
from .run import Config
from .section import Section
from .training import (
    AlarmConfig,
    EngineConfig,
    GuardConfig,
    LoraConfig,
    PackingConfig,
    ProfileConfig,
    SFTConfig,
)

__all__ = [
    "AlarmConfig",
    "Config",
    "DataConfig",
    "EmbeddedConfig",
    "EngineConfig",
    "FallbackConfig",
    "GuardConfig",
    "HRIConfig",
    "JudgeConfig",
    "LoraConfig",
    "PackingConfig",
    "ProfileConfig",
    "RewardConfig",
    "RolloutConfig",
    "SFTConfig",
    "Section",
    "VLLMConfig",
]
