"""Keys of purification: which rules drop an answer, and from what number on.

The numbers were set on two thirds of the labelled cases (tests/curation/golden/purify_cases.jsonl)
and on the clean solutions of GSM8K and MATH; `tools/measure_purification.py` measures them anew.
"""

from typing import Literal

from pydantic import Field, PositiveInt

from megatron_ring.config.base import Part

Rule = Literal[
    "repetition_characters",
    "repetition_loop",
    "repetition_counted_loop",
    "repetition_sentences",
    "repetition_ngrams",
    "truncation_length",
    "truncation_think",
    "truncation_answer",
    "truncation_fence",
    "truncation_formula",
    "truncation_ending",
    "latex_delimiters",
    "latex_braces",
    "latex_environments",
    "latex_left_right",
    "latex_scripts",
    "latex_arguments",
    "latex_alignment",
    "latex_commands",
    "figures_image",
    "figures_drawn",
    "figures_reference",
]


class RepetitionConfig(Part):
    """Loops. Characters of Chinese count twice."""

    character_run: PositiveInt = Field(
        128,
        description="one character this often in a row; a hash of zeros has 64, 10^100 a hundred",
    )
    ruler_run: PositiveInt = Field(
        512, description="the same of -=_.* and others that draw lines; a wide table has some 200"
    )
    loop_copies: PositiveInt = Field(
        4, description="copies of a loop; a poem's refrain or a check comes back three times"
    )
    loop_characters: PositiveInt = Field(
        160,
        description="characters beyond the first copy; no clean solution of GSM8K or MATH has "
        "a loop of as many",
    )
    many_copies: PositiveInt = Field(
        8, description="copies from which half the characters suffice: n = 3: 4·5 = 20, no."
    )
    many_symbols: PositiveInt = Field(
        6,
        description="different words and symbols in such a copy; an empty cell <td></td> has four",
    )
    wordless_copies: PositiveInt = Field(
        20, description="copies of a loop without words: 5 + 5 + 5 + … is written out at times"
    )
    wordless_symbols: PositiveInt = Field(
        4, description="different symbols in such a loop; rows of zeros have three: 0 & \\"
    )
    counted_copies: PositiveInt = Field(
        8, description="copies of a loop in which the numbers alone change"
    )
    counted_words: PositiveInt = Field(
        12, description="words in such a copy; trying cases takes fewer: 211 / 7 is not an integer"
    )
    counted_numbers: float = Field(
        0.05, ge=0, le=1, description="numbers per token in such a copy, at most; cases have more"
    )
    sentence_characters: PositiveInt = Field(
        24, description="shorter sentences come back by nature: So x = 2."
    )
    sentence_times: PositiveInt = Field(
        5, description="sentences said a third time or more; two are thought and reply"
    )
    sentence_share: float = Field(0.25, gt=0, le=1, description="of the text that they make up")
    ngram_words: PositiveInt = Field(10, description="words in an n-gram")
    ngram_least: PositiveInt = Field(100, description="n-grams from which a share says something")
    ngram_share: float = Field(
        0.6,
        gt=0,
        le=1,
        description="n-grams that are not new; a reply equal to its thought has 0.5",
    )
    window: PositiveInt = Field(
        1_000_000, description="characters looked at together for loops; bounds the memory"
    )


class TruncationConfig(Part):
    """Answers that end before they are done."""

    finish_reasons: list[str] = Field(
        ["length", "max_tokens", "max_output_tokens", "model_length"],
        description="values of finish_reason in the generation card that mean: cut",
    )
    prose_words: PositiveInt = Field(
        4,
        description="words of a last sentence without its full stop, where others have theirs; "
        "below, it may be a signature or a title",
    )
    prose_characters: PositiveInt = Field(10, description="the same of Chinese, in characters")


class LatexConfig(Part):
    """Formulas that LaTeX would refuse."""

    look_at: Literal["both", "response"] = Field(
        "both", description="a prompt with a broken formula is a broken question"
    )
    commands: list[str] = Field(
        [], description="commands to be known besides the usual ones, without backslash"
    )
    environments: list[str] = Field([], description="environments to be known besides")


class FiguresConfig(Part):
    """Figures that a model of text cannot see."""

    drawn: Literal["keep", "response", "both"] = Field(
        "response",
        description="figures drawn in the text (Asymptote, TikZ) are dropped in a response, which "
        "would teach to draw unasked; a prompt with its drawing can be solved by reading",
    )
    patterns: list[str] = Field([], description="regular expressions of more references")


class PurifyConfig(Part):
    """Drops answers that loop, that were cut, whose LaTeX is invalid, that need a figure."""

    stage: Literal["purify"] = "purify"
    off: list[Rule] = Field([], description="rules not applied")
    repetition: RepetitionConfig = RepetitionConfig()
    truncation: TruncationConfig = TruncationConfig()
    latex: LatexConfig = LatexConfig()
    figures: FiguresConfig = FiguresConfig()
