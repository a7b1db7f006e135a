"""Configuration: frozen pydantic models, filled from YAML files and `key.path=value` overrides.

Precedence, lowest first: model default < `model.hf_config` < YAML files left to right < overrides.
Nothing else is an option: no environment variables, no includes inside YAML, no globals.
Nobody below `train.py` sees more than its own part, and nobody writes to it.
"""

import difflib
import json
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)
from yaml import YAMLError


class ConfigError(ValueError):
    """The configuration as typed cannot run; the message names the key, the values, the remedy."""


class Part(BaseModel):
    """One part of the configuration: frozen, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class ModelConfig(Part):
    """The architecture, under the names of Hugging Face's `config.json` for `bailing_moe`.

    Keys that change the function of the model have no default: the defaults of the authors'
    configuration class are unlike any released model (inclusionAI/Ling 5ccaeae,
    configuration_bailing_moe.py), so a forgotten key must be an error.
    """

    vocab_size: PositiveInt = Field(description="V: rows of the embedding and of the head")
    hidden_size: PositiveInt = Field(description="D: width of the residual stream")
    num_hidden_layers: PositiveInt = Field(description="L: transformer layers")
    num_attention_heads: PositiveInt = Field(description="H: query heads")
    num_key_value_heads: PositiveInt = Field(description="key/value heads; divides H")
    head_dim: PositiveInt | None = Field(None, description="hidden_size / heads when absent")
    intermediate_size: PositiveInt = Field(description="width of a dense layer's MLP")
    moe_intermediate_size: PositiveInt = Field(description="F: width of one routed expert")
    num_experts: PositiveInt = Field(description="routed experts in a layer")
    num_experts_per_tok: PositiveInt = Field(description="K: routed experts a token visits")
    num_shared_experts: NonNegativeInt = Field(description="one MLP this many experts wide")
    norm_topk_prob: bool = Field(description="divide the K probabilities by their sum")
    first_k_dense_replace: NonNegativeInt = Field(0, description="leading layers without experts")
    norm_head: bool = Field(description="NormHead: the head's columns have unit length")
    rms_norm_eps: PositiveFloat = Field(description="epsilon of every RMSNorm")
    rope_theta: PositiveFloat = Field(description="base of the rotary frequencies")
    max_position_embeddings: PositiveInt = Field(description="longest document, in tokens")
    initializer_range: PositiveFloat = Field(0.006, description="std of fresh weights")

    @model_validator(mode="after")
    def _consistent(self) -> "ModelConfig":
        if self.head_dim is None and self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size={self.hidden_size} is not a multiple of num_attention_heads="
                f"{self.num_attention_heads}; give head_dim or change one of them"
            )
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads={self.num_attention_heads} is not a multiple of "
                f"num_key_value_heads={self.num_key_value_heads}"
            )
        if self.num_experts_per_tok > self.num_experts:
            raise ValueError(
                f"num_experts_per_tok={self.num_experts_per_tok} exceeds num_experts="
                f"{self.num_experts}"
            )
        if self.first_k_dense_replace > self.num_hidden_layers:
            raise ValueError(
                f"first_k_dense_replace={self.first_k_dense_replace} exceeds num_hidden_layers="
                f"{self.num_hidden_layers}"
            )
        return self

    @model_validator(mode="after")
    def _rotary(self) -> "ModelConfig":
        if self.head_size % 2:
            raise ValueError(f"heads of {self.head_size} channels cannot be rotated in pairs")
        return self

    @property
    def head_size(self) -> int:
        """Width of one attention head, in channels."""
        return self.head_dim or self.hidden_size // self.num_attention_heads

    @property
    def shared_intermediate_size(self) -> int:
        """Width of the shared experts' single MLP; 0 when there is none."""
        return self.num_shared_experts * self.moe_intermediate_size


class DataConfig(Part):
    train: str | None = Field(None, description="folder written by tools/pack.py")
    valid: str | None = Field(None, description="packed folder of held-out rows")
    valid_rows: PositiveInt = Field(64, description="at most this many held-out rows a validation")
    rows_per_step: PositiveInt = Field(8, description="global batch, in rows, over all ranks")


class LossConfig(Part):
    aux_coeff: NonNegativeFloat = Field(
        0.015, description="load balancing; 0.015 in the Ling report (arXiv 2503.05139)"
    )
    z_coeff: NonNegativeFloat = Field(1e-4, description="router z loss; 1e-4 in the Ling report")
    chunk_tokens: PositiveInt = Field(
        1024, description="tokens whose logits exist at once: memory against speed"
    )


class OptimConfig(Part):
    lr: PositiveFloat = Field(4e-5, description="peak learning rate, after warm-up")
    min_lr_ratio: NonNegativeFloat = Field(0.1, le=1, description="cosine ends at this × lr")
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup_steps: NonNegativeInt = Field(0, description="linear warm-up, in steps")
    steps: PositiveInt | None = Field(None, description="stop here; the whole plan when absent")
    weight_decay: NonNegativeFloat = Field(0.1, description="not on norms (one-dimensional)")
    beta1: float = Field(0.9, ge=0, lt=1)
    beta2: float = Field(0.95, ge=0, lt=1)
    eps: PositiveFloat = 1e-8
    clip_norm: PositiveFloat = Field(1.0, description="largest global L2 norm of the gradient")


class ParallelConfig(Part):
    """Ranks on each process-group axis; dp = world size / (tp × pp × cp) is what is left."""

    tp: PositiveInt = Field(1, description="tensor: heads, vocabulary, dense and shared MLPs")
    pp: PositiveInt = Field(1, description="pipeline: layers")
    vpp: PositiveInt = Field(1, description="model chunks a pipeline rank holds (interleaving)")
    cp: PositiveInt = Field(1, description="context: one row over several ranks (not yet)")
    ep: PositiveInt = Field(1, description="expert: routed experts, carved out of tp × dp")
    recompute: Literal["none", "full"] = Field(
        "none", description="full: keep only layer inputs and run each layer again in the backward"
    )
    overlap: bool = Field(False, description="sum gradients over dp while the backward runs")


class ExpertsConfig(Part):
    backend: Literal["auto", "torch", "loop"] = Field(
        "auto", description="torch: grouped_mm over stacked weights; loop: the slow reference"
    )


class AttentionConfig(Part):
    backend: Literal["auto", "sdpa", "varlen", "te"] = Field(
        "auto", description="sdpa: per document; varlen: torch.nn.attention.varlen (CUDA)"
    )


class CheckpointConfig(Part):
    save_every: PositiveInt = Field(500, description="steps between checkpoints")
    keep_last: PositiveInt = Field(2, description="older checkpoints of the run are deleted")


class LogConfig(Part):
    every: PositiveInt = Field(1, description="steps between log lines")
    valid_every: PositiveInt = Field(200, description="steps between validations")
    peak_tflops: PositiveFloat | None = Field(
        None, description="dense peak of one device for MFU; known for A100, H100, H200"
    )
    wandb: Literal["auto", "online", "offline", "disabled"] = Field(
        "auto", description="auto: online with a login, else offline"
    )
    project: str = "megatron-ring"


class RunConfig(Part):
    dir: str = Field("runs/default", description="everything the run writes; resumes from here")
    name: str | None = Field(None, description="shown in wandb; the folder's name when absent")
    init_from: str | None = Field(
        None, description="first weights: Megatron checkpoint or Hugging Face folder; else random"
    )
    seed: NonNegativeInt = Field(1234, description="of fresh weights; the data has its own")
    dtype: Literal["auto", "fp32", "bf16"] = Field("auto", description="bf16 on GPUs, fp32 on CPUs")


class Config(Part):
    """One training run."""

    model: ModelConfig
    data: DataConfig = DataConfig()
    loss: LossConfig = LossConfig()
    optim: OptimConfig = OptimConfig()
    parallel: ParallelConfig = ParallelConfig()
    experts: ExpertsConfig = ExpertsConfig()
    attention: AttentionConfig = AttentionConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    log: LogConfig = LogConfig()
    run: RunConfig = RunConfig()


class SourceConfig(Part):
    """One source of chat samples."""

    path: str = Field(description="JSONL or Parquet file, or the name of a `datasets` data set")
    name: str | None = Field(None, description="shown in reports; the file's stem when absent")
    subset: str | None = Field(None, description="configuration of a `datasets` data set")
    split: str = Field("train", description="of a `datasets` data set")
    weight: PositiveFloat = Field(
        1.0, description="times each sample is seen an epoch; 0.5 draws half, 2 shows all twice"
    )
    messages: str = Field("messages", description="column holding the chat turns")
    tools: str = Field("tools", description="column holding tool definitions, if there is one")
    prompt: str | None = Field(None, description="with `response`: a plain-text prompt column")
    response: str | None = Field(None, description="plain-text answer column, instead of messages")


class PackConfig(Part):
    """What tools/pack.py does: chat samples -> documents -> a plan of rows."""

    tokenizer: str = Field(description="Hugging Face tokenizer folder or SentencePiece .model")
    output: str = Field(description="folder to write")
    sources: list[SourceConfig] = Field(min_length=1)
    row_tokens: PositiveInt = Field(16_384, description="S: tokens in a row")
    epochs: PositiveInt = 1
    seed: NonNegativeInt = 1234
    overlong: Literal["drop", "error"] = Field(
        "drop", description="a sample longer than the row is dropped and listed, or stops the run"
    )
    invalid: Literal["error", "drop"] = Field(
        "error", description="a sample that is no conversation stops the run, or is listed"
    )
    overwrite: bool = Field(False, description="replace the packed folder already at output")
    chat_template: str | None = Field(
        None, description="Jinja file in place of the tokenizer's own template"
    )
    workers: PositiveInt = Field(1, description="processes that tokenize")


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
        raise ConfigError("\n".join(_explain(cls, one) for one in error.errors())) from None


def save(config: Part, path: Path) -> None:
    """Write the resolved configuration as YAML; `load` reads it back to an equal object."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(OmegaConf.to_yaml(OmegaConf.create(config.model_dump())), encoding="utf-8")


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
    "rope_scaling": None,
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
        lines = [f"{file}: {_explain(ModelConfig, one)}" for one in error.errors()]
        raise ConfigError("\n".join(lines)) from None


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


def _explain(cls: type[Part], error: dict[str, Any]) -> str:
    """One pydantic error in the words of this project: the key as typed, the value, the remedy."""
    *parents, last = error["loc"] or ("",)
    at = ".".join(map(str, error["loc"]))
    if error["type"] == "extra_forbidden":
        known = _fields_at(cls, parents)
        near = difflib.get_close_matches(str(last), known, n=1)
        prefix = "".join(f"{part}." for part in parents)
        hint = f"did you mean {prefix}{near[0]}?" if near else f"known keys: {', '.join(known)}"
        return f"unknown config key {at}; {hint}"
    if error["type"] == "missing":
        return f"missing config key {at}"
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "value_error":
        return f"{at}: {message}" if at else message
    return f"{at}={error['input']!r}: {message[0].lower()}{message[1:]}"


def _fields_at(cls: type[Part], path: list[str | int]) -> list[str]:
    """Names of the keys of the model found by walking `path` down from `cls`."""
    for name in path:
        hint = cls if isinstance(name, int) else cls.model_fields[name].annotation
        while get_origin(hint) is not None:
            hint = get_args(hint)[0]
        cls = hint
    return list(cls.model_fields)
