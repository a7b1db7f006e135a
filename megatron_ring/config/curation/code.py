"""Keys of code synthesis: what a new problem must hold to, and how it is run."""

from typing import ClassVar, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from megatron_ring.config.base import Part
from megatron_ring.config.curation.domain import DIFFICULTIES, DomainPart
from megatron_ring.config.curation.generate import GeneratorConfig

PURE = """__future__ abc array bisect cmath collections copy dataclasses datetime decimal enum
fractions functools heapq itertools json math numbers operator re statistics string sys textwrap
typing""".split()

# The taxonomy has one place for all of them; subjects keep problems apart from each other.
SUBJECTS = [
    "arithmetic of integers", "digits of numbers", "prime numbers and divisors", "fractions",
    "number bases and bits", "sequences and recurrences", "counting and combinations",
    "probability", "plane geometry", "calendars and times of day", "money and rounding",
    "words and letters of a text", "palindromes and anagrams", "parsing of a small format",
    "brackets and expressions", "encoding and compression of text", "comparison of two texts",
    "sorting by several keys", "searching in sorted lists", "merging of lists and intervals",
    "sliding windows and running totals", "dictionaries and grouping", "sets and membership",
    "stacks and queues", "linked records and trees", "nested lists", "matrices and grids",
    "paths through a grid", "graphs and connected parts", "shortest ways", "scheduling",
    "dynamic programming", "greedy choice", "backtracking and puzzles", "games and simulation",
    "validation of identifiers", "statistics of a table", "inventory and bookkeeping",
]  # fmt: skip


class ProgramLimits(Part):
    """What a generated program may use in the sandbox."""

    seconds: PositiveFloat = Field(
        30.0, description="of wall time, for a program and its tests; long, as machines are busy"
    )
    cpu_seconds: PositiveInt = Field(5, description="of CPU time; what never ends ends here")
    memory_mb: int = Field(512, ge=64, description="MiB, Python itself included")
    processes: PositiveInt = Field(16, description="and threads")


class CodeConfig(DomainPart):
    """New problems with a solution and tests: written, run, kept when tests tell and it is hard."""

    roots: ClassVar[tuple[str, ...]] = ("code/generation",)

    kind: Literal["code"] = "code"
    difficulties: dict[str, PositiveFloat] = Field(
        {"medium": 1.0, "hard": 1.0}, description=DIFFICULTIES
    )
    subjects: list[str] = Field(
        SUBJECTS,
        description="one is drawn for each request; kept problems tell theirs in extra.subject, "
        "and so may seeds. []: the topic alone is named",
    )
    solver: GeneratorConfig = Field(description="a model that thinks; it solves each problem")
    form: Literal["function", "program"] = Field(
        "function",
        description="function: tests are asserts on what it returns; program: it reads stdin, and "
        "tests are pairs of input and output",
    )
    min_tests: PositiveInt = Field(4, description="different asserts, or pairs; fewer: rejected")
    min_statement_chars: PositiveInt = Field(40, description="shorter ones state no problem")
    max_statement_chars: PositiveInt = Field(6000, description="longer ones hold more than one")
    allowed_imports: list[str] = Field(
        PURE, description="modules that solution and tests may import; the sandbox knows no others"
    )
    signature: bool = Field(
        True,
        description="the prompt ends with the signature of what tests call; false: a statement "
        "that does not name it is rejected",
    )
    examples: NonNegativeInt = Field(1, description="tests that the prompt shows")
    max_mutants: NonNegativeInt = Field(
        8, description="broken variants of the solution that are run; 0: only the empty one"
    )
    min_mutants_killed: float = Field(
        0.7,
        ge=0,
        le=1,
        description="share of them that tests must notice; of MBPP's tasks, three asserts each, "
        "86 % reach this",
    )
    solutions: NonNegativeInt = Field(
        4, description="answers of the solver to the problem alone; 0: all that is sound is kept"
    )
    max_pass_rate: float = Field(
        0.75, ge=0, le=1, description="share of them that may pass; above it: too easy"
    )
    keep_unsolved: bool = Field(
        False, description="keep what no answer solves: very hard, or its tests are wrong"
    )
    keep_solutions: NonNegativeInt = Field(
        4, description="answers that pass and go along in extra.candidates, for select_answer"
    )
    limits: ProgramLimits = ProgramLimits()
    seed_solution: str = Field("solution", description="key of a seed's `extra` with its program")
    seed_tests: str = Field("tests", description="key with its tests: text, or a list of asserts")
    seed_chars: PositiveInt = Field(4000, description="longer seeds are not shown")
    writing: str | None = Field(
        None,
        description="text of the request for a problem, with {topic}, {subject}, {difficulty}, "
        "{tests} and {modules} where they go; its headings stay ## Problem, ## Solution, ## Tests. "
        "Absent: ours (synthesis/code.py)",
    )
    again: str | None = Field(
        None,
        description="text of the requests behind the first, with the same; seeds with a program "
        "are shown as answers to them. Absent: ours",
    )

    @model_validator(mode="after")
    def _something_can_pass(self) -> "CodeConfig":
        if self.solutions and not self.keep_unsolved and self.max_pass_rate * self.solutions < 1:
            raise ValueError(
                f"max_pass_rate={self.max_pass_rate:g} of solutions={self.solutions} is less than "
                "one answer, and what none solves is not kept; raise one of the two, or set "
                "keep_unsolved=true"
            )
        if self.min_statement_chars > self.max_statement_chars:
            raise ValueError(
                f"min_statement_chars={self.min_statement_chars} is above max_statement_chars="
                f"{self.max_statement_chars}; nothing would be kept"
            )
        return self
