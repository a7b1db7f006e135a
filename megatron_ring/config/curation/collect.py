"""Every key of a source of records, and of the stages that choose among what sources offer."""

from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
)

from megatron_ring.config.base import Part


class Columns(Part):
    """What a record needs -> where a row has it.

    A place is a column's name; `a.b` looks inside an object, `a.0` into a list. Text with braces is
    a template: "{passage}\\n{question}" joins columns, and what is absent leaves nothing behind.
    """

    id: str | None = Field(None, description="unique in the source; the row's number when absent")
    messages: str | None = Field(None, description="chat turns, OpenAI's or ShareGPT's")
    system: str | None = Field(None, description="text of a system turn")
    history: str | None = Field(None, description="turns before the prompt, as in messages")
    prompt: str | None = Field(None, description="text of a user turn, instead of messages")
    response: str | None = Field(None, description="text of the answer to prompt")
    reasoning: str | None = Field(None, description="the thought before response")
    generations: str | list[str] | None = Field(
        None,
        description="whole answers to choose from: a column with a list of them (or one), or "
        "several columns; the keys below then hold one value for each, in the same shape",
    )
    correct: list[str] = Field([], description="verifiers' verdicts; correct when one says so")
    finish: list[str] = Field([], description="why each generation ended: stop, length")
    complete: list[str] = Field([], description="whether each thought was closed")
    score: list[str] = Field([], description="verifier's score of each, 0 to 1")
    model: str | None = Field(None, description="who wrote the answer")
    tools: str | None = Field(None, description="tool definitions, or the JSON text of them")
    calls: str | None = Field(
        None, description="the calls that answer the prompt, or the JSON text of them"
    )
    answer: str | None = Field(None, description="the short final answer")
    domain: str | None = None
    level: str | None = None
    topic: str | None = None
    licence: str | None = Field(None, description="where each row has its own")
    extra: list[str] = Field([], description="columns to carry along as they are")


class SourceConfig(Part):
    """One source of records: a known set, a local file, or any data set of a hub."""

    name: str | None = Field(
        None,
        description="begins its records' ids; the set's name or the file's stem when absent",
    )
    set: str | None = Field(
        None, description="a set that is known by name (collect/known.py); keys given beside it win"
    )
    path: str | None = Field(
        None, description="local JSONL, Parquet or JSON (.gz too); a pattern takes several files"
    )
    hub: str | None = Field(None, description="name of a `datasets` data set, instead of path")
    subset: str | None = Field(None, description="configuration of a hub data set")
    split: str = "train"
    revision: str | None = Field(None, description="commit of the data, kept with every record")
    licence: str | None = Field(None, description="kept with every record")
    form: Literal["columns", "record", "glaive", "seal_tools", "toolformer"] = Field(
        "columns",
        description="record: what this program wrote, as it is, whatever the columns; glaive: one "
        "text with USER:, ASSISTANT:, FUNCTION RESPONSE:; seal_tools: gold calls that refer to "
        "each other; toolformer: GPTeacher's calls inside the answer",
    )
    columns: Columns = Columns()
    constants: dict[str, Any] = Field(
        {},
        description="the same for every row: domain, level, topic; model, date and sampling go to "
        "the card, anything else (kind) to extra",
    )
    values: dict[str, dict[str, str]] = Field(
        {},
        description="labels in our words: domain: {Physics: physics}; "
        "others are left out. model: names of who wrote generations, by column",
    )
    replace: dict[str, str] = Field(
        {}, description="in responses: regular expression -> text, as GSM8K's <<3*4=12>> -> none"
    )
    answer_in: Literal["text", "boxed", "hashes"] = Field(
        "text", description="the answer is what \\boxed{} holds, or stands behind ####"
    )
    rows: str | None = Field(None, description="key of a JSON object under which the rows are")
    tools_path: str | None = Field(None, description="seal_tools: file of the tools")
    tools_shown: PositiveInt = Field(
        5, description="seal_tools: tools a record lists at least; the others are no use to it"
    )
    limit: PositiveInt | None = Field(None, description="read no more rows than this")


def _named(sources: Any) -> Any:
    """A list of sources from a table of them by name."""
    if not isinstance(sources, dict):
        return sources
    return [{"name": name, **source} for name, source in sources.items()]


# A list, or a table name -> source: files that hold tables can be merged.
Sources = Annotated[list[SourceConfig], BeforeValidator(_named)]


KINDS = "records it is for, by kind (tools, or as sources state it); all when empty"


class AnswerRulesConfig(Part):
    """What an answer must be to be kept, and which of several is."""

    equality: Literal["plain", "math_verify"] = Field(
        "plain",
        description="how an answer is compared with the gold one: text and exact numbers, or the "
        "optional package math-verify in a process of its own",
    )
    timeout: PositiveFloat = Field(
        5.0, description="seconds for one comparison of math_verify; 7 ms is usual, some never end"
    )
    correct: Literal["require", "where_known", "prefer", "ignore"] = Field(
        "prefer",
        description="prefer: known to be wrong is dropped, unknown is kept where none is right; "
        "where_known: must be right where the right answer is known; require: always",
    )
    finish: list[str] = Field(
        ["stop", "eos"], description="good ends; an end that the source does not tell is good"
    )
    think: Literal["require", "allow", "ignore"] = Field(
        "require",
        description="one <think>thought</think> before the answer; allow: none at all as well",
    )
    min_chars: NonNegativeInt = Field(
        1, description="characters of an answer; short ones are judged by the other rules"
    )
    max_chars: PositiveInt = Field(
        69_000,
        description="more never fits: with Ling's tokenizer 16,384 tokens, the row of both stages, "
        "are 69K characters of English thought and 44K of MATH's solutions",
    )
    language: bool = Field(
        True, description="the answer is in the language of the prompt (Chinese or not)"
    )
    max_foreign: float = Field(
        0.05,
        ge=0,
        le=1,
        description="share of Chinese characters among the letters of an answer to a prompt "
        "without any; names and quotations stay below",
    )
    choose: Literal["shortest", "longest", "first"] = "shortest"


class SelectAnswerConfig(AnswerRulesConfig):
    """Which of the answers a source offers is kept."""

    stage: Literal["select_answer"] = "select_answer"
    kinds: list[str] = Field([], description=KINDS)
    min_score: float = Field(
        1.0, ge=0, le=1, description="a verifier's score from which an answer counts as correct"
    )
    models: list[str] = Field([], description="who may have written it; anyone when empty")
    when_none: Literal["prompt", "reject"] = Field(
        "prompt", description="prompt: the prompt stays without an answer, for score_prompt"
    )


class ScorePromptConfig(Part):
    """Prompts without an answer, and whether one is worth distilling."""

    stage: Literal["score_prompt"] = "score_prompt"
    kinds: list[str] = Field([], description=KINDS)

    min_chars: NonNegativeInt = Field(
        12, description="the shortest of the 12,473 problems of GSM8K and MATH has 16"
    )
    max_chars: PositiveInt = Field(
        8_000, description="the longest of those has 2,828; problems for code are longer"
    )
    min_score: float = Field(0.5, ge=0, le=1, description="of the weighted features")
    weights: dict[str, NonNegativeFloat] = Field(
        {
            "length": 1.0,
            "question": 2.0,
            "constraints": 1.0,
            "difficulty": 1.0,
            "wanted": 1.0,
        },
        description="what each feature counts; a feature that is not known counts nothing",
    )
    difficulty: str | None = Field(
        None, description="place of a label inside the record, such as extra.difficulty"
    )
    easiest: float = Field(1.0, description="the label that scores 0")
    hardest: float = Field(10.0, description="the label that scores 1")
    wanted: dict[str, float] = Field(
        {},
        description="how much a domain, domain/level or domain/level/topic is under-supplied, 0 to "
        "1; the longest path that fits counts",
    )


class CheckToolsConfig(Part):
    """Tool definitions are schemas, and calls keep to them."""

    stage: Literal["check_tools"] = "check_tools"

    calls: Literal["any", "require"] = Field(
        "any", description="require: a record with tools calls one of them at least once"
    )
    unknown_arguments: Literal["reject", "allow"] = Field(
        "reject", description="arguments the schema does not name, where it does not allow others"
    )
    results: Literal["require", "ignore"] = Field(
        "require", description="a result follows each call unless the conversation ends there"
    )
