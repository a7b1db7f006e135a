"""Every key of a training run, with its default and what it means."""

from typing import Any, Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from megatron_ring.config.base import Part
from megatron_ring.config.profile import ProfileConfig
from megatron_ring.config.spikes import SpikesConfig


class RopeScaling(Part):
    """YaRN (arXiv 2309.00071), under the names of `rope_scaling` in Hugging Face's `config.json`.

    Keys and defaults are those of the authors' code (inclusionAI/Ling 5ccaeae,
    modeling_bailing_moe.py) and of transformers (modeling_rope_utils.py), where these two agree.
    """

    type: Literal["yarn"] = Field(description="also read under the name rope_type")
    factor: float = Field(ge=1, description="how many times the original length")
    original_max_position_embeddings: PositiveInt = Field(
        description="longest document of the training before"
    )
    beta_fast: PositiveFloat = Field(
        32.0, description="channels that turn more often than this over that length stay"
    )
    beta_slow: PositiveFloat = Field(
        1.0, description="channels that turn less often are slowed down by factor"
    )
    attention_factor: PositiveFloat | None = Field(
        None,
        description="multiplies queries and keys; 0.1 ln(factor) + 1 when absent. transformers "
        "reads it, the authors' own code does not",
    )
    mscale: PositiveFloat | None = Field(
        None,
        description="with mscale_all_dim, attention_factor is (0.1 mscale ln(factor) + 1) / "
        "(0.1 mscale_all_dim ln(factor) + 1)",
    )
    mscale_all_dim: PositiveFloat | None = Field(None, description="see mscale")

    @model_validator(mode="before")
    @classmethod
    def _two_names(cls, tree: Any) -> Any:
        """`rope_type` is what transformers calls `type`; it writes both."""
        if not isinstance(tree, dict) or "rope_type" not in tree:
            return tree
        rest = {key: value for key, value in tree.items() if key != "rope_type"}
        if rest.setdefault("type", tree["rope_type"]) != tree["rope_type"]:
            raise ValueError(f"type={rest['type']!r}, but rope_type={tree['rope_type']!r}")
        return rest

    @model_validator(mode="after")
    def _consistent(self) -> "RopeScaling":
        if (self.mscale is None) != (self.mscale_all_dim is None):
            raise ValueError(
                f"mscale={self.mscale} and mscale_all_dim={self.mscale_all_dim}: give both or "
                "none; with one alone, the authors' code and transformers compute differently"
            )
        if self.attention_factor is not None and self.mscale is not None:
            raise ValueError("attention_factor says what mscale would say; give one of them")
        if self.beta_fast < self.beta_slow:
            raise ValueError(f"beta_fast={self.beta_fast} is below beta_slow={self.beta_slow}")
        return self


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
    rope_scaling: RopeScaling | None = Field(
        None, description="YaRN, for documents longer than those the model has learnt from"
    )
    max_position_embeddings: PositiveInt = Field(
        description="longest document, in tokens (of the original training, with rope_scaling)"
    )
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
    def longest(self) -> int:
        """Longest document, in tokens.

        Released models that have YaRN, or advise it, leave max_position_embeddings at the original
        length; transformers then computes tables as long as is asked for. So the larger of the two
        counts: what that key says, or the original length times YaRN's factor.
        """
        if self.rope_scaling is None:
            return self.max_position_embeddings
        original = self.rope_scaling.original_max_position_embeddings
        return max(self.max_position_embeddings, int(self.rope_scaling.factor * original))

    @property
    def shared_intermediate_size(self) -> int:
        """Width of the shared experts' single MLP; 0 when there is none."""
        return self.num_shared_experts * self.moe_intermediate_size


class DataConfig(Part):
    train: str | None = Field(None, description="folder written by tools/pack.py")
    valid: str | None = Field(None, description="packed folder of held-out rows")
    valid_rows: PositiveInt = Field(64, description="at most this many held-out rows a validation")
    rows_per_step: PositiveInt = Field(8, description="global batch, in rows, over all ranks")


class PreferenceConfig(Part):
    """How a pair of answers becomes a loss; the formulas stand in losses.py."""

    kind: Literal["sigmoid", "ipo"] = Field("sigmoid", description="DPO, or IPO's square")
    beta: PositiveFloat = Field(
        0.1, description="how dear a step away from the reference is; 0.1 in Ling's own DPO example"
    )
    label_smoothing: NonNegativeFloat = Field(
        0.0, lt=0.5, description="share of pairs taken to be the wrong way round (sigmoid only)"
    )
    length_normalised: bool = Field(
        False, description="an answer's log-ratio is a mean over its scored tokens, not a sum"
    )
    format_only: bool = Field(
        False, description="score only tokens in format spans (think tags and their neighbours)"
    )
    nll_coeff: NonNegativeFloat = Field(
        0.05, description="weight of the chosen answers' nll; 0.05 in the Ling report"
    )

    @model_validator(mode="after")
    def _smoothing_has_a_meaning(self) -> "PreferenceConfig":
        if self.kind == "ipo" and self.label_smoothing:
            raise ValueError(
                f"label_smoothing={self.label_smoothing} belongs to kind=sigmoid; IPO has none"
            )
        return self


class LossConfig(Part):
    head: Literal["sft", "dpo"] = Field(
        "sft", description="dpo: on pairs of answers, packed with kind=pairs"
    )
    preference: PreferenceConfig = PreferenceConfig()
    sources: dict[str, PreferenceConfig] = Field(
        {}, description="dpo: by name of a source, what differs from loss.preference"
    )
    reference_tolerance: PositiveFloat = Field(
        1e-4, description="dpo: how far the first loss may be from ln 2 (policy = reference)"
    )
    aux_coeff: NonNegativeFloat = Field(
        0.015, description="load balancing; 0.015 in the Ling report (arXiv 2503.05139)"
    )
    z_coeff: NonNegativeFloat = Field(1e-4, description="router z loss; 1e-4 in the Ling report")
    chunk_tokens: PositiveInt = Field(
        1024, description="tokens whose logits exist at once: memory against speed"
    )

    @model_validator(mode="before")
    @classmethod
    def _sources_inherit(cls, tree: Any) -> Any:
        """A source that sets some keys has the others from `preference`."""
        if not isinstance(tree, dict) or not isinstance(tree.get("sources"), dict):
            return tree
        common = tree.get("preference", {})
        common = common.model_dump() if isinstance(common, Part) else common
        if not isinstance(common, dict):
            return tree  # the error will be told of `preference`
        sources = {
            name: {**common, **own} if isinstance(own, dict) else own
            for name, own in tree["sources"].items()
        }
        return {**tree, "sources": sources}


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
    cp: PositiveInt = Field(1, description="context: the tokens of a row, in two chunks a rank")
    ep: PositiveInt = Field(1, description="expert: routed experts, carved out of tp × cp × dp")
    recompute: Literal["none", "full"] = Field(
        "none", description="full: keep only layer inputs and run each layer again in the backward"
    )
    offload: bool = Field(
        False, description="with recompute=full: layer inputs wait in host memory, not on the GPU"
    )
    overlap: bool = Field(False, description="sum gradients over dp while the backward runs")


class ExpertsConfig(Part):
    backend: Literal["auto", "triton", "torch", "loop"] = Field(
        "auto",
        description="triton: fused kernels (CUDA, bf16); torch: grouped_mm; loop: slow reference",
    )
    dispatcher: Literal["alltoall", "allgather", "flex"] = Field(
        "alltoall",
        description="how tokens travel when parallel.ep > 1, megatron-core's; flex: DeepEP",
    )


class AttentionConfig(Part):
    backend: Literal["auto", "sdpa", "varlen", "flex", "flash3", "te"] = Field(
        "auto",
        description="sdpa: per document; varlen: torch.nn.attention.varlen (CUDA); flex: compiled "
        "FlexAttention (CUDA); flash3: FlashAttention 3 where installed (Hopper)",
    )
    deterministic: bool = Field(
        False, description="the backward repeats bit by bit; slower on GPUs, no matter on CPUs"
    )


class CheckpointConfig(Part):
    save_every: PositiveInt = Field(500, description="steps between checkpoints")
    keep_last: PositiveInt = Field(2, description="older checkpoints of the run are deleted")
    async_save: bool = Field(
        True,
        description="train on while a checkpoint is written from copies in host memory, which "
        "stay there until it is: weights and optimizer state, twice on a CPU",
    )
    verify: bool = Field(
        True, description="compare checksums before resuming; otherwise only sizes of files"
    )
    second_dir: str | None = Field(
        None,
        description="a folder on another file system, of this run alone: each checkpoint is copied "
        "there in the background, checked, and used when run.dir has none as new",
    )


class EvaluateConfig(Part):
    """Benchmarks that the model in memory answers while it is trained."""

    recipe: str | None = Field(
        None,
        description="a recipe of tools/evaluate.py with `sampler`, whose model and layout are "
        "the run's; absent: nothing is asked",
    )
    every: PositiveInt = Field(500, description="steps between evaluations")
    at_end: bool = Field(True, description="also after the last step")
    limit: PositiveInt | None = Field(
        None, description="items of each benchmark; absent: as the recipe says"
    )
    samples: PositiveInt | None = Field(
        None, description="answers to each item; absent: as the recipe says"
    )


class LogConfig(Part):
    every: PositiveInt = Field(1, description="steps between log lines")
    valid_every: PositiveInt = Field(200, description="steps between validations")
    heat_map_every: PositiveInt = Field(
        100, description="steps between heat maps of layers × experts; 9 KB each for Ling-Lite"
    )
    peak_tflops: PositiveFloat | None = Field(
        None, description="dense peak of one device for MFU; known for A100, H100, H200"
    )
    wandb: Literal["auto", "online", "offline", "disabled"] = Field(
        "auto", description="auto: online with a login, else offline"
    )
    project: str = "megatron-ring"
    tensorboard: bool = Field(False, description="write RUN/tensorboard as well")


class RunConfig(Part):
    dir: str = Field("runs/default", description="everything the run writes; resumes from here")
    name: str | None = Field(None, description="shown in wandb; the folder's name when absent")
    init_from: str | None = Field(
        None,
        description="first weights: Megatron checkpoint, run folder (its newest checkpoint) or "
        "Hugging Face folder; random when absent",
    )
    hang_timeout: PositiveFloat = Field(
        1800.0,
        description="seconds a step with its save and validation may take before the run ends "
        "with a line saying where it hangs; four times as long up to the first. Grading the "
        "answers of an evaluation counts as well, drawing them does not",
    )
    seed: NonNegativeInt = Field(1234, description="of fresh weights; the data has its own")
    dtype: Literal["auto", "fp32", "bf16"] = Field("auto", description="bf16 on GPUs, fp32 on CPUs")


class Config(Part):
    """One training run."""

    model: ModelConfig
    data: DataConfig = DataConfig()
    loss: LossConfig = LossConfig()
    optim: OptimConfig = OptimConfig()
    spikes: SpikesConfig = SpikesConfig()
    parallel: ParallelConfig = ParallelConfig()
    experts: ExpertsConfig = ExpertsConfig()
    attention: AttentionConfig = AttentionConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    log: LogConfig = LogConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    profile: ProfileConfig = ProfileConfig()
    run: RunConfig = RunConfig()
