"""New problems of physics, chemistry, biology that compute or analyse.

Ring-Lite-Distill report, 2.2.2: a tree of topics with difficulties, of which a model keeps those
whose problems compute or analyse over those that recall. A problem itself is judged the same way
once it is written, and kept when independent solutions agree, as in mathematics, with units.
"""

import asyncio
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from megatron_ring import think
from megatron_ring.config.curation.science import ScienceConfig
from megatron_ring.curation.collect.answers import normal
from megatron_ring.curation.generate import RefusedError, Reply, Request
from megatron_ring.curation.record import Record, Rejection, prompt_of
from megatron_ring.curation.synthesis import quantities
from megatron_ring.curation.synthesis.agreement import Agreement
from megatron_ring.curation.synthesis.domain import Cell
from megatron_ring.curation.synthesis.judging import Judge
from megatron_ring.curation.synthesis.maths import Maths
from megatron_ring.curation.synthesis.models import Models

LONGEST_TOPIC = 80  # characters of a subtopic's name; more are a sentence about it
COMPUTE, ANALYSE, RECALL, INCOMPLETE = "compute", "analyse", "recall", "incomplete"
CLASSES = {
    COMPUTE: "work out a number or a formula from what is given",
    ANALYSE: "reason over a situation, data or a mechanism, in several steps, to a conclusion",
    RECALL: "know a fact, a name or a definition",
}
OF_PROBLEMS = CLASSES | {
    INCOMPLETE: "it cannot be answered as it stands: something is missing or contradicts itself, "
    "or it has several right answers"
}

WRITING = """Write one new problem of science.

Topic: {topic}
Difficulty, among problems of this topic: {difficulty}

{seeds}The new problem
- takes computing or analysis: nobody can answer it who only remembers a fact;
- says all that is needed, constants too: no figure, no reference to another problem;
- has exactly one right answer, which is a number with its unit, a short formula, or the letter of
one of four choices A, B, C, D that the problem lists. It says in which unit or form to answer.
Solve it for yourself first, and change it if it has no such answer.

Write the text of the problem between <problem> and </problem>, without answer or solution.
"""
SOLVING = """{problem}

Reason step by step, and put the final answer alone into \\boxed{}: the number with its unit, the
formula, or the letter of the choice."""
TOPIC_ASKED = """A student is to be set a problem on this topic.

Topic: {topic}
Difficulty, among problems of this topic: {difficulty}

What does such a problem mostly ask of the student?"""
PROBLEM_ASKED = """<problem>
{problem}
</problem>

What does this problem mostly ask of whoever solves it?"""
SUBTOPICS_ASKED = """Topic: {topic}

Name {number} narrower topics within it on which problems are set that take computing or analysis.
Write one name a line, and nothing else."""


class Science(Maths):
    """The domain `science`."""

    options: ScienceConfig
    writing, solving = WRITING, SOLVING

    def __init__(self, options: ScienceConfig, models: Models) -> None:
        """ConfigError when math-verify is not there."""
        super().__init__(options, models)
        self.judge = Judge(models.client(options.judge))
        self._topics: dict[str, list[str]] = {}  # of admitted cells, by name: those to write on

    async def admit(self, cell: Cell) -> Rejection | None:
        """None, and the topics of the cell that compute or analyse are known; or why it goes.

        recall_topic, undecided, or refused by the judge's endpoint; of several topics, the reason
        of most. Evidence names each.
        """
        topics = await self._grown(cell.about)
        if not self.options.judge_topics:
            self._topics[cell.name] = topics
            return None
        found = await asyncio.gather(*(self._why_not_topic(topic, cell) for topic in topics))
        kept = [topic for topic, why in zip(topics, found, strict=True) if why is None]
        if kept:
            self._topics[cell.name] = kept
            return None
        reasons = [why.reason for why in found if why is not None]
        most = max(dict.fromkeys(reasons), key=reasons.count)
        told = (f"{t}: {why.evidence}" for t, why in zip(topics, found, strict=True) if why)
        return Rejection(most, "; ".join(told))

    def request(self, cell: Cell, seeds: Sequence[Record], number: int) -> Request:
        """One new problem; the topics of a cell take turns."""
        topics = self._topics.get(cell.name, [cell.about])
        return super().request(replace(cell, about=topics[number % len(topics)]), seeds, number)

    async def verify(self, draft: Record) -> Record | Rejection:
        """As of mathematics, when the judge calls it a problem that computes or analyses.

        extra.judge is what it says. Reasons of its own: recall_problem, incomplete, undecided;
        units, where solutions agree on the number and not on its unit.
        """
        if not self.options.judge_problems:
            return await super().verify(draft)
        question = PROBLEM_ASKED.format(problem=prompt_of(draft))
        word = await self.judge.ask(question, OF_PROBLEMS)
        if word == RECALL:
            return Rejection("recall_problem", "the judge says recall")
        if word == INCOMPLETE:
            return Rejection("incomplete", "the judge says incomplete")
        if word is None and self.options.judge.undecided == "drop":
            return Rejection("undecided", "the judge says no class, twice")
        found = await super().verify(draft)
        if isinstance(found, Rejection):
            return found
        return {**found, "extra": {**found.get("extra", {}), "judge": word or "undecided"}}

    def agree(self, answers: list[str | None]) -> Agreement:
        """Which answers are one: quantities by value and unit, within the tolerance."""
        return quantities.agree(answers, self.pool.compare, self.options.tolerance)

    def rules(self) -> list[Any]:
        """As of mathematics."""
        return ["agreement of quantities", self.options.timeout, self.options.tolerance]

    async def _grown(self, about: str) -> list[str]:
        """The topics under one, at the depth that is wanted; itself where there are none."""
        topics, options = [about], self.options.subtopics
        for _ in range(options.depth if options else 0):
            below = await asyncio.gather(*(self._subtopics(topic) for topic in topics))
            topics = [one for t, some in zip(topics, below, strict=True) for one in some or [t]]
        return topics

    async def _subtopics(self, topic: str) -> list[str]:
        """What the judge's model names under a topic, with its name in front."""
        assert self.options.subtopics is not None, "nothing is to be grown"
        number = self.options.subtopics.number
        turn = {"role": "user", "content": SUBTOPICS_ASKED.format(topic=topic, number=number)}
        request = Request(messages=(turn,), purpose="topics", temperature=0.0)
        try:
            said = await self.judge.client.ask(request)
        except RefusedError:
            return []
        return [f"{topic}, {name}" for name in read_topics(said, topic)[:number]]

    async def _why_not_topic(self, topic: str, cell: Cell) -> Rejection | None:
        asked = TOPIC_ASKED.format(topic=topic, difficulty=cell.difficulty or "any")
        try:
            word = await self.judge.ask(asked, CLASSES)
        except RefusedError as error:
            return Rejection("refused", str(error))
        if word == RECALL:
            return Rejection("recall_topic", "the judge says recall")
        if word is None and self.options.judge.undecided == "drop":
            return Rejection("undecided", "the judge says no class, twice")
        return None


def read_topics(reply: Reply, topic: str) -> list[str]:
    """Names, one a line: without numbers and marks, distinct, and none of them `topic` itself.

    Lines that end in a colon, or are too long to be a name, are no names.
    """
    lines = think.answer_of(reply.text).strip().splitlines()
    if reply.finish_reason == "length":
        lines = lines[:-1]
    seen, names = {normal(part) for part in re.split(r"[:,]", topic)}, []
    for line in lines:
        name = re.sub(r"\A\W*(?:\d+\s*[.):]\s*)?\W*", "", line).rstrip(" .;,*_")
        if name and not name.endswith(":") and len(name) <= LONGEST_TOPIC:
            if normal(name) not in seen:
                names.append(name)
            seen.add(normal(name))
    return names
