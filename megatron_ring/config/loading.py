"""YAML files and overrides to a configuration, and back."""

import json
from pathlib import Path, PurePath
from typing import Any, TypeVar

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError
from yaml import YAMLError

from megatron_ring.config.base import ConfigError, Part, explain
from megatron_ring.config.hugging_face import read_hf_config

C = TypeVar("C", bound=Part)


def load(
    cls: type[C], files: list[str], overrides: list[str], base: dict[str, Any] | None = None
) -> C:
    """Merge YAML files left to right and `key.path=value` overrides onto `base`, and build `cls`.

    Raises ConfigError for a file that is missing or no YAML, an unknown key (with the nearest
    known one), a value of the wrong type or outside its range, and a missing key.
    """
    tree = OmegaConf.create(base or {})
    for file in files:
        tree = OmegaConf.merge(tree, _read_yaml(file))
    for override in overrides:
        key, equals, _ = override.partition("=")
        if not equals or "" in key.split("."):
            raise ConfigError(f"override {override!r} is not of the form key.path=value")
        try:
            # from_dotlist reads the value as YAML; update follows list indices (sources.0.path).
            typed = OmegaConf.from_dotlist([f"value={override[len(key) + 1 :]}"])
            value = OmegaConf.to_container(typed)["value"]  # ${...} refers to the whole tree
            OmegaConf.update(tree, key, value, merge=True, force_add=True)
        except (OmegaConfBaseException, YAMLError, ValueError, TypeError) as error:
            raise ConfigError(f"override {override!r}: {error}") from error
    try:
        resolved = OmegaConf.to_container(tree, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(f"cannot resolve the configuration: {error}") from error
    return build(cls, resolved)


def build(cls: type[C], tree: dict[str, Any]) -> C:
    """Validate a plain tree; a `model.hf_config` in it is read first, below the keys beside it."""
    model = tree.get("model")
    if isinstance(model, dict) and "hf_config" in model:
        explicit = {key: value for key, value in model.items() if key != "hf_config"}
        tree = {**tree, "model": read_hf_config(model["hf_config"]).model_dump() | explicit}
    try:
        return cls.model_validate(tree)
    except ValidationError as error:
        raise ConfigError("\n".join(explain(cls, one) for one in error.errors())) from None


def save(config: Part, path: Path) -> None:
    """Write the resolved configuration as YAML; `load` reads it back to an equal object."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tree = OmegaConf.create(_plain(config.model_dump()))
    path.write_text(OmegaConf.to_yaml(tree), encoding="utf-8")


def json_schema(cls: type[Part]) -> str:
    """JSON schema of a configuration file, for editors (yaml-language-server).

    Files are merged, so none of them need hold every key.
    """
    schema = cls.model_json_schema()
    parts = schema.get("$defs", {})
    for part in (schema, *parts.values()):
        part.pop("required", None)
    if "ModelConfig" in parts:
        parts["ModelConfig"]["properties"]["hf_config"] = {
            "type": "string",
            "description": "Hugging Face config.json or its folder; keys beside it win",
        }
    return json.dumps(schema, indent=1) + "\n"


def _plain(value: Any) -> Any:
    """Paths as texts: else YAML names Python's class for them, which no other reader knows."""
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return str(value) if isinstance(value, PurePath) else value


def _read_yaml(file: str) -> Any:
    try:
        tree = OmegaConf.load(file)
    except FileNotFoundError:
        raise ConfigError(f"there is no config file {file}") from None
    except (YAMLError, OSError) as error:
        raise ConfigError(f"cannot read config file {file}: {error}") from None
    if not OmegaConf.is_dict(tree):
        raise ConfigError(f"config file {file} holds no keys but {type(tree).__name__}")
    return tree
