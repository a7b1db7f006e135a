"""Configuration: frozen pydantic models, filled from YAML files and `key.path=value` overrides.

Precedence, lowest first: model default < `model.hf_config` < YAML files left to right < overrides.
Nothing else is an option: no environment variables, no includes inside YAML, no globals.
Nobody below `train.py` sees more than its own part, and nobody writes to it.

`training.py` holds the keys of a run, with `spikes.py` and `profile.py`, and `packing.py` those of
tools/pack.py.
"""

from megatron_ring.config.base import ConfigError, Part
from megatron_ring.config.hugging_face import HF_ONLY, read_hf_config
from megatron_ring.config.loading import build, json_schema, load, save
from megatron_ring.config.packing import PackConfig, SourceConfig
from megatron_ring.config.profile import ProfileConfig
from megatron_ring.config.spikes import SpikesConfig
from megatron_ring.config.training import (
    AttentionConfig,
    CheckpointConfig,
    Config,
    DataConfig,
    EvaluateConfig,
    ExpertsConfig,
    LogConfig,
    LossConfig,
    ModelConfig,
    OptimConfig,
    ParallelConfig,
    PreferenceConfig,
    RopeScaling,
    RunConfig,
)

__all__ = [
    "HF_ONLY",
    "AttentionConfig",
    "CheckpointConfig",
    "Config",
    "ConfigError",
    "DataConfig",
    "EvaluateConfig",
    "ExpertsConfig",
    "LogConfig",
    "LossConfig",
    "ModelConfig",
    "OptimConfig",
    "PackConfig",
    "ParallelConfig",
    "Part",
    "PreferenceConfig",
    "ProfileConfig",
    "RopeScaling",
    "RunConfig",
    "SourceConfig",
    "SpikesConfig",
    "build",
    "json_schema",
    "load",
    "read_hf_config",
    "save",
]
