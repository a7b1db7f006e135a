"""Keys of the stage that labels records with their place in the taxonomy."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, PositiveInt, model_validator

from megatron_ring.config.base import Incidental, Part
from megatron_ring.config.curation.endpoint import EndpointConfig


class SourceRule(Part):
    """What a source says about its records: a path for all, or one for each value of a column."""

    source: str = Field(
        description="name of a source, or a pattern with * that names match; the first rule that "
        "matches and knows a path counts"
    )
    path: str | None = Field(
        None,
        description="of the taxonomy, for all records (math, math/primary, code/generation); what "
        "it leaves open is labelled by text",
    )
    column: str | None = Field(
        None, description="where the source has its own subject: extra.subject, extra.data.type"
    )
    paths: dict[str, str] = Field(
        {}, description="paths by value of the column; records of other values get `path`"
    )

    @model_validator(mode="after")
    def _says_something(self) -> "SourceRule":
        if self.path is None and not self.paths:
            raise ValueError(f"source={self.source!r} has neither path nor paths; give it one")
        if bool(self.paths) != (self.column is not None):
            raise ValueError(
                f"column={self.column!r} with {len(self.paths)} paths; the two come together"
            )
        return self


class JudgeConfig(EndpointConfig):
    """A language model asked for what the offline path doubts."""

    below: float = Field(
        0.6, ge=0, le=1, description="asked when the offline confidence is below this"
    )
    max_tokens: PositiveInt = Field(256, description="of an answer; more when the model reasons")
    max_characters: PositiveInt = Field(4000, description="of a record's text that are shown to it")
    give_up_after: Annotated[PositiveInt, Incidental()] = Field(
        10,
        description="records in a row without any answer after which the run stops, so that a dead "
        "endpoint is not taken for a million doubtful records",
    )
    cache: Annotated[Path | None, Incidental()] = Field(
        None,
        description="folder of answers by hash of the request; what is there is not asked again, "
        "so a run that resumes gives what it would have given",
    )


class LabelConfig(Part):
    """Sets domain, level, topic and confidence: by what the source says, rules, text, a judge."""

    stage: Literal["label"] = "label"
    taxonomy: Path | None = Field(
        None, description="a YAML file of the shape of curation/taxonomy.yaml; absent: that one"
    )
    sources: list[SourceRule] = Field([], description="what is known of sources without reading")
    rules: bool = Field(
        True, description="phrases that give a task away (curation/label/rules.py) come before text"
    )
    method: Literal["ngrams", "embeddings"] = Field(
        "ngrams",
        description="ngrams: the fitted labeller, 0.3 ms a record; embeddings: nearness to the "
        "taxonomy's own words by a sentence-transformers model, many times slower",
    )
    labeller: Path | None = Field(
        None, description="a file of tools/train_labeller.py; absent: curation/label/labeller.npz"
    )
    embedding_model: Path | None = Field(
        None, description="folder of a sentence-transformers model, for method=embeddings"
    )
    threshold: float = Field(
        0.5,
        ge=0,
        le=1,
        description="a domain or level that is less likely than this (the domain and level both, "
        "for a level) is not claimed but `unknown`",
    )
    topic_threshold: float = Field(
        0.3,
        ge=0,
        le=1,
        description="a topic that, with all before it, is less likely than this is not claimed but "
        "`others`; lower than threshold, as topics are many and close to each other",
    )
    judge: JudgeConfig | None = Field(None, description="absent: none is asked")
    overwrite: bool = Field(False, description="label records that have a domain already")

    @model_validator(mode="after")
    def _method_has_its_model(self) -> "LabelConfig":
        if (self.method == "embeddings") != (self.embedding_model is not None):
            raise ValueError(
                f"method={self.method} with embedding_model={self.embedding_model}; the folder of "
                "a model goes with method=embeddings, and with no other"
            )
        return self
