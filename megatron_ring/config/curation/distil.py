"""Keys of distillation: answers to prompts from a model that reasons."""

from typing import Literal

from pydantic import Field, PositiveInt

from megatron_ring.config.curation.code import ProgramLimits
from megatron_ring.config.curation.collect import KINDS, AnswerRulesConfig
from megatron_ring.config.curation.generate import GeneratorConfig


class DistilConfig(AnswerRulesConfig):
    """Answers prompts by a model that reasons, and keeps the best answer that passes."""

    stage: Literal["distil"] = "distil"
    kinds: list[str] = Field([], description=KINDS)
    generator: GeneratorConfig = Field(description="the model")
    correct: Literal["require", "where_known", "prefer", "ignore"] = Field(
        "where_known",
        description="where_known: right where answer or extra.tests are known; prefer: what cannot "
        "be compared is kept where none is right; require: prompts without answer or tests go",
    )
    draws: PositiveInt = Field(
        4,
        description="answers drawn at most: the next one only where none so far passes, nor is "
        "known to be right where that can be told",
    )
    hard: dict[str, list[str]] = Field(
        {},
        description="place in a record -> values, {extra.difficulty: [hard]}: records that fit all "
        "get all draws, and the best is kept",
    )
    instruction: str = Field(
        "Reason step by step, and write the final answer in \\boxed{}.",
        description="behind prompts whose answer is known, when they are asked; not in what is "
        "kept. Empty: none",
    )
    program: ProgramLimits = Field(
        ProgramLimits(), description="what a program may use that answers a prompt with extra.tests"
    )
