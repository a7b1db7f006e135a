"""Stage distil: prompts get an answer, with its thought, from a model behind an endpoint.

One answer is drawn first. Where it fails the rules of collect/rules.py, or is not known to be right
although the record can tell (answer, or extra.tests, which run in the sandbox), the next is drawn,
up to `draws`; the best of all is kept by the order of select_answer. Which answers were drawn, and
what became of each, stands in extra.selection; how the one that is kept was made, in the card.

Replies are remembered (generate/memory.py): a run that was killed asks nothing twice.
"""

import asyncio
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from megatron_ring.config.base import ConfigError
from megatron_ring.config.curation.distil import DistilConfig
from megatron_ring.curation import sandbox
from megatron_ring.curation.collect.answers import Verdict, compare
from megatron_ring.curation.collect.cells import as_text, other_kind, pick
from megatron_ring.curation.collect.equality import MathVerifyPool
from megatron_ring.curation.collect.rules import Judged, Rules, answer_turn, none_passes
from megatron_ring.curation.endpoint import read_key
from megatron_ring.curation.generate import Client, RefusedError, Request
from megatron_ring.curation.record import Record, Rejection
from megatron_ring.curation.synthesis.code_answers import Runner, Tests

SHOWN = 2000  # characters of a question in a trial run


@dataclass(frozen=True)
class Draw:
    """One answer that was asked for."""

    number: int
    judged: Judged | None  # None where the endpoint refused
    card: dict[str, Any]
    refusal: str = ""

    @property
    def fate(self) -> str:
        """Its line in extra.selection."""
        return f"{self.number}: refused {self.refusal}" if self.judged is None else self.judged.fate


class Distil:
    """Answers the records whose last turn is the user's; others pass as they are."""

    batch = 1 << 20  # a whole shard: slots idle at its end only, while the last answers come

    def __init__(self, options: DistilConfig) -> None:
        """ConfigError: key_file cannot be read, or math-verify is not there."""
        self.options = options
        if options.generator.key_file is not None:
            read_key(options.generator.key_file)
        self._pool = None
        if options.equality == "math_verify":
            self._pool = MathVerifyPool(len(os.sched_getaffinity(0)), options.timeout)
        self._rules = Rules(options, self._compare)

    @cached_property
    def _client(self) -> Client:
        return Client(self.options.generator)  # makes the folder of replies: not in a trial run

    @cached_property
    def _runner(self) -> Runner:
        return Runner(self._client, self.options.program)

    def apply(self, record: Record) -> Record | Rejection:
        """The record with its answer, or why there is none."""
        return self.apply_batch([record])[0]

    def apply_batch(self, records: Sequence[Record]) -> list[Record | Rejection]:
        """What `apply` says of each, many asked at a time.

        Reasons: the rule that all answers fail (not_finished, length, think_structure, language,
        wrong_answer, unverified, refused), or no_answer_passes. NoAnswerError, BudgetError end the
        run; ConfigError, before anything is asked, where programs cannot be isolated.
        """
        asked = [record for record in records if self._asks(record)]
        if not asked:
            return list(records)
        if any(map(self._tests, asked)):
            self._check_sandbox()
        answered = iter(self._client.gather(self._answered(record) for record in asked))
        return [next(answered) if self._asks(record) else record for record in records]

    def _check_sandbox(self) -> None:
        try:
            sandbox.proven()
        except sandbox.SandboxError as error:
            raise ConfigError(
                f"stage distil: prompts with extra.tests need the sandbox: {error}, or set "
                "correct=ignore"
            ) from None

    def would_ask(self, record: Record) -> str | None:
        """The question, for people to read."""
        if not self._asks(record):
            return None
        body = Request(messages=self._messages(record)).messages
        shown = json.dumps(body, ensure_ascii=False)[:SHOWN]
        first = self.options.draws if self._is_hard(record) else 1
        generator = self.options.generator
        return (
            f"would ask {generator.model} at {generator.endpoint} for {first} of at most "
            f"{self.options.draws} answers: {shown}"
        )

    def bill(self) -> tuple[str, dict[str, float]]:
        """The folder of replies, and what all runs that share it sent and spent."""
        spent = asdict(self._client.spent)
        del spent["by_purpose"]
        return str(self.options.generator.replies), spent

    def _asks(self, record: Record) -> bool:
        """Is an answer missing that a model can give without calling tools?"""
        last = record["messages"][-1]["role"] == "user"
        return last and not record.get("tools") and not other_kind(record, self.options.kinds)

    def _is_hard(self, record: Record) -> bool:
        hard = self.options.hard.items()
        fits = [as_text(pick(record, place)) in values for place, values in hard]
        return bool(fits) and all(fits)

    def _messages(self, record: Record) -> tuple[dict[str, Any], ...]:
        """What is sent: turns without their thoughts, and behind the last the instruction."""
        turns = [
            {"role": turn["role"], "content": turn.get("content") or ""}
            for turn in record["messages"]
        ]
        if self.options.instruction and "answer" in record and not self._tests(record):
            turns[-1]["content"] += f"\n\n{self.options.instruction}"
        return tuple(turns)

    async def _answered(self, record: Record) -> Record | Rejection:
        drawn: list[Draw] = []
        for numbers in self._rounds(record):
            drawn += await asyncio.gather(*(self._draw(record, number) for number in numbers))
            # What is refused once is refused again: a context that is too long, a filter.
            if any(one.judged is None or self._is_enough(one.judged, record) for one in drawn):
                break
        fates = [one.fate for one in drawn]
        best = self._rules.best(one.judged for one in drawn if one.judged is not None)
        if best is None:
            return none_passes(fates)
        extra = {**record.get("extra", {}), "selection": fates}
        if "card" in record:  # of the prompt, when it was made by a model too
            extra["prompt_card"] = record["card"]
        card = next(one.card for one in drawn if one.judged is best)
        messages = [*record["messages"], answer_turn(best.one["text"])]
        return {**record, "messages": messages, "card": card, "extra": extra}

    def _rounds(self, record: Record) -> Iterator[Sequence[int]]:
        """Numbers of the draws that are asked for together."""
        if self._is_hard(record):
            yield range(self.options.draws)
        else:
            yield from ([number] for number in range(self.options.draws))

    async def _draw(self, record: Record, number: int) -> Draw:
        request = Request(messages=self._messages(record), sample=number, purpose="distil")
        try:
            reply = await self._client.ask(request)
        except RefusedError as error:
            return Draw(number, None, {}, str(error))
        one = {"number": number, "text": reply.text, "finish": reply.finish_reason}
        tests = self._tests(record)
        if tests and self._rules.fault_of_form(one, record) is None:
            one |= await self._tested(reply.text, tests)
        judged = await self._client.aside(self._rules.judge, one, record)
        return Draw(number, judged, reply.card)

    def _tests(self, record: Record) -> Tests:
        """What a program must pass; "" where there is nothing, or nothing is to be verified."""
        tests = record.get("extra", {}).get("tests")
        if not tests or self.options.correct == "ignore":
            return ""
        is_asserts = isinstance(tests, list) and all(isinstance(one, str) for one in tests)
        return "\n".join(tests) if is_asserts else tests

    async def _tested(self, text: str, tests: Tests) -> dict[str, Any]:
        """What the sandbox says of the program in an answer, in the words of a candidate."""
        ran = await self._runner.passes(text, tests)
        if ran.passed:
            return {"correct": True}
        return {"correct": False, "told": f"tests: {ran.verdict.value} {ran.complaint}".strip()}

    def _is_enough(self, judged: Judged, record: Record) -> bool:
        """Is another draw no better? It is where this one is wrong, or might be found right."""
        if judged.fault is not None:
            return False
        can_be_told = "answer" in record or self._tests(record)
        return judged.verdict == "right" or self.options.correct == "ignore" or not can_be_told

    def _compare(self, given: str, gold: str) -> Verdict:
        """By texts and numbers; what math-verify says is remembered, since it may time out once and
        not another time."""
        verdict = compare(given, gold)
        if self._pool is None or verdict != "unknown":
            return verdict
        memory = self._client.memory
        key = json.dumps(["math_verify", self.options.timeout, given, gold])
        known = memory.recall(key)
        if known is None:
            known = self._pool.ask(given, gold)
            memory.keep(key, known)
        return known
