"""Keys of new problems of mathematics."""

from typing import ClassVar, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from megatron_ring.config.base import Part
from megatron_ring.config.curation.domain import DIFFICULTIES, DomainPart
from megatron_ring.config.curation.generate import GeneratorConfig


class Solved(Part):
    """A problem and its solution, as a model is to write one."""

    problem: str
    solution: str


class MathsConfig(DomainPart):
    """A problem is kept when enough independent solutions come to the same answer."""

    roots: ClassVar[tuple[str, ...]] = ("math",)

    kind: Literal["maths"] = "maths"
    difficulties: dict[str, PositiveFloat] = Field(
        {"medium": 1.0, "hard": 1.0}, description=DIFFICULTIES
    )
    solver: GeneratorConfig = Field(description="a model that thinks; it answers each problem")
    solutions: PositiveInt = Field(10, description="independent ones of each problem")
    agree: PositiveInt = Field(
        6, description="solutions with one answer that keep a problem: more than 5 (report, 2.2.2)"
    )
    max_agree: PositiveInt | None = Field(
        None, description="a problem on which more agree is too easy; absent: none is"
    )
    stop_early: bool = Field(
        False,
        description="ask for `agree` solutions first, and for others only while they can decide; "
        "the counts are then of those that were asked. Not with max_agree",
    )
    keep_solutions: NonNegativeInt = Field(
        10, description="agreeing ones that go along in extra.candidates, for select_answer"
    )
    timeout: PositiveFloat = Field(
        5.0, description="seconds for one comparison by math-verify; 7 ms is usual, some never end"
    )
    min_chars: PositiveInt = Field(20, description="characters of a problem")
    max_chars: PositiveInt = Field(4_000, description="characters of a problem")
    subjects: list[str] = Field(
        [],
        description="one is drawn for each request, to stand for {subject} in `writing`, else "
        "behind the topic; kept problems tell theirs in extra.subject. []: the topic alone",
    )
    seeds_as: Literal["text", "turns"] = Field(
        "text",
        description="text: in the request; turns: as earlier answers to it, each to the request "
        "with its own topic, difficulty and extra.subject, which small models follow better",
    )
    solved: list[Solved] = Field(
        [],
        description="shown to the solver as earlier turns, for a model that does not reason and "
        "box its answer when it is told to",
    )
    writing: str | None = Field(
        None,
        description="text of the request for a problem, with {topic}, {difficulty}, {seeds} and "
        "{subject} where they go; absent: ours (synthesis/maths.py)",
    )
    solving: str | None = Field(
        None, description="text of the request for a solution, with {problem}; absent: ours"
    )

    @model_validator(mode="after")
    def _can_be(self) -> "MathsConfig":
        if self.agree > self.solutions:
            raise ValueError(
                f"agree={self.agree} of solutions={self.solutions} can never be; lower agree"
            )
        if self.max_agree is not None and not self.agree <= self.max_agree < self.solutions:
            raise ValueError(
                f"max_agree={self.max_agree} is not from agree={self.agree} to "
                f"{self.solutions - 1}, one less than solutions"
            )
        if self.stop_early and self.max_agree is not None:
            raise ValueError(
                "stop_early=true does not know how many would agree in all, which "
                f"max_agree={self.max_agree} asks; leave out one of them"
            )
        return self

    @model_validator(mode="after")
    def _texts_have_their_places(self) -> "MathsConfig":
        as_turns = self.seeds_as == "turns"
        if as_turns and "{seeds}" in (self.writing or ""):
            raise ValueError(
                "writing has {seeds} in it, but with seeds_as=turns seeds are turns of their own; "
                "take {seeds} out"
            )
        for key, name in {"writing": "" if as_turns else "seeds", "solving": "problem"}.items():
            text = vars(self)[key]
            if text and name and f"{{{name}}}" not in text:
                raise ValueError(f"{key} has no {{{name}}} in it")
        if "{subject}" in (self.writing or "") and not self.subjects:
            raise ValueError("writing has {subject} in it, but there are no `subjects`; name some")
        return self
