"""Preference samples: one prompt, a chosen and a rejected answer, as two documents.

Both documents are whole conversations, so that each answer stands behind its own copy of the
prompt. Only the answers are learnt: earlier assistant turns of the prompt are context.
"""

import os.path
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, NamedTuple

import numpy as np

from megatron_ring.config import ConfigError, SourceConfig
from megatron_ring.data.chat import Piece, SampleError, check_turns, render_turns
from megatron_ring.data.format_spans import mark, think_spans
from megatron_ring.data.tokenizer import Span, Tokenizer

SIDES = ("chosen", "rejected")
THINK = "think"  # the built-in rule of sources.N.format_spans

Turns = list[dict[str, Any]]


class Preference(NamedTuple):
    """What a record says, with nothing checked yet."""

    prompt: Any  # text, a turn or a list of turns; None: what the answers begin with
    chosen: Any  # text, a turn or a list of turns
    rejected: Any
    tools: Any = None
    spans: Any = None  # THINK, ranges of characters for each side, or None


@dataclass(frozen=True)
class Answer:
    tokens: np.ndarray  # int32 [n]; prompt and answer
    targets: np.ndarray  # bool [n]
    format: np.ndarray  # bool [n]; a target that lies in a format span


def read_preference(source: SourceConfig, index: int, record: dict[str, Any]) -> Preference:
    """The columns of a record; SampleError names the key of one that is missing."""
    column, where = None, " (its keys: " + (", ".join(record) or "none") + ")"
    for key, name, remedy in _needed(source, index):
        if name not in record:
            raise SampleError(f"no {name!r} here{where}; {remedy}")
        if key == "prompt":
            column = name
    chosen, rejected = record[source.chosen], record[source.rejected]
    if column is None:
        column = next((name for name in (source.messages, "prompt") if name in record), None)
    if column is None and not (isinstance(chosen, list) and isinstance(rejected, list)):
        raise SampleError(f"no prompt here{where}; {_prompt_remedy(index)}")
    spans = source.format_spans
    return Preference(
        prompt=None if column is None else record[column],
        chosen=chosen,
        rejected=rejected,
        tools=record.get(source.tools),
        spans=spans if spans in (None, THINK) else record[spans],
    )


def pair_columns(source: SourceConfig, index: int, present: Iterable[str]) -> list[str]:
    """Columns of a table to read; ConfigError when one that is needed is missing."""
    present = list(present)
    needed = _needed(source, index)
    for _, name, remedy in needed:
        if name not in present:
            raise ConfigError(
                f"{source.path} has no column {name!r} (its columns: {', '.join(present)}); "
                f"{remedy}"
            )
    known = (source.messages, "prompt", source.tools, "id", source.domain)
    optional = [name for name in known if name in present]
    return list(dict.fromkeys([*(name for _, name, _ in needed), *optional]))


def encode_pair(preference: Preference, tokenizer: Tokenizer) -> tuple[Answer, Answer]:
    """Chosen and rejected answer, each behind the same prompt tokens.

    SampleError says which of the two cannot be used and why: an empty or unlearnt answer, a prompt
    that ends with an assistant turn, answers that are equal, spans outside the text.
    """
    prompt, answers = _split_prompt(preference)
    context = [{**turn, "train": False} for turn in prompt]
    pieces: list[list[Piece]] = []
    for side, turns in zip(SIDES, answers, strict=True):
        try:
            pieces.append(list(render_turns([*context, *turns], tokenizer, preference.tools)))
        except SampleError as error:
            raise SampleError(f"{side}, the prompt's turns counted in: {error}") from None
    spans = _find_spans(preference.spans, pieces)
    chosen, rejected = (
        _encode(own, marks, tokenizer) for own, marks in zip(pieces, spans, strict=True)
    )
    for side, answer in zip(SIDES, (chosen, rejected), strict=True):
        if not answer.targets[1:].any():
            raise SampleError(f'{side} has no token to learn: its turns are marked "train": false')
    _compare(chosen, rejected, pieces, 1 + sum(turn["role"] == "assistant" for turn in prompt))
    return chosen, rejected


def _needed(source: SourceConfig, index: int) -> list[tuple[str, str, str]]:
    """Config key, column that must be there, what to do when it is not."""
    if source.response is not None:
        raise ConfigError(
            f"sources.{index}.response is for kind=chat; pairs take .chosen and .rejected"
        )
    keys = [(side, getattr(source, side), f"set sources.{index}.{side}") for side in SIDES]
    if source.prompt is not None:
        keys.append(("prompt", source.prompt, f"set sources.{index}.prompt"))
    elif source.messages != SourceConfig.model_fields["messages"].default:
        keys.append(("prompt", source.messages, _prompt_remedy(index)))
    if source.format_spans not in (None, THINK):
        remedy = f"set sources.{index}.format_spans (think, null or a column)"
        keys.append(("format_spans", source.format_spans, remedy))
    return keys


def _prompt_remedy(index: int) -> str:
    return (
        f"set sources.{index}.prompt (text or turns) or sources.{index}.messages, "
        "or let both answers be lists of turns that begin with the prompt"
    )


def _split_prompt(preference: Preference) -> tuple[Turns, list[Turns]]:
    """Checked turns of the prompt, and of both answers without it."""
    answers = []
    for side, given in zip(SIDES, (preference.chosen, preference.rejected), strict=True):
        answers.append(_turns_of(given, "assistant", side))
    common = 0
    for one, other in zip(*answers, strict=False):
        if one != other:
            break
        common += 1
    if preference.prompt is None:
        prompt = answers[0][:common]
        if not prompt:
            raise SampleError("no prompt: chosen and rejected begin with different turns")
        answers = [turns[common:] for turns in answers]
        if not all(answers) and len(answers[0]) == len(answers[1]):
            raise SampleError("chosen and rejected are the same")
    else:
        prompt = _turns_of(preference.prompt, "user", "prompt")
        # Many data sets repeat the prompt in both answers, some with a system turn before it.
        for stop in range(len(prompt), common + 1):
            if answers[0][stop - len(prompt) : stop] == prompt:
                prompt = answers[0][:stop]
                answers = [turns[stop:] for turns in answers]
                break
    first, last = prompt[0]["role"], prompt[-1]["role"]
    if "assistant" in (first, last):
        raise SampleError(
            f"the prompt {'ends' if last == 'assistant' else 'begins'} with an assistant turn; it "
            "is what comes before the answers: another column may hold it (sources.N.prompt)"
        )
    for side, turns in zip(SIDES, answers, strict=True):
        if not turns:
            raise SampleError(f"{side} is empty: nothing follows the prompt")
        if turns[0]["role"] != "assistant":
            raise SampleError(
                f"{side} goes on with a turn of {turns[0]['role']!r}; an answer begins with an "
                "assistant turn, or with the whole prompt"
            )
    return prompt, answers


def _turns_of(given: Any, role: str, label: str) -> Turns:
    """Checked turns from text (of that role), one turn, or a list of turns."""
    if isinstance(given, str):
        if role == "assistant" and not given.strip():
            raise SampleError(f"{label} is empty")
        given = [{"role": role, "content": given}]
    elif isinstance(given, dict):
        given = [given]
    elif not isinstance(given, list):
        raise SampleError(f"{label} is {type(given).__name__}; it is text, a turn or turns")
    return check_turns(given, f"{label}, ")


def _find_spans(wanted: Any, pieces: Sequence[Sequence[Piece]]) -> list[dict[int, list[Span]]]:
    """For both sides: number of a piece -> spans of characters in it, the end token included."""
    found: list[dict[int, list[Span]]] = [{}, {}]
    if wanted == THINK:
        learnt = [[i for i, piece in enumerate(own) if piece.learnt] for own in pieces]
        for numbers in zip_longest(*learnt):
            bodies = [
                "" if i is None else own[i].text[: own[i].body]
                for i, own in zip(numbers, pieces, strict=True)
            ]
            for spans, i, marks in zip(found, numbers, think_spans(*bodies), strict=True):
                if i is not None:
                    spans[i] = marks
    elif wanted is not None:
        if not isinstance(wanted, dict) or set(wanted) - set(SIDES):
            raise SampleError(
                f"format spans are {repr(wanted)[:60]}, not "
                "{chosen: [[start, stop], ...], rejected: ...}"
            )
        for side, own, spans in zip(SIDES, pieces, found, strict=True):
            ranges = wanted.get(side)
            if ranges:
                spans[len(own) - 1] = _place(ranges, own[-2], own[-1], f"format spans of {side}")
    return found


def _place(ranges: Any, before: Piece, answer: Piece, label: str) -> list[Span]:
    """Ranges of an answer's content as ranges of the text that the template made of it."""
    assert answer.turn is not None, "the last piece is an answer"
    content = answer.turn["content"]
    for span in ranges if isinstance(ranges, list) else [ranges]:
        is_range = isinstance(span, list) and [type(n) for n in span] == [int, int]
        if not is_range or not 0 <= span[0] < span[1] <= len(content):
            raise SampleError(
                f"{label}: {repr(span)[:60]} is no [start, stop] in the answer's "
                f"{len(content)} characters"
            )
    # A template may strip a content, or write its beginning (<think>) as generation prompt.
    stripped = content.strip()
    lead = before.text[-len(content) :]
    low, high = 0, len(content)
    if content in answer.text:
        shift = answer.text.find(content)
    elif content in lead + answer.text:
        shift = (lead + answer.text).find(content) - len(lead)
    elif stripped in answer.text:
        low = content.find(stripped)
        high = low + len(stripped)
        shift = answer.text.find(stripped) - low
    else:
        raise SampleError(
            f"{label}: the chat template rewrites the answer, so that they cannot be placed; use "
            "another one (chat_template=FILE), or format_spans=think"
        )
    clipped = [(max(start, low), min(stop, high)) for start, stop in ranges]
    return [(start + shift, stop + shift) for start, stop in clipped if start < stop]


def _encode(pieces: Sequence[Piece], spans: dict[int, list[Span]], tokenizer: Tokenizer) -> Answer:
    ids: list[int] = []
    targets: list[bool] = []
    marks: list[bool] = []
    for number, piece in enumerate(pieces):
        if spans.get(number):
            own, offsets = tokenizer.encode_with_offsets(piece.text)
            # The end token may be a text of many characters, or none of the text's.
            offsets += [(len(piece.text), len(piece.text) + 1)] * (not piece.ended)
            marked = mark(offsets, spans[number]).tolist()
        else:
            own = tokenizer.encode(piece.text)
            marked = [False] * (len(own) + (not piece.ended))
        ids += own + [tokenizer.eos_id] * (not piece.ended)
        targets += [piece.learnt] * len(marked)
        marks += marked
    target = np.array(targets, dtype=bool)
    return Answer(np.array(ids, dtype=np.int32), target, np.array(marks, dtype=bool) & target)


def _compare(
    chosen: Answer, rejected: Answer, pieces: Sequence[Sequence[Piece]], shared: int
) -> None:
    """SampleError unless both have one prompt and different answers.

    Of the pieces, `shared` before answers and one answer fewer are the prompt.
    """
    for one, other in zip(*(own[: 2 * shared - 1] for own in pieces), strict=True):
        if one.text != other.text:
            at = len(os.path.commonprefix([one.text, other.text]))
            raise SampleError(
                f"the chat template writes two prompts ({one.text[at : at + 30]!r} for chosen, "
                f"{other.text[at : at + 30]!r} for rejected); use another one (chat_template=FILE)"
            )
    if np.array_equal(chosen.tokens, rejected.tokens):
        raise SampleError("chosen and rejected are the same")
