"""The architecture from Hugging Face's `config.json`."""

import json
from pathlib import Path

from pydantic import ValidationError

from megatron_ring.config.base import ConfigError, explain
from megatron_ring.config.training import ModelConfig

# Keys of Hugging Face's config.json that would change the function of the model, and the only
# value under which our model computes the same function. Dropouts (0.1 in Ling-lite-base) are not
# among them: we train without, as the authors' code does not apply two of the three either.
HF_ONLY = {
    "model_type": "bailing_moe",
    "hidden_act": "silu",
    "use_bias": False,
    "use_qkv_bias": False,
    "tie_word_embeddings": False,
    "norm_softmax": False,
    "rope_parameters": None,  # of transformers 5; it would overrule rope_theta and rope_scaling
    "use_sliding_window": False,
}


def read_hf_config(path: str | Path) -> ModelConfig:
    """Architecture from a Hugging Face `config.json` (or its folder), strictly.

    Raises ConfigError when a key is missing, or has a value our model does not implement.
    """
    if not isinstance(path, str | Path):
        raise ConfigError(f"model.hf_config={path}: name a Hugging Face config.json or its folder")
    file = Path(path) / "config.json" if Path(path).is_dir() else Path(path)
    try:
        tree = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"model.hf_config={path}: there is no {file}") from None
    except json.JSONDecodeError as error:
        raise ConfigError(f"{file} is not JSON: {error}") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{file} holds no keys but {type(tree).__name__}")
    for key, only in HF_ONLY.items():
        if tree.get(key, only) != only:
            raise ConfigError(
                f"{file}: {key}={tree[key]!r} is not implemented; only {key}={only!r} is"
            )
    known = {key: tree[key] for key in ModelConfig.model_fields if key in tree}
    try:
        return ModelConfig.model_validate(known)
    except ValidationError as error:
        lines = [f"{file}: {explain(ModelConfig, one)}" for one in error.errors()]
        raise ConfigError("\n".join(lines)) from None
