"""Endless general samples whose answers can be checked: facts, sums, instructions, calls of tools.

A sample is a chat, as tools/pack.py reads it and a benchmark of `kind: chat` too: `messages` with
the right answer as the last turn, `topic`, and where they have some `tools` (OpenAI-style) and
`instructions` (rules of IFEval, each {"id", "kwargs"}, all of which the answer follows). A short
thought is the last turn's `reasoning_content`.
"""

import json
import random
from collections.abc import Callable, Iterator
from functools import cache
from importlib.resources import files
from typing import Any

import yaml

Sample = dict[str, Any]

SUBJECTS = (
    "river stone cloud garden window winter summer mountain horse tiger table bridge forest island "
    "candle mirror pencil rocket village castle harbour meadow market library station school "
    "kitchen valley desert ocean"
).split()
TRAITS = (
    "old quiet wide bright cold green small strong famous empty warm beautiful clean dark deep"
).split()
ENDINGS = ["That is all.", "I hope this helps.", "Thank you for asking.", "See you soon."]
POSTSCRIPTS = ["Have a nice day.", "More another time.", "Take care."]


def facts(rng: random.Random, part: int | None = None) -> Iterator[Sample]:
    """Questions about facts.yaml; of `part` 0 or 1 only every second subject of a relation."""
    known = questions(part)
    while True:
        question, answer, name = rng.choice(known)
        turn = {"content": answer, "reasoning_content": f"A question about the {name}."}
        yield _sample("facts", question, turn, relation=name)


def questions(part: int | None = None) -> list[tuple[str, str, str]]:
    """(question, answer, relation) of all facts, or of a half."""
    return [
        (ask.format(subject), str(answer), name)
        for name, relation in table("facts")
        for number, (subject, answer) in enumerate(relation["known"].items())
        for ask in relation["ask"]
        if part is None or number % 2 == part
    ]


def arithmetic(rng: random.Random) -> Iterator[Sample]:
    """Single steps with numbers of up to two digits: what worked solutions are made of."""
    while True:
        a, b, small = rng.randint(-40, 99), rng.randint(0, 60), rng.randint(2, 9)
        of = rng.randint(1, 12)
        asked, answer = rng.choice(
            [
                (f"{a} + {b}", a + b),
                (f"{a} - {b}", a - b),
                (f"{small} * {of}", small * of),
                (f"{small * of} / {small}", of),
                (f"{b} mod {small}", b % small),
            ]
        )
        yield _sample("arithmetic", f"{asked} =", {"content": str(answer)})


def repeats(rng: random.Random) -> Iterator[Sample]:
    """Words and numbers to be said again: to copy is what a small model learns last of all."""
    values = dict(table("tools"))["values"].values()
    words = [*SUBJECTS, *TRAITS, *(word for of in values if isinstance(of, list) for word in of)]
    while True:
        some = [rng.choice([rng.choice(words), str(rng.randint(0, 99))]) for _ in range(6)]
        said = rng.choice([" ", ", ", "; ", " + "]).join(some[: rng.randint(2, 6)])
        asked = rng.choice(["Repeat: {}", "Say this again: {}", "Write this once more: {}"])
        yield _sample("repeats", asked.format(said), {"content": said})


def instructions(rng: random.Random) -> Iterator[Sample]:
    """Something to say, in a shape or in a manner or both, and words that do."""
    while True:
        subject, traits = rng.choice(SUBJECTS), rng.sample(TRAITS, rng.randint(1, 3))
        asked = f"Tell me that the {subject} is {' and '.join(traits)}."
        shape = rng.choice(SHAPES)
        told, said, rules = shape(subject, traits)
        for manner in _manners(rng, shape):
            more, said, rule = manner(rng, said, subject)
            told, rules = [*told, more], [*rules, rule]
        if rules:
            names = ", ".join(rule["id"].split(":")[1].replace("_", " ") for rule in rules)
            turn = {"content": said, "reasoning_content": f"To be kept: {names}."}
            question = " ".join([asked, *told])
            yield _sample("instructions", question, turn, instructions=rules)


def calls(rng: random.Random) -> Iterator[Sample]:
    """One of a tool or two is to be called."""
    known = dict(table("tools"))
    while True:
        one, other = rng.sample(known["tools"], 2)
        arguments = {key: _value(rng, known["values"][of]) for key, of in one["properties"].items()}
        if len(set(arguments.values())) < len(arguments):  # a way from a city to itself
            continue
        question = rng.choice(one["ask"]).format(**arguments)
        call = {"name": one["name"], "arguments": arguments}
        some = [one] if rng.random() < 0.5 else rng.sample([one, other], 2)
        offered = [_definition(tool, known["values"]) for tool in some]
        turn = {
            "content": "",
            "reasoning_content": f"The tool {one['name']} does this.",
            "tool_calls": [{"type": "function", "function": call}],
        }
        yield _sample("calls", question, turn, tools=offered)


@cache
def table(name: str) -> tuple[tuple[str, Any], ...]:
    """Entries of facts.yaml or tools.yaml."""
    text = (files("megatron_ring.small_corpus") / f"{name}.yaml").read_text(encoding="utf-8")
    return tuple(yaml.safe_load(text).items())


Shaped = tuple[list[str], str, list[Sample]]  # what is told, the words, the rules they follow
Changed = tuple[str, str, Sample]


def as_sentences(subject: str, traits: list[str]) -> Shaped:
    """One for each trait; no rule."""
    return [], " ".join(f"The {subject} is {trait}." for trait in traits), []


def as_list(subject: str, traits: list[str]) -> Shaped:
    """A bullet point for each trait."""
    told = f"Write a list of exactly {len(traits)} bullet points with *."
    said = "\n".join(f"* The {subject} is {trait}." for trait in traits)
    return [told], said, [_rule("detectable_format:number_bullet_lists", num_bullets=len(traits))]


def as_json(subject: str, traits: list[str]) -> Shaped:
    """An object with a list."""
    said = json.dumps({subject: traits})
    return ["Answer in JSON only."], said, [_rule("detectable_format:json_format")]


def as_two(subject: str, traits: list[str]) -> Shaped:
    """Two versions with stars between them."""
    said = f"The {subject} is {traits[0]}.\n******\nIt is {traits[-1]}, the {subject}."
    told = "Say it in two different ways, with ****** between them."
    return [told], said, [_rule("combination:two_responses")]


def in_capitals(rng: random.Random, said: str, subject: str) -> Changed:
    """All of it."""
    return "Use capital letters only.", said.upper(), _rule("change_case:english_capital")


def in_small_letters(rng: random.Random, said: str, subject: str) -> Changed:
    """All of it."""
    return "Use small letters only.", said.lower(), _rule("change_case:english_lowercase")


def with_title(rng: random.Random, said: str, subject: str) -> Changed:
    """In double angular brackets, on a line before the rest."""
    told = "Put a title in double angular brackets before it."
    return told, f"<<The {subject}>>\n{said}", _rule("detectable_format:title")


def with_ending(rng: random.Random, said: str, subject: str) -> Changed:
    """Words that nothing follows."""
    end = rng.choice(ENDINGS)
    rule = _rule("startend:end_checker", end_phrase=end)
    return f'End with these words: "{end}"', f"{said}\n{end}", rule


def with_postscript(rng: random.Random, said: str, subject: str) -> Changed:
    """A line of its own."""
    rule = _rule("detectable_content:postscript", postscript_marker="P.S.")
    return "Add a postscript that begins with P.S.", f"{said}\nP.S. {rng.choice(POSTSCRIPTS)}", rule


def in_quotes(rng: random.Random, said: str, subject: str) -> Changed:
    """Double ones around all of it."""
    return "Put all of it in double quotes.", f'"{said}"', _rule("startend:quotation")


SHAPES: list[Callable[..., Shaped]] = [as_sentences, as_list, as_json, as_two]
# In the order in which they are applied: capitals change an ending, nothing stands behind quotes.
MANNERS: list[Callable[..., Changed]] = [
    with_title,
    with_postscript,
    with_ending,
    in_capitals,
    in_small_letters,
    in_quotes,
]


def _manners(rng: random.Random, shape: Callable[..., Shaped]) -> list[Callable[..., Changed]]:
    """None, one or two that go together and with the shape."""
    able = {
        as_sentences: MANNERS,
        as_list: [one for one in MANNERS if one is not in_quotes],  # a point begins its line
        as_two: [one for one in MANNERS if one is not in_quotes],
        as_json: [],  # the whole of an answer
    }[shape]
    chosen = rng.sample(able, min(len(able), rng.choice((0, 1, 1, 2))))
    if in_capitals in chosen and in_small_letters in chosen:
        chosen.remove(in_capitals)
    return sorted(chosen, key=MANNERS.index)


def _rule(name: str, **kwargs: Any) -> Sample:
    return {"id": name, "kwargs": kwargs}


def _value(rng: random.Random, of: Any) -> Any:
    return rng.choice(of) if isinstance(of, list) else rng.randint(of["from"], of["to"])


def _definition(tool: Sample, values: Sample) -> Sample:
    """As a request would carry it."""
    properties = {key: _schema(values[of]) for key, of in tool["properties"].items()}
    parameters = {"type": "object", "properties": properties, "required": list(properties)}
    named = {"name": tool["name"], "description": tool["description"], "parameters": parameters}
    return {"type": "function", "function": named}


def _schema(of: Any) -> Sample:
    if isinstance(of, dict):
        return {"type": "integer"}
    return {"type": "string", "enum": of} if len(of) <= 3 else {"type": "string"}


def _sample(topic: str, question: str, answer: Sample, **more: Any) -> Sample:
    turns = [{"role": "user", "content": question}, {"role": "assistant", **answer}]
    return {"topic": topic, "messages": turns, **more}
