"""Keys of an evaluation: which benchmarks, how often each item is asked, and whom."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    StringConstraints,
    field_validator,
    model_validator,
)

from megatron_ring.config.base import Incidental, Part
from megatron_ring.config.curation.code import ProgramLimits
from megatron_ring.config.curation.generate import GeneratorConfig
from megatron_ring.config.training import AttentionConfig, ExpertsConfig, ParallelConfig


class TaskConfig(Part):
    """A benchmark: where its data are, and how much of it is asked."""

    kind: Literal["benchmark", "chats"] = Field(
        "benchmark",
        description="chats: a benchmark of your own under a name of your own; `file` holds chat "
        "samples whose last turns are the right answers",
    )
    title: str = Field("", description="of a benchmark of your own, in tables")
    group: str = Field(
        "", description="tables have a mean for each: reasoning, general; absent: the benchmark's"
    )
    tags: bool = Field(
        True, description="think tags are expected in its answers, and Table 3 counts their errors"
    )
    file: Annotated[Path | None, Incidental()] = Field(
        None,
        description="its data: .jsonl, .json, .csv, .parquet, a .zip or a folder of them; absent: "
        "they are loaded from the Hugging Face hub, where the benchmark is there",
    )
    hub: str | None = Field(
        None, description="another data set of the hub with the same columns, as owner/name"
    )
    samples: PositiveInt | None = Field(
        None, description="answers to each item; absent: as many as the benchmark wants"
    )
    limit: PositiveInt | None = Field(
        None, description="items asked, the same in all runs; a higher limit keeps those of a lower"
    )


class SamplerConfig(Part):
    """A checkpoint that answers in this process, or in those of a launch by torchrun."""

    model: Annotated[Path | None, Incidental()] = Field(
        None,
        description="a run's folder (its newest checkpoint), a Megatron checkpoint, or a Hugging "
        "Face folder; while training, the model in memory answers instead",
    )
    tokenizer: Annotated[Path | None, Incidental()] = Field(
        None, description="absent: the model's own; while training, that of data.train"
    )
    replies: Annotated[Path | None, Incidental()] = Field(
        None, description="folder where every answer is kept; absent: `replies` in output"
    )
    temperature: NonNegativeFloat = Field(
        0.6, description="0 takes the likeliest token; 0.6 is DeepSeek-R1's advice for its model"
    )
    top_p: float = Field(0.95, gt=0, le=1)
    max_tokens: PositiveInt = Field(
        16_384, description="of an answer with its thought; never beyond the model's positions"
    )
    seed: NonNegativeInt = Field(1234, lt=2**63, description="another one: other answers to all")
    stop: list[Annotated[str, StringConstraints(min_length=1)]] = Field(
        [], description="an answer ends before the first of these texts"
    )
    max_batch: Annotated[PositiveInt, Incidental()] = Field(
        64, description="answers in work at a time on a data rank"
    )
    dtype: Literal["auto", "fp32", "bf16"] = Field("auto", description="bf16 on GPUs, fp32 on CPUs")
    parallel: Annotated[ParallelConfig, Incidental()] = Field(
        ParallelConfig(), description="how the ranks of the launch share the model: {ep: 8}"
    )
    experts: Annotated[ExpertsConfig, Incidental()] = ExpertsConfig()
    attention: Annotated[AttentionConfig, Incidental()] = AttentionConfig()


class GradingConfig(Part):
    """How answers are graded."""

    workers: Annotated[PositiveInt, Incidental()] = Field(2, description="answers at a time")
    equality_seconds: PositiveFloat = Field(
        10.0, description="of one comparison by math-verify; then the verdict is timeout"
    )
    program: ProgramLimits = Field(
        ProgramLimits(cpu_seconds=10, memory_mb=1024),
        description="of a program in an answer, for each of its tests",
    )
    embeddings: str = Field(
        "all-mpnet-base-v2",
        description="model of sentence-transformers, a name or a folder, by which T-Eval compares "
        "plans and thoughts; '' leaves plan and reason out of its score",
    )


class EvaluationConfig(Part):
    """A run of tools/evaluate.py."""

    tasks: dict[str, TaskConfig] = Field(
        description="by name (tools/evaluate.py tasks lists them): {gsm8k: {file: test.jsonl}}"
    )
    generator: GeneratorConfig | None = Field(
        None, description="the model that is asked, behind an endpoint"
    )
    sampler: SamplerConfig | None = Field(
        None, description="the model that is asked, a checkpoint of ours; or else generator"
    )
    output: Annotated[Path, Incidental()] = Field(description="folder of samples, grades, results")
    data: Annotated[str, Incidental()] = Field(
        "", description="any text, for other keys to refer to: ${data}/gpqa_diamond.csv"
    )
    system: str = Field("", description="what the model is told before each item")
    grading: GradingConfig = GradingConfig()

    @model_validator(mode="before")
    @classmethod
    def _one_is_asked(cls, tree: Any) -> Any:
        if not isinstance(tree, dict):
            return tree
        given = [name for name in ("generator", "sampler") if tree.get(name) is not None]
        if not given:
            raise ValueError(
                "nobody is asked: give generator (a model behind an endpoint) or sampler (a "
                "checkpoint of ours)"
            )
        if len(given) == 2:
            raise ValueError(
                "both generator and sampler are given: say generator=null to ask the checkpoint, "
                "or sampler=null to ask the endpoint"
            )
        return tree

    @field_validator("tasks")
    @classmethod
    def _some(cls, tasks: dict[str, TaskConfig]) -> dict[str, TaskConfig]:
        if not tasks:
            raise ValueError("no benchmark is named; one is {gsm8k: {file: test.jsonl}}")
        return tasks
