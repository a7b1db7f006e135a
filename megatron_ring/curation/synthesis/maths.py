"""New problems of mathematics, kept when independent solutions come to the same answer.

Ring-Lite-Distill report, 2.2.2: ten solutions of a problem, and more than five must agree.
"""

import asyncio
import hashlib
import json
import os
import re
from collections.abc import Sequence
from dataclasses import asdict
from random import Random
from typing import Any

from megatron_ring import think
from megatron_ring.config.curation.maths import MathsConfig
from megatron_ring.config.curation.purify import FiguresConfig
from megatron_ring.curation.collect.answers import boxed, final_answer
from megatron_ring.curation.collect.equality import MathVerifyPool
from megatron_ring.curation.generate import RefusedError, Reply, Request
from megatron_ring.curation.purify import figures
from megatron_ring.curation.record import Record, Rejection, prompt_of
from megatron_ring.curation.synthesis.agreement import Agreement, Class, agree
from megatron_ring.curation.synthesis.domain import Cell
from megatron_ring.curation.synthesis.models import Models

PROBLEM = re.compile(r"<problem>(.*?)</problem>", re.DOTALL | re.IGNORECASE)
SHOWN_ANSWER = 60  # characters of an answer in the evidence of a rejection

WRITING = """Write one new problem of mathematics.

Topic: {topic}
Difficulty, among problems of this topic: {difficulty}

{seeds}The new problem
- says all that is needed: no figure, no reference to another problem;
- asks for one thing, whose answer is short and can be checked: a number, a formula, a set;
- has exactly one right answer. Solve it for yourself first, and change it if it has none.

Write the text of the problem between <problem> and </problem>, without answer or solution.
"""
SEEDS = """These problems show what is meant. Yours asks for another idea, and is none of them with
other numbers or names.

{examples}

"""
SOLVING = """{problem}

Reason step by step, and put the final answer alone into \\boxed{}."""


class Maths:
    """The domain `maths`."""

    writing, solving = WRITING, SOLVING

    def __init__(self, options: MathsConfig, models: Models) -> None:
        """ConfigError when math-verify is not there."""
        self.options = options
        self.solver = models.client(options.solver)
        self.pool = MathVerifyPool(len(os.sched_getaffinity(0)), options.timeout)
        self._figure = figures.make_reference(FiguresConfig())

    def request(self, cell: Cell, seeds: Sequence[Record], number: int) -> Request:
        """One new problem."""
        subject = self._subject(cell, number)
        marked = [f"<problem>\n{prompt_of(seed)}\n</problem>" for seed in seeds]
        turns = []
        if self.options.seeds_as == "turns":
            for seed, problem in zip(seeds, marked, strict=True):
                extra = seed.get("extra", {})
                asked = self._asked(cell, extra.get("difficulty"), extra.get("subject", ""))
                turns += _turns(asked, problem)
            marked = []
        shown = SEEDS.replace("{examples}", "\n\n".join(marked)) if marked else ""
        turns += _turns(self._asked(cell, cell.difficulty, subject, shown))
        return Request(messages=tuple(turns), purpose="write")

    def _asked(self, cell: Cell, difficulty: str | None, subject: str, seeds: str = "") -> str:
        """The text of a request for a problem."""
        text = self.options.writing or self.writing
        topic = cell.about
        if subject and "{subject}" not in text:
            topic += f"; {subject}"
        values = {"topic": topic, "difficulty": difficulty or "any", "subject": subject or topic}
        return _filled(text, {**values, "seeds": seeds})

    def _subject(self, cell: Cell, number: int) -> str:
        """What a request of a cell is about, beside its topic; "" where none are named."""
        options = self.options
        rng = Random(f"{options.solver.seed} {cell.name} {number}")
        return rng.choice(options.subjects) if options.subjects else ""

    def parse(self, reply: Reply, cell: Cell, number: int) -> list[Record | Rejection]:
        """A draft for each problem between the marks."""
        if reply.finish_reason == "length":
            most = reply.card.get("max_tokens")
            return [Rejection("cut", f"the reply ends at max_tokens={most}")]
        said = think.answer_of(reply.text)
        found = [problem.strip() for problem in PROBLEM.findall(said)]
        if not found:
            return [Rejection("no_problem", f"no <problem>...</problem> in: {said.strip()[-200:]}")]
        subject = self._subject(cell, number)
        return [self._draft(problem, subject) for problem in found]

    def _draft(self, problem: str, subject: str) -> Record | Rejection:
        options = self.options
        if not options.min_chars <= len(problem) <= options.max_chars:
            wanted = f"{options.min_chars} to {options.max_chars}"
            return Rejection("length", f"{len(problem)} of {wanted} characters: {problem[:200]}")
        if (answer := boxed(problem)) is not None:
            return Rejection("tells_answer", f"\\boxed{{{answer[:100]}}} stands in the problem")
        if (seen := figures.reference(problem, "", self._figure, True)) is not None:
            return Rejection("figure", seen)
        draft: Record = {"messages": [{"role": "user", "content": problem}]}
        return {**draft, "extra": {"subject": subject}} if subject else draft

    async def verify(self, draft: Record) -> Record | Rejection:
        """The problem with its answer and the solutions that agree on it.

        extra.agreement holds exact counts, extra.candidates what select_answer chooses from.
        """
        options, problem = self.options, prompt_of(draft)
        replies: list[Reply | None] = []
        asked = options.agree if options.stop_early else options.solutions
        while True:
            numbers = range(len(replies), len(replies) + asked)
            replies += await asyncio.gather(*(self._solve(problem, n) for n in numbers))
            found = await self._agreement([_answer(reply) for reply in replies])
            votes = found.classes[0].votes if found.classes else 0
            left = options.solutions - len(replies)
            if votes >= options.agree or votes + left < options.agree or not left:
                break
            asked = min(options.agree - votes, left)
        counts = _counts(found, replies, options.solutions)
        why = self._why_not(found, votes, counts)
        if why is not None:
            return why
        kept = self._candidates(replies, found.classes[0])
        extra = {**draft.get("extra", {}), "agreement": counts, "candidates": kept}
        return {**draft, "answer": found.classes[0].answer, "extra": extra}

    async def _solve(self, problem: str, number: int) -> Reply | None:
        """One solution; None where the endpoint refuses this one."""
        text = self.options.solving or self.solving
        turns = []
        for one in self.options.solved:
            turns += _turns(_filled(text, {"problem": one.problem}), one.solution)
        turns += _turns(_filled(text, {"problem": problem}))
        request = Request(messages=tuple(turns), sample=number, purpose="solve")
        try:
            return await self.solver.ask(request)
        except RefusedError:
            return None

    async def _agreement(self, answers: list[str | None]) -> Agreement:
        """Remembered: where a comparison took too long, it might not the next time."""
        told = json.dumps([*self.rules(), answers], sort_keys=True)
        key = f"agreement {hashlib.sha256(told.encode()).hexdigest()}"
        value = self.solver.memory.recall(key)
        if value is None:
            found = await self.solver.aside(self.agree, answers)
            self.solver.memory.keep(key, asdict(found))
            return found
        classes = tuple(
            Class(one["answer"], one["votes"], tuple(one["members"])) for one in value["classes"]
        )
        return Agreement(classes, value["without"], value["timeouts"])

    def agree(self, answers: list[str | None]) -> Agreement:
        """Which answers are one."""
        return agree(answers, self.pool.compare)

    def rules(self) -> list[Any]:
        """What an agreement depends on, beside the answers; a remembered one holds under these."""
        return ["agreement", self.options.timeout]

    def _why_not(self, found: Agreement, votes: int, counts: dict[str, Any]) -> Rejection | None:
        options = self.options
        shown = ", ".join(f"{n} x {answer[:SHOWN_ANSWER]!r}" for answer, n in counts["answers"])
        told = f"of {counts['asked']}: {shown or 'no answer'}; {counts['without']} without one"
        if not found.classes:
            return Rejection("no_answers", told)
        if found.agreed(options.agree) is not None:
            if options.max_agree is not None and votes > options.max_agree:
                return Rejection("too_easy", f"{told}; max_agree={options.max_agree}")
            return None
        if found.timeouts:
            told = f"{told}; {found.timeouts} comparisons took longer than {options.timeout:g} s"
            return Rejection("timeout", f"{told}; {options.agree} must agree")
        return Rejection("no_agreement", f"{told}; {options.agree} must agree")

    def _candidates(self, replies: Sequence[Reply | None], best: Class) -> list[dict[str, Any]]:
        """Solutions that agree, as a source of tools/curate.py offers answers."""
        kept = []
        for number in best.members[: self.options.keep_solutions]:
            reply = replies[number]
            assert reply is not None, (number, best)  # a refused one has no answer
            one = {"number": number, "text": reply.text, "model": reply.card["model"]}
            kept.append({**one, "correct": True, "finish": reply.finish_reason, "card": reply.card})
        return kept


def _answer(reply: Reply | None) -> str | None:
    """The short answer of a solution that came to its end."""
    if reply is None or reply.finish_reason == "length":
        return None
    return final_answer(reply.text)


def _counts(found: Agreement, replies: Sequence[Reply | None], solutions: int) -> dict[str, Any]:
    """What is told of the solutions: who agrees, and who has no say."""
    return {
        "votes": found.classes[0].votes if found.classes else 0,
        "asked": len(replies),
        "solutions": solutions,
        "answers": [[one.answer, one.votes] for one in found.classes],
        "without": found.without,
        "cut": sum(r is not None and r.finish_reason == "length" for r in replies),
        "refused": sum(r is None for r in replies),
        "timeouts": found.timeouts,
    }


def _turns(*texts: str) -> list[dict[str, str]]:
    """What the user says, and what the model answered."""
    roles = ("user", "assistant")
    return [{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)]


def _filled(text: str, values: dict[str, str]) -> str:
    """The text with {name} replaced, in one pass: what is put in may hold braces."""
    return re.sub(r"\{(\w+)\}", lambda found: values.get(found[1], found[0]), text)
