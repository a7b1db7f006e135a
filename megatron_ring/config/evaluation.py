"""Keys of an evaluation: which benchmarks, how often each item is asked, and whom."""

from pathlib import Path
from typing import Annotated

from pydantic import Field, PositiveFloat, PositiveInt, field_validator

from megatron_ring.config.base import Incidental, Part
from megatron_ring.config.curation.code import ProgramLimits
from megatron_ring.config.curation.generate import GeneratorConfig


class TaskConfig(Part):
    """A benchmark: where its data are, and how much of it is asked."""

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


class EvaluationConfig(Part):
    """A run of tools/evaluate.py."""

    tasks: dict[str, TaskConfig] = Field(
        description="by name (tools/evaluate.py tasks lists them): {gsm8k: {file: test.jsonl}}"
    )
    generator: GeneratorConfig = Field(description="the model that is asked")
    output: Annotated[Path, Incidental()] = Field(description="folder of samples, grades, results")
    data: Annotated[str, Incidental()] = Field(
        "", description="any text, for other keys to refer to: ${data}/gpqa_diamond.csv"
    )
    system: str = Field("", description="what the model is told before each item")
    grading: GradingConfig = GradingConfig()

    @field_validator("tasks")
    @classmethod
    def _some(cls, tasks: dict[str, TaskConfig]) -> dict[str, TaskConfig]:
        if not tasks:
            raise ValueError("no benchmark is named; one is {gsm8k: {file: test.jsonl}}")
        return tasks
