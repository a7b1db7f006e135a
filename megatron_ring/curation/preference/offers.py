"""Prompts with the answers that pairs are made of, from records and from samples of a model."""

import glob
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

from megatron_ring import think
from megatron_ring.config.base import ConfigError
from megatron_ring.config.curation.preference import PairSource
from megatron_ring.curation.dedup import normal
from megatron_ring.curation.record import Record, Rejection

END = "<|endoftext|>"  # some samplers leave it
SHAPES = '{"messages": [...]} (a record) or {"prompt": "...", "answer": "..."} (a sample)'


@dataclass(frozen=True)
class Offer:
    """One prompt, and what was answered to it."""

    place: str  # file:line, for errors and the list of what was left out
    record: Record  # its labels; messages are the prompt's turns
    source: str
    key: str  # the same for prompts that say the same
    reference: str | None = None  # the record's own response
    candidates: list[dict[str, Any]] = field(default_factory=list)  # number, text, finish, ...
    fault: Rejection | None = None  # why it serves for nothing

    @property
    def id(self) -> str:
        """The record's; the place where it has none."""
        return str(self.record.get("id", self.place))


def files_of(source: PairSource) -> list[Path]:
    """The files of a source, in order of their names; ConfigError when there are none."""
    found = sorted(Path(name) for name in glob.glob(source.path) if Path(name).is_file())
    if not found:
        raise ConfigError(f"path={source.path}: there is no such file")
    return found


def read_offers(source: PairSource) -> Iterator[Offer]:
    """Offers in the order of the files; ConfigError names file and line of what is none.

    Samples of the same prompt, wherever they stand, are one offer.
    """
    first = next((row for _, row in _rows(files_of(source))), None)
    if first is None:
        raise ConfigError(f"path={source.path} is empty")
    if "messages" in first:
        if source.of is not None:
            raise ConfigError(
                f"path={source.path} has records, which need no `of`; it is for samples"
            )
        for place, row in _rows(files_of(source)):
            yield to_offer(place, row, source.name)
    else:
        yield from _of_samples(source)


def to_offer(place: str, row: dict[str, Any], name: str | None = None) -> Offer:
    """A record as an offer; ConfigError names the place and what is wrong there."""
    messages = row.get("messages")
    if not isinstance(messages, list) or not messages or not all(map(_is_turn, messages)):
        keys = ", ".join(row) or "none"
        raise ConfigError(f"{place}: no turns with role and content (its keys: {keys}); {SHAPES}")
    extra = row.get("extra") or {}
    offered = extra.get("candidates", []) if isinstance(extra, dict) else None
    if not isinstance(offered, list):
        raise ConfigError(f"{place}: extra.candidates is no list of answers")
    candidates = [_candidate(place, number, one) for number, one in enumerate(offered)]
    reference = None
    if messages[-1]["role"] == "assistant":
        last, messages = messages[-1], messages[:-1]
        said, thought = last.get("content") or "", last.get("reasoning_content")
        # A call is no text to damage or to prefer.
        calls = bool(last.get("tool_calls"))
        reference = None if calls or not said.strip() else think.join(thought, said)
    if not messages:
        raise ConfigError(f"{place}: no turn comes before the assistant's; there is no prompt")
    kept = {key: value for key, value in row.items() if key not in ("messages", "extra")}
    record: Record = {**kept, "messages": messages}  # type: ignore[typeddict-item]
    fault = None
    if "assistant" in (messages[0]["role"], messages[-1]["role"]):
        roles = ", ".join(turn["role"] for turn in messages)
        fault = Rejection("bad_prompt", f"it begins or ends with the assistant's turn: {roles}")
    source = name or row.get("source") or Path(place.rpartition(":")[0]).stem
    return Offer(place, record, str(source), prompt_key(record), reference, candidates, fault)


def prompt_key(record: Record) -> str:
    """A name of the prompt and its tools; case, white space and Unicode forms do not count."""
    said = [[turn["role"], normal(turn.get("content") or "")] for turn in record["messages"]]
    text = json.dumps([said, record.get("tools") or []])
    return blake2b(text.encode(), digest_size=8).hexdigest()


def _candidate(place: str, number: int, one: Any) -> dict[str, Any]:
    if not isinstance(one, dict) or not isinstance(one.get("text"), str):
        raise ConfigError(
            f'{place}: extra.candidates.{number} is no {{"text": "...", "finish": "stop"}}'
        )
    if not isinstance(one.get("score", 0), int | float):
        raise ConfigError(f"{place}: extra.candidates.{number}.score={one['score']!r} is no number")
    return {**one, "number": number}


def _is_turn(turn: Any) -> bool:
    if not isinstance(turn, dict) or not isinstance(turn.get("role"), str):
        return False
    return all(isinstance(turn.get(key) or "", str) for key in ("content", "reasoning_content"))


def _rows(files: list[Path]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path in files:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                place = f"{path}:{number}"
                try:
                    row = json.loads(line)
                except ValueError as error:
                    raise ConfigError(f"{place}: not a line of JSON: {error}") from None
                if not isinstance(row, dict):
                    raise ConfigError(f"{place}: a JSON {type(row).__name__}; {SHAPES}")
                yield place, row


def _of_samples(source: PairSource) -> Iterator[Offer]:
    known = None if source.of is None else _by_question(PairSource(path=source.of))
    found: dict[str, tuple[str, list[dict[str, Any]]]] = {}
    for place, row in _rows(files_of(source)):
        if not isinstance(row.get("prompt"), str) or not isinstance(row.get("answer"), str):
            keys = ", ".join(row) or "none"
            raise ConfigError(f"{place}: neither record nor sample (its keys: {keys}); {SHAPES}")
        if known is not None and row["prompt"] not in known:
            raise ConfigError(
                f"{place}: {source.of} has no question {row['prompt'][:60]!r}; name the file that "
                "the prompts are from"
            )
        _, candidates = found.setdefault(row["prompt"], (place, []))
        text = row["answer"].removesuffix(END)
        candidates.append({"number": len(candidates), "text": text})
    for question, (place, candidates) in found.items():
        if known is None:
            row = {"messages": [{"role": "user", "content": question}]}
            offer = to_offer(place, row, source.name)
            yield Offer(place, offer.record, offer.source, offer.key, None, candidates)
            continue
        first, *others = known[question]
        fault = first.fault
        if others:
            evidence = f"{first.place} and {others[0].place} end in the question {question[:60]!r}"
            fault = Rejection("ambiguous_prompt", evidence)
        name = source.name or first.source
        yield Offer(place, first.record, name, first.key, first.reference, candidates, fault)


def _by_question(source: PairSource) -> dict[str, list[Offer]]:
    """Last question -> the offers that end in it; the same prompt counts once."""
    found: dict[str, dict[str, Offer]] = {}
    for offer in read_offers(source):
        question = offer.record["messages"][-1].get("content") or ""
        found.setdefault(question, {}).setdefault(offer.key, offer)
    return {question: list(offers.values()) for question, offers in found.items()}
