"""Keys that every domain of synthesis has."""

from typing import ClassVar

from pydantic import Field, PositiveFloat

from megatron_ring.config.base import Part

DIFFICULTIES = "how hard -> weight; seeds tell theirs in extra.difficulty, and {} asks for none"


class DomainPart(Part):
    """What the rounds must know of a domain. Each has its `kind`, and more keys of its own."""

    roots: ClassVar[tuple[str, ...]]  # paths of the taxonomy that its problems lie below
    difficulties: dict[str, PositiveFloat] = Field({}, description=DIFFICULTIES)
