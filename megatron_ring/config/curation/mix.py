"""Every key of mixing: which records a training stage takes, and how many."""

from typing import Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from megatron_ring.config.base import Part

LABELS = ("kind", "domain", "level", "topic", "source", "split", "licence")


class Quota(Part):
    """So many records with these labels; a record belongs to the first quota that it fits."""

    take: PositiveInt = Field(description="records, before `scale`")
    where: dict[str, list[str]] = Field(
        {},
        description="label -> values; all must fit. Labels: kind (tools, or as sources state it), "
        "domain, level, topic, source, split, licence",
    )
    share_by: str | None = Field(None, description="label that divides the quota")
    shares: dict[str, PositiveFloat] = Field(
        {}, description="value of that label -> weight; records of other values are not taken"
    )

    @model_validator(mode="after")
    def _labels_exist(self) -> "Quota":
        for label in [*self.where, *([self.share_by] if self.share_by else [])]:
            if label not in LABELS:
                raise ValueError(f"unknown label {label!r}; known: {', '.join(LABELS)}")
        if (self.share_by is None) != (not self.shares):
            raise ValueError("share_by and shares come together")
        return self


class MixConfig(Part):
    """Step `mix`: records by quota, a file a group, and the manifest that tools/pack.py reads."""

    stage: Literal["mix"] = "mix"
    quotas: dict[str, Quota] = Field(min_length=1, description="name of the group -> its quota")
    scale: PositiveFloat = Field(1.0, description="times every quota")
    seed: NonNegativeInt = Field(1234, description="which records are taken where there are more")
    when_short: Literal["error", "take_all", "repeat"] = Field(
        "take_all", description="repeat: those there are, seen more than once an epoch"
    )
    max_repeats: PositiveFloat = Field(
        4.0,
        ge=1,
        description="repeat: no sample is seen more often an epoch; up to four passes over the "
        "same data are about as good as new data (arXiv 2305.16264)",
    )
