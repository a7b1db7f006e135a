"""Keys of the stage that drops records which hold items of benchmarks."""

from pathlib import Path
from typing import Literal

from pydantic import Field, PositiveInt, model_validator

from megatron_ring.config.base import Part
from megatron_ring.config.curation.endpoint import EndpointConfig


class JudgeConfig(EndpointConfig):
    """A language model asked whether a text and an item are one problem."""

    max_tokens: PositiveInt = Field(16, description="of an answer; more when the model reasons")
    unclear: Literal["reject", "keep"] = Field(
        "reject",
        description="what becomes of a record on which it says neither yes nor no, twice: a lost "
        "record costs little, a leaked item costs the benchmark",
    )


class EmbeddingConfig(EndpointConfig):
    """A model of embeddings that names more neighbours; the judge decides on them."""

    top: PositiveInt = Field(3, description="nearest items of a text")
    similarity: float = Field(
        0.5,
        ge=-1,
        le=1,
        description="cosine from which an item is a neighbour; paraphrases come as low as 0.5, "
        "other problems as high as 0.76, so it only chooses what the judge sees",
    )


class NeighboursConfig(Part):
    """When an item that is worded otherwise is the same: content words shared, by Dice's measure.

    Measured on pairs with equal numbers: MATH train against MATH-500 and GSM8K train against its
    test, where what lies below 0.6 are other problems, and nearly all above 0.7 the same.
    """

    same: float = Field(
        0.6, gt=0, le=1, description="overlap from which it is the same problem, without a judge"
    )
    few_numbers: float = Field(
        0.8,
        gt=0,
        le=1,
        description="the same, of items with fewer than three numbers: there numbers guard little",
    )
    unsure: float = Field(
        0.4, gt=0, le=1, description="overlap from which a judge is asked, if there is one"
    )

    @model_validator(mode="after")
    def _in_order(self) -> "NeighboursConfig":
        if not self.unsure <= self.same <= self.few_numbers:
            raise ValueError(
                f"unsure={self.unsure}, same={self.same}, few_numbers={self.few_numbers} do not "
                "ascend; set unsure <= same <= few_numbers"
            )
        return self


class BenchmarkFile(Part):
    """Where a benchmark's text is: what its fingerprint was built from."""

    path: Path = Field(description="JSONL (also .gz), .json array or Parquet")
    column: str = Field(description="column with the text")
    id_column: str | None = Field(None, description="column with ids; absent: the row's number")


class DecontaminateConfig(Part):
    """Drops records that hold an item of a benchmark, by fingerprints of tools/fingerprint.py."""

    stage: Literal["decontaminate"] = "decontaminate"
    fingerprints: list[Path] = Field(min_length=1, description="one file a benchmark")
    salt: Path = Field(description="the salt file they were built with")
    text: Literal["prompt", "all"] = Field(
        "prompt", description="what is searched: the user's turns, or every turn with its thought"
    )
    coverage: float = Field(
        0.5,
        gt=0,
        le=1,
        description="share of an item's n-grams in a record from which it is found. With 0.5 of "
        "8-grams AIME 1983-2023 against AIME24 has no false flag, where the any-8-gram rule has "
        "246 of 975; with 0.2 of 13-grams 2",
    )
    number_guard: bool = Field(
        True, description="the same words with other numbers are another problem"
    )
    numbers_missing: float = Field(
        0.05,
        ge=0,
        le=1,
        description="share of an item's numbers that a record may lack and still be the same: one "
        "of five is another problem, one of forty a slip",
    )
    numbers_extra: float = Field(
        0.25, ge=0, le=1, description="share of a neighbour's numbers that the item may lack"
    )
    numbers_changed: Literal["keep", "reject"] = Field(
        "keep", description="kept, the item is noted in extra.numbers_changed_from"
    )
    neighbours: NeighboursConfig | None = Field(
        NeighboursConfig(), description="null: n-grams alone"
    )
    judge: JudgeConfig | None = Field(None, description="asked on unsure neighbours")
    embedding: EmbeddingConfig | None = Field(None, description="more neighbours, for the judge")
    benchmarks: dict[str, BenchmarkFile] = Field(
        {}, description="judge, embedding: your copy of each benchmark's text, by its name"
    )

    @model_validator(mode="after")
    def _judge_has_something_to_read(self) -> "DecontaminateConfig":
        if self.embedding is not None and self.judge is None:
            raise ValueError(
                "embedding is set, but judge is not; similarity alone cannot tell a paraphrase "
                "from another problem: set judge too"
            )
        if self.judge is not None and self.neighbours is None:
            raise ValueError("judge is set, but neighbours=null; it is asked on neighbours")
        if self.judge is not None and not self.benchmarks:
            raise ValueError(
                "judge is set, but benchmarks is empty; fingerprints hold no text, so name your "
                "copy: benchmarks.NAME={path: ..., column: ...}"
            )
        return self
