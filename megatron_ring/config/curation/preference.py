"""Every key of tools/make_pairs.py: which pairs of answers are made for DPO, and how many."""

from typing import Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from megatron_ring.config.base import Part
from megatron_ring.config.curation.purify import RepetitionConfig

Rule = Literal["wrong", "longer", "repetitive", "unfinished", "tags"]
Damage = Literal[
    "missing_open", "missing_close", "redundant", "misplaced", "empty", "answer_inside"
]


class PairSource(Part):
    """JSONL to make pairs of: records, or what tools/sample.py --output wrote.

    A record has messages; with an assistant's turn last, that is its own response. Answers of a
    model to it stand in extra.candidates, as those that select_answer chooses from.
    """

    path: str = Field(description="JSONL; a pattern takes several files, in order of their names")
    of: str | None = Field(
        None,
        description="of samples ({prompt, answer} a line): the JSONL that their prompts are from, "
        "for the right answers and for prompts of several turns",
    )
    name: str | None = Field(
        None, description="goes with every pair; a record's own source, else the file's stem"
    )


class OverlapConfig(Part):
    """What low n-gram overlap means: of the answers that may be chosen, the one with the least.

    The overlap is the sum of three shares of the answer's n-grams, times their weights.
    """

    words: PositiveInt = Field(
        4, description="words in an n-gram; a Chinese character is a word, signs are none"
    )
    within: NonNegativeFloat = Field(
        1.0, description="weight of n-grams that occurred before in the same answer"
    )
    prompt: NonNegativeFloat = Field(
        1.0, description="weight of n-grams that the prompt has as well: copied from it"
    )
    others: NonNegativeFloat = Field(
        0.0,
        description="weight of n-grams that another answer to the prompt has as well: what all "
        "say; off, since long answers among short ones have the smallest share",
    )


class ChoiceConfig(Part):
    """Which of the answers to a prompt may be the chosen one."""

    sources: list[PairSource] = Field(min_length=1)
    take: PositiveInt | None = Field(None, description="pairs; all that can be made when absent")
    equality: Literal["plain", "text", "math_verify"] = Field(
        "plain",
        description="how an answer is compared with the gold one: as text and exact number (what "
        "these cannot tell is unknown), by text alone (what differs is wrong, for answers of one "
        "fixed form), or by the optional package math-verify",
    )
    timeout: PositiveFloat = Field(5.0, description="seconds for one comparison of math_verify")
    min_score: float = Field(
        1.0, ge=0, le=1, description="a verifier's score from which an answer counts as correct"
    )
    correct: Literal["require", "prefer"] = Field(
        "require",
        description="prefer: where none is known to be right, one that nothing is known of may be "
        "chosen, as of chats; a wrong one never",
    )
    think: Literal["require", "allow"] = Field(
        "require",
        description="one <think>thought</think> before the answer; allow: none at all as well",
    )
    finish: list[str] = Field(
        ["stop", "eos"], description="good ends; an end that is not told is good"
    )
    reference: Literal["never", "where_none", "always"] = Field(
        "where_none",
        description="the record's own response as the chosen: where no sampled answer may be, or "
        "always; never where it is known to be wrong",
    )
    overlap: OverlapConfig = OverlapConfig()
    repetition: RepetitionConfig = Field(
        RepetitionConfig(), description="loops, as stage purify finds them: never chosen"
    )


class GeneralConfig(ChoiceConfig):
    """Pairs of two answers to one prompt: the rejected one breaks a rule."""

    shares: dict[Rule, PositiveFloat] = Field(
        {"wrong": 2.0, "longer": 1.0, "repetitive": 1.0},
        min_length=1,
        description="rule -> its share of `take`; rules that are not named are off. wrong: its "
        "answer is not the gold one. longer: as good, but clearly longer. repetitive: it loops, or "
        "many of its n-grams come back. unfinished: cut. tags: its think tags are not right",
    )
    longer_ratio: float = Field(
        1.5, gt=1, description="longer: at least so many times the chosen's characters"
    )
    longer_characters: NonNegativeInt = Field(
        200, description="longer: and at least so many more; twice a short answer is still short"
    )
    repeated_share: float = Field(
        0.4,
        gt=0,
        le=1,
        description="repetitive: from this share of n-grams (of overlap.words words) that "
        "occurred before in it; of MATH's solutions half have 0.05, one in a hundred has 0.4",
    )
    repeated_more: float = Field(
        0.2, ge=0, lt=1, description="repetitive: and so much above the chosen's share"
    )
    repeated_least: PositiveInt = Field(
        50, description="repetitive: n-grams from which a share says something"
    )
    pairs_per_prompt: PositiveInt = Field(
        1, description="at most, each with another rejected answer; prompts without a pair go first"
    )


class StructureConfig(ChoiceConfig):
    """Pairs of one answer with right and with damaged think tags."""

    correct: Literal["require", "prefer"] = "prefer"
    shares: dict[Damage, PositiveFloat] = Field(
        dict.fromkeys(
            ["missing_open", "missing_close", "redundant", "misplaced", "empty", "answer_inside"],
            1.0,
        ),
        min_length=1,
        description="damage -> its share of `take` (curation/corrupt_tags.py says what they are)",
    )

    @model_validator(mode="after")
    def _has_a_thought(self) -> "StructureConfig":
        if self.think != "require":
            raise ValueError(f"think={self.think}: tags are damaged where there are some; require")
        return self


class BlendConfig(Part):
    """What tools/make_pairs.py does: answers -> pairs by quota, no prompt in both parts."""

    general: GeneralConfig | None = None
    structure: StructureConfig | None = None
    output: str = Field(description="folder to write")
    seed: NonNegativeInt = Field(
        1234, description="which prompts and rejected answers are taken, and where tags are damaged"
    )
    when_short: Literal["fill", "take_all", "error"] = Field(
        "fill",
        description="a rule has fewer pairs than its share: fill: the others make up for it as far "
        "as they can; take_all: there are fewer pairs",
    )

    @model_validator(mode="after")
    def _has_a_part(self) -> "BlendConfig":
        if self.general is None and self.structure is None:
            raise ValueError("there is nothing to make; give general, structure or both")
        return self
