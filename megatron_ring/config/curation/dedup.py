"""Keys of the stages that drop records seen before."""

from typing import Literal

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from megatron_ring.config.base import Part
from megatron_ring.config.curation.collect import KINDS

Text = Literal["prompt", "both"]
Prefer = Literal["first", "longest"]
TEXT = "compared: the prompt, or prompt and response together"
PREFER = "of records that are equal: the first in the order of sources, or the longest response"


class ExactConfig(Part):
    """Drops records whose text is another's, but for case, white space and Unicode forms."""

    stage: Literal["exact"] = "exact"
    kinds: list[str] = Field([], description=KINDS)
    text: Text = Field("prompt", description=TEXT)
    prefer: Prefer = Field("first", description=PREFER)


class MinHashConfig(Part):
    """Drops records whose text is nearly another's: Jaccard similarity of word n-grams."""

    stage: Literal["minhash"] = "minhash"
    text: Text = Field("prompt", description=TEXT)
    prefer: Prefer = Field("first", description=PREFER)
    ngram: PositiveInt = Field(
        5, description="words in a shingle; Chinese characters count as words"
    )
    threshold: float = Field(
        0.8, gt=0, le=1, description="Jaccard similarity of shingles from which two are one"
    )
    permutations: PositiveInt = Field(128, description="hashes in a signature")
    bands: PositiveInt = Field(
        16, description="two records are compared when all hashes of one band agree"
    )
    seed: NonNegativeInt = Field(0, description="of the permutations")

    @model_validator(mode="after")
    def _bands_divide(self) -> "MinHashConfig":
        if self.permutations % self.bands:
            raise ValueError(
                f"bands={self.bands} do not divide permutations={self.permutations}; "
                "choose a divisor"
            )
        return self
