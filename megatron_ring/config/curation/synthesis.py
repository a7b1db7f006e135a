"""Every key of tools/synthesize.py run."""

import re
from pathlib import Path
from typing import Annotated

from pydantic import (
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
)

from megatron_ring.config.base import Part
from megatron_ring.config.curation.code import CodeConfig
from megatron_ring.config.curation.collect import Sources
from megatron_ring.config.curation.generate import GeneratorConfig
from megatron_ring.config.curation.maths import MathsConfig
from megatron_ring.config.curation.novelty import NoveltyConfig
from megatron_ring.config.curation.science import ScienceConfig

DomainConfig = Annotated[CodeConfig | MathsConfig | ScienceConfig, Field(discriminator="kind")]


class SynthesisConfig(Part):
    """What tools/synthesize.py run does: seeds -> new problems, verified -> seeds, in rounds."""

    name: str = Field("synthetic", description="begins the ids of new problems; their source")
    output: str = Field(description="folder to write")
    data: str = Field("", description="folder of local data sets: ${data} in paths")
    seeds: Sources = Field(
        [], description="labelled records that new problems are written after; as curate.py's"
    )
    pool: Sources = Field(
        [],
        description="records that new problems must differ from, and that count as supply; seeds "
        "do both as well",
    )
    taxonomy: Path | None = Field(None, description="of labels; absent: the package's own")
    writer: GeneratorConfig = Field(description="the model that writes problems")
    domain: DomainConfig = Field(description="what kind of problems, and how they are verified")
    total: PositiveInt = Field(description="problems wanted, of all rounds together")
    rounds: PositiveInt = Field(5, description="at most; those kept are seeds of the next")
    per_round: PositiveInt | None = Field(
        None, description="requests for problems a round, at most; absent: all that are missing"
    )
    seeds_per_request: NonNegativeInt = Field(3, description="examples that the writer sees")
    topics: dict[str, PositiveFloat] = Field(
        {},
        description="path of the taxonomy -> weight: {math/high_school: 3, math/university: 1}; "
        "what stands below shares evenly. Absent: where supply falls short of `targets`",
    )
    targets: Path | None = Field(
        None, description="shares as tools/taxonomy_report.py takes them; absent: the report's own"
    )
    expected_yield: PositiveFloat = Field(
        0.5, description="problems kept of a request, until the first round has shown how many"
    )
    novelty: NoveltyConfig = NoveltyConfig()
    seed: NonNegativeInt = Field(1234, description="which seeds each request shows")

    @field_validator("name")
    @classmethod
    def _is_plain(cls, name: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9_.-]+", name):
            raise ValueError(f"{name!r} begins ids; letters, digits, . _ and - are allowed")
        return name
