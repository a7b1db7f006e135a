"""Keys of what is new: when a text that was made is taken for one that is known."""

from pathlib import Path

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from megatron_ring.config.base import Part
from megatron_ring.config.curation.endpoint import EndpointConfig


class NgramsConfig(Part):
    """A text is known when it has most of its word n-grams in common with one known text.

    Measured, each problem of a set against all others of it: of GSM8K's train set 0.35 % are known,
    all that were looked at retellings; of MATH's 10 %, of which by eye one in six is another
    problem. Copies with other numbers are found in 99.8 and 85 % (the others are short), with
    other names as well in 86 and 84 %.
    """

    n: PositiveInt = Field(5, description="words in a row; a CJK character is a word")
    threshold: float = Field(
        0.6,
        gt=0,
        le=1,
        description="share of the longer one's n-grams that are common, from which a text is known",
    )
    mask_numbers: bool = Field(
        True,
        description="all numbers are alike, so that a problem with other numbers is known: it "
        "teaches what the first one taught",
    )
    min_words: NonNegativeInt = Field(
        12,
        description="words besides numbers from which mask_numbers holds: what is left of "
        '"Simplify 3x + 2x" says too little',
    )


class SemanticConfig(Part):
    """A text is known when its embedding is near that of a known text, whatever the numbers."""

    embedding: EndpointConfig | None = Field(None, description="a model that serves /embeddings")
    folder: Path | None = Field(None, description="of a sentence-transformers model")
    similarity: float = Field(
        0.9,
        gt=-1,
        le=1,
        description="cosine from which a text is known; it depends on the model, so look at pairs "
        "of your own first: other problems came as high as 0.76 with MiniLM",
    )

    @model_validator(mode="after")
    def _one_model(self) -> "SemanticConfig":
        if (self.embedding is None) == (self.folder is None):
            both = "both embedding and folder" if self.folder else "neither embedding nor folder"
            raise ValueError(f"{both} are set; a text has one embedding: set one of them")
        return self


class NoveltyConfig(Part):
    """What a new text must not be. The same text, but for case and white space, is always known."""

    ngrams: NgramsConfig | None = Field(NgramsConfig(), description="null: not compared")
    semantic: SemanticConfig | None = Field(None, description="absent: not compared")
