"""Rounds of synthesis: what is missing is asked for, verified, kept, and seed of the next round.

All that a round decides follows from the rounds before it, the seeds, and replies, which are
remembered. So a run that was killed is run again: rounds that are finished are read, the unfinished
one is made anew from what was paid for already, and the bytes are those of an undisturbed run.
"""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_ring.config.base import ConfigError
from megatron_ring.config.curation.synthesis import SynthesisConfig
from megatron_ring.curation import work
from megatron_ring.curation.distribution.shares import OWN_TARGETS, load_targets
from megatron_ring.curation.generate import Request
from megatron_ring.curation.record import Rejection, prompt_of
from megatron_ring.curation.segment import Paths
from megatron_ring.curation.shards import read_json, read_lines
from megatron_ring.curation.synthesis import plan, results
from megatron_ring.curation.synthesis.domain import ChoosyDomain
from megatron_ring.curation.synthesis.domains import make_domain
from megatron_ring.curation.synthesis.funnel import Funnel
from megatron_ring.curation.synthesis.making import (
    DONE,
    KEPT,
    REJECTED,
    Job,
    Maker,
    Teller,
    request_of,
)
from megatron_ring.curation.synthesis.material import find_input, read_material
from megatron_ring.curation.synthesis.models import Models
from megatron_ring.curation.synthesis.novelty import Novelty
from megatron_ring.curation.taxonomy import OWN_FILE, load_taxonomy


def run(config: SynthesisConfig, teller: Teller | None = None) -> dict[str, Any]:
    """Do what is not done yet; the report. ConfigError, ValueError say what stands in the way.

    NoAnswerError and BudgetError, which are ValueErrors, leave a round unfinished: the next run
    goes on with it.
    """
    teller = teller or Teller()
    paths = Paths(Path(config.output).absolute())
    with work.claimed(paths):
        found = find_input(config)
        recipe = results.check_recipe(config, paths, found, teller.say)
        models = Models()
        try:
            rounds = Rounds(config, found, models, teller)
            rounds.choose_cells()
            for number in range(1, config.rounds + 1):
                if not rounds.one(number, paths.output / f"rounds/{number:02d}", recipe):
                    break
                results.write(config, paths, found, rounds)
            return results.write(config, paths, found, rounds)
        finally:
            models.close()


class Rounds:
    """Quotas, and what the rounds so far made of them."""

    def __init__(
        self, config: SynthesisConfig, found: dict[str, Any], models: Models, teller: Teller
    ) -> None:
        self.config, self.models, self.teller = config, models, teller
        taxonomy = load_taxonomy(config.taxonomy or OWN_FILE)
        writer = models.client(config.writer)
        novelty = Novelty(config.novelty, writer.memory)
        domain = make_domain(config.domain, models)
        self.maker = Maker(config.name, domain, writer, models, novelty, taxonomy, teller)
        self.material = read_material(config, taxonomy, found, novelty)
        self.quotas = plan.make_quotas(
            taxonomy,
            config.domain.roots,
            config.domain.difficulties,
            config.topics,
            load_targets(config.targets or OWN_TARGETS, taxonomy),
            self.material.supply,
            config.total,
        )
        self.requests: Counter[str] = Counter()  # by cell
        self.kept: Counter[str] = Counter()
        self.done: list[dict[str, Any]] = []  # done.json of each round
        self.left_out: dict[str, Rejection] = {}  # cells, by name
        self.used: dict[str, dict[str, float]] = {}  # of the models, to choose cells

    def choose_cells(self) -> None:
        """Leave out the cells that a choosy domain does not want; the others get their share."""
        domain = self.maker.domain
        if not isinstance(domain, ChoosyDomain):
            return
        self.teller.begin("choosing topics", len(self.quotas), self.models.live)
        try:
            asked = [domain.admit(one.cell) for one in self.quotas]
            found = self.models.gather(asked, self.teller.step)
        finally:
            self.teller.end()
        self.used = self.models.take_used()
        names = [one.cell.name for one in self.quotas]
        self.left_out = {n: why for n, why in zip(names, found, strict=True) if why is not None}
        self.quotas = plan.without(self.quotas, self.left_out)
        if not self.quotas:
            name, why = next(iter(self.left_out.items()))
            raise ConfigError(
                f"domain: of {len(names)} cells of topic and difficulty none is wanted, as "
                f"{name}: {why.reason}, {why.evidence}. Choose other topics, or another judge"
            )
        if self.left_out:
            self.teller.say(f"{len(self.left_out)} of {len(names)} cells left out, see report.json")

    def jobs(self) -> list[Job]:
        """The requests of the next round."""
        config = self.config
        missing = {one.cell.name: one.wanted - self.kept[one.cell.name] for one in self.quotas}
        counts = plan.requests_for(
            missing, self.requests, self.kept, config.expected_yield, config.per_round
        )
        made = []
        for cell in (one.cell for one in self.quotas):
            first = self.requests[cell.name]
            for number in range(first, first + counts.get(cell.name, 0)):
                key = f"{config.seed} {cell.name} {number}"
                seeds = self.material.seeds.draw(cell, config.seeds_per_request, key)
                made.append(Job(cell, number, seeds))
        return made

    def one(self, number: int, folder: Path, recipe: str) -> bool:
        """Make a round, or read it where it is finished; False when nothing is missing."""
        done = read_json(folder / DONE)
        is_new = done is None
        if is_new:
            jobs = self.jobs()
            if not jobs:
                return False
            self.maker.make(number, jobs, folder, recipe)
            done = read_json(folder / DONE)
        Funnel(done["cells"]).check(str(folder))
        texts = {}
        for line in read_lines(folder / REJECTED):
            if line["stage"] == "verify":
                texts[line["id"]] = prompt_of(line["record"])
        for record in read_lines(folder / KEPT):
            texts[record["id"]] = prompt_of(record)
            self.material.seeds.add(record, self.maker.taxonomy.path_of(record))
        if not is_new:
            for id in done["novel"]:  # in the order in which they were found to be new
                self.maker.novelty.add(id, texts[id])
        for name, cell in done["cells"].items():
            self.requests[name] += cell["requests"]
            self.kept[name] += cell["kept"]
        self.done.append(done)
        before = "" if is_new else ", finished before"
        kept = sum(cell["kept"] for cell in done["cells"].values())
        asked = sum(cell["requests"] for cell in done["cells"].values())
        self.teller.say(f"round {number}: {kept:,} kept of {asked:,} requests{before}")
        return True


@dataclass(frozen=True)
class Outlook:
    """What a run would begin with."""

    quotas: list[plan.Quota]
    requests: Counter[str]  # of the first round, by cell
    material: dict[str, Any]
    first: Request | None


def look_ahead(config: SynthesisConfig) -> Outlook:
    """The first round's quotas and its first request; nothing is sent or written to `output`."""
    models = Models()
    try:
        rounds = Rounds(config, find_input(config), models, Teller())
        jobs = rounds.jobs()
        counts = Counter(job.cell.name for job in jobs)
        first = request_of(jobs[0], rounds.maker.domain) if jobs else None
        return Outlook(rounds.quotas, counts, rounds.material.counts, first)
    finally:
        models.close()
