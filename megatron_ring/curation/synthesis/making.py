"""One round: requests, drafts, which of them are new, which of these hold, and its files.

Files of a round, whole when they have their names; the counts come last and say that it is done:
    rounds/NN/kept.jsonl       records
    rounds/NN/rejected.jsonl   id, cell, stage (write, parse, novelty, verify), reason, evidence,
                               and the record, or the reply that could not be read
    rounds/NN/done.json        the funnel by cell, what was used of the models, ids of what was new
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from megatron_ring.curation.generate import Client, RefusedError, Reply, Request
from megatron_ring.curation.record import Record, Rejection, prompt_of
from megatron_ring.curation.segment import check_record
from megatron_ring.curation.shards import dump, write_json, write_lines
from megatron_ring.curation.synthesis.domain import Cell, Domain
from megatron_ring.curation.synthesis.funnel import Funnel
from megatron_ring.curation.synthesis.models import Models
from megatron_ring.curation.synthesis.novelty import Novelty
from megatron_ring.curation.taxonomy import Taxonomy

DONE, KEPT, REJECTED = "done.json", "kept.jsonl", "rejected.jsonl"


class Teller:
    """What a run says while it goes on; this one says nothing. The command line has another."""

    def say(self, line: str) -> None:
        """One line for the user."""

    def begin(self, name: str, total: int, live: Callable[[], dict[str, float]]) -> None:
        """A phase of a round begins: so many steps; `live` says requests, tokens, cost so far."""

    def step(self) -> None:
        """One of them is done. Called from another thread."""

    def end(self) -> None:
        """The phase is over, or failed."""


@dataclass(frozen=True)
class Job:
    """One request for new problems."""

    cell: Cell
    number: int  # of the cell's requests, in all rounds; 0 first
    seeds: list[Record]


@dataclass
class Draft:
    """A problem on its way, or what never became one; `stage` and `why` are of what rejected it."""

    id: str
    cell: str
    record: Any  # of a reply that could not be read: the reply
    stage: str = ""  # write, parse, novelty, verify
    why: Rejection | None = None


def request_of(job: Job, domain: Domain) -> Request:
    """What the writer is sent; each of a cell's requests is a draw of its own."""
    return replace(domain.request(job.cell, job.seeds, job.number), sample=job.number)


@dataclass(frozen=True)
class Maker:
    """What all rounds of a run share."""

    name: str  # begins ids
    domain: Domain
    writer: Client
    models: Models
    novelty: Novelty
    taxonomy: Taxonomy
    teller: Teller

    def make(self, number: int, jobs: list[Job], folder: Path, recipe: str) -> None:
        """Do a round and write its files."""
        self.models.take_used()
        replies = self._all(f"round {number}: writing", [self._write(job) for job in jobs])
        drafts = [
            draft
            for job, reply in zip(jobs, replies, strict=True)
            for draft in self._drafts(number, job, reply)
        ]
        new = []
        for draft in drafts:
            if draft.why is None and self._is_new(draft):
                new.append(draft)
        self._all(f"round {number}: verifying", [self._verify(draft) for draft in new])
        funnel = Funnel()
        for job, reply in zip(jobs, replies, strict=True):
            funnel.count_request(job.cell.name, isinstance(reply, Reply))
        for draft in drafts:
            funnel.count_draft(draft.cell, draft.stage, draft.why and draft.why.reason)
        write_lines(folder / KEPT, (dump(d.record) for d in drafts if d.why is None), synced=True)
        rejected = (_line(draft) for draft in drafts if draft.why is not None)
        write_lines(folder / REJECTED, rejected, synced=True)
        told = {"cells": funnel.cells, "used": self.models.take_used(), "recipe": recipe}
        write_json(folder / DONE, {**told, "novel": [draft.id for draft in new]})

    def _all(self, name: str, coroutines: list[Any]) -> list[Any]:
        """Many at a time, with what is done told."""
        self.teller.begin(name, len(coroutines), self.models.live)
        try:
            return self.models.gather(coroutines, self.teller.step)
        finally:
            self.teller.end()

    async def _write(self, job: Job) -> Reply | Rejection:
        try:
            return await self.writer.ask(request_of(job, self.domain))
        except RefusedError as error:
            return Rejection("refused", str(error))

    def _drafts(self, number: int, job: Job, reply: Reply | Rejection) -> list[Draft]:
        """What a reply holds, with ids, labels and lineage; or the reply, and why it is nothing."""
        cell, base = job.cell, f"{self.name}/{number}/{job.cell.name}/{job.number}"
        if isinstance(reply, Rejection):
            return [Draft(base, cell.name, None, "write", reply)]
        labels = self.taxonomy.labels(cell.path)
        drafts = []
        found = self.domain.parse(reply, cell, job.number)
        found = found or [Rejection("nothing", "no draft in the reply")]
        for index, one in enumerate(found):
            own = f"{base}.{index}" if len(found) > 1 else base
            if not isinstance(one, Rejection):
                one = check_record(one, own)
            if isinstance(one, Rejection):
                drafts.append(Draft(own, cell.name, {"reply": reply.text}, "parse", one))
                continue
            extra = {"cell": cell.name, "round": number, **one.get("extra", {})}
            if cell.difficulty:
                extra["difficulty"] = cell.difficulty
            lineage = {"source": self.name, "seed_ids": [seed["id"] for seed in job.seeds]}
            told = {**lineage, **labels, "card": reply.card, "extra": extra}
            drafts.append(Draft(own, cell.name, {"id": own, **one, **told}))
        return drafts

    def _is_new(self, draft: Draft) -> bool:
        """Known ones are rejected; a new one is known from now on, whatever becomes of it."""
        text = prompt_of(draft.record)
        draft.why = self.novelty.why_known(text)
        if draft.why is not None:
            draft.stage = "novelty"
            return False
        self.novelty.add(draft.id, text)
        return True

    async def _verify(self, draft: Draft) -> None:
        try:
            found = await self.domain.verify(draft.record)
        except RefusedError as error:
            found = Rejection("refused", str(error))
        if isinstance(found, Rejection):
            draft.stage, draft.why = "verify", found
        else:
            draft.record = found


def _line(draft: Draft) -> bytes:
    assert draft.why is not None, draft
    told = {"id": draft.id, "cell": draft.cell, "stage": draft.stage}
    why = {"reason": draft.why.reason, "evidence": draft.why.evidence}
    return dump({**told, **why, "record": draft.record})
