"""Every key of tools/curate.py run.

A stage's options are a `Part` of its own in a file here, told from the others by `stage`. The table
of names and classes that run them is megatron_ring/curation/recipe.py.
"""

from typing import Annotated, Literal

from pydantic import Field, PositiveInt, model_validator

from megatron_ring.config.base import Part
from megatron_ring.config.curation.collect import (
    CheckToolsConfig,
    ScorePromptConfig,
    SelectAnswerConfig,
    Sources,
)
from megatron_ring.config.curation.decontaminate import DecontaminateConfig
from megatron_ring.config.curation.dedup import ExactConfig, MinHashConfig
from megatron_ring.config.curation.distil import DistilConfig
from megatron_ring.config.curation.label import LabelConfig
from megatron_ring.config.curation.mix import MixConfig
from megatron_ring.config.curation.purify import PurifyConfig

StageConfig = Annotated[
    ExactConfig
    | MinHashConfig
    | SelectAnswerConfig
    | ScorePromptConfig
    | CheckToolsConfig
    | DistilConfig
    | PurifyConfig
    | LabelConfig
    | DecontaminateConfig
    | MixConfig,
    Field(discriminator="stage"),
]


class SlurmConfig(Part):
    """What executor=slurm asks Slurm for; a task is a core with its share of the shards."""

    partition: str = Field("", description="empty: the cluster's default")
    time: str = Field("24:00:00", description="limit of a job, as sbatch takes it")
    memory_gb: PositiveInt = Field(4, description="GB a task")
    qos: str = Field("", description="empty: the cluster's default")
    sbatch: dict[str, str] = Field({}, description="more options of sbatch, e.g. {account: x}")
    setup: str = Field("", description="shell command before Python starts, e.g. module load")
    max_array: PositiveInt = Field(
        1000, description="tasks in one job array; Slurm's own MaxArraySize is 1001 by default"
    )


class RayConfig(Part):
    """What executor=ray asks Ray for."""

    address: str | None = Field(
        None, description="of a running cluster, or auto; absent: Ray starts on this machine"
    )
    memory_gb: PositiveInt = Field(1, description="GB a task")


class CurateConfig(Part):
    """What tools/curate.py run does: sources -> stages -> records kept and rejected."""

    sources: Sources = Field(min_length=1, description="a list, or a table by name")
    stages: list[StageConfig] = Field(description="in this order; `curate.py stages` lists them")
    output: str = Field(description="folder to write")
    data: str = Field("", description="folder of local data sets: ${data} in paths")
    fingerprints: str = Field(
        "", description="folder of benchmarks' fingerprints: ${fingerprints} in paths"
    )
    endpoint: str = Field(
        "", description="of a model that writes, up to /v1: ${endpoint} in stages that ask one"
    )
    format: Literal["jsonl", "parquet"] = Field("jsonl", description="of the records kept")
    records_per_shard: PositiveInt = Field(
        1000, description="a shard is what a worker does at a time, and what is lost when it dies"
    )
    max_record_bytes: PositiveInt = Field(
        4_000_000, description="longer lines are rejected; a row of 16K tokens is 70 KB of text"
    )
    records_per_file: PositiveInt = Field(
        1_000_000, description="files of kept records are cut after so many"
    )
    executor: Literal["local", "slurm", "ray"] = "local"
    workers: PositiveInt = Field(
        1, description="tasks at a time: processes, or tasks of Slurm, Ray"
    )
    shards_per_task: PositiveInt = Field(
        8,
        description="slurm, ray: shards a process does before it ends; starting one takes seconds",
    )
    slurm: SlurmConfig = SlurmConfig()
    ray: RayConfig = RayConfig()

    @model_validator(mode="after")
    def _mix_is_last(self) -> "CurateConfig":
        for index, stage in enumerate(self.stages[:-1]):
            if isinstance(stage, MixConfig):
                raise ValueError(
                    f"stages.{index} is mix, with {self.stages[index + 1].stage} behind it; mix "
                    "writes what is packed, so it comes last"
                )
        return self
