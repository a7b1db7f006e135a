"""Every key of tools/pack.py."""

from typing import Literal, Self

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from megatron_ring.config.base import Part


class SourceConfig(Part):
    """One source of chat samples, or of pairs of answers."""

    path: str = Field(
        description="JSONL or Parquet file, .json array, or the name of a `datasets` data set"
    )
    name: str | None = Field(None, description="shown in reports; the file's stem when absent")
    subset: str | None = Field(None, description="configuration of a `datasets` data set")
    split: str = Field("train", description="of a `datasets` data set")
    weight: PositiveFloat = Field(
        1.0, description="times each sample is seen an epoch; 0.5 draws half, 2 shows all twice"
    )
    messages: str = Field(
        "messages", description="column holding the chat turns; of pairs, the prompt's"
    )
    tools: str = Field("tools", description="column holding tool definitions, if there is one")
    domain: str | None = Field(
        "domain",
        description="column holding a domain of the taxonomy, if there is one: losses are reported "
        "for each",
    )
    prompt: str | None = Field(
        None,
        description="with `response`: a plain-text prompt column; of pairs, the prompt (text or "
        "turns) where it is neither in `messages` nor in a column named prompt",
    )
    response: str | None = Field(None, description="plain-text answer column, instead of messages")
    chosen: str = Field("chosen", description="pairs: column holding the better answer")
    rejected: str = Field("rejected", description="pairs: column holding the worse answer")
    format_spans: str | None = Field(
        "think",
        description="pairs: which tokens are structure: think (the tags and what surrounds them), "
        "or a column of {chosen: [[start, stop], ...], rejected: ...} in characters",
    )


class PackConfig(Part):
    """What tools/pack.py does: samples -> documents -> a plan of rows."""

    kind: Literal["chat", "pairs"] = Field(
        "chat", description="pairs: a chosen and a rejected answer to one prompt, for DPO"
    )
    learn: Literal["answers", "all"] = Field(
        "answers",
        description="all: every token of a chat is learnt, prompts too, as in pre-training",
    )
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

    @model_validator(mode="after")
    def _what_is_learnt(self) -> Self:
        if self.kind == "pairs" and self.learn == "all":
            raise ValueError(
                "learn=all with kind=pairs: of pairs the answers are compared, and prompts are not "
                "learnt; leave learn out"
            )
        return self
