"""Keys of new problems of science."""

from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt

from megatron_ring.config.base import Part
from megatron_ring.config.curation.domain import DIFFICULTIES
from megatron_ring.config.curation.generate import GeneratorConfig
from megatron_ring.config.curation.maths import MathsConfig


class JudgeConfig(GeneratorConfig):
    """A model that says what a topic or a problem asks for; greedy, and once more where unclear."""

    max_tokens: PositiveInt = Field(
        4096, description="of an answer, which is one word, and the thought before it"
    )
    undecided: Literal["drop", "keep"] = Field(
        "drop", description="what becomes of a topic or problem on which it says no class, twice"
    )


class SubtopicsConfig(Part):
    """Topics that the judge's model puts under those of the taxonomy."""

    number: PositiveInt = Field(8, description="of a topic, at most")
    depth: PositiveInt = Field(1, le=3, description="levels below the taxonomy's")


class ScienceConfig(MathsConfig):
    """A problem is kept when it computes or analyses, and independent solutions agree."""

    domains: tuple[str, ...] = Field(
        ("physics", "chemistry", "biology"),
        min_length=1,
        description="paths of the taxonomy that its problems lie below; `topics` weighs them",
    )
    kind: Literal["science"] = "science"
    difficulties: dict[str, PositiveFloat] = Field(
        {"easy": 1.0, "medium": 1.0, "hard": 1.0}, description=DIFFICULTIES
    )
    judge: JudgeConfig = Field(
        description="it keeps topics and problems that compute or analyse over those that recall"
    )
    judge_topics: bool = Field(
        True, description="each topic and difficulty before any problem is asked for"
    )
    judge_problems: bool = Field(True, description="each new problem before it is solved")
    subtopics: SubtopicsConfig | None = Field(None, description="absent: the taxonomy's alone")
    tolerance: float = Field(
        0.01,
        ge=0,
        lt=0.2,
        description="numbers this near, relative to the larger, are one answer: solvers round. "
        "Whole numbers without a unit are counts, and must be equal",
    )

    @property
    def roots(self) -> tuple[str, ...]:
        """As of all domains."""
        return self.domains
