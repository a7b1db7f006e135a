"""Pairs by quota: which prompt gives which pair is decided when all have been seen.

Sources are read twice and never held. Judging answers is done in the first reading, whose findings
are small: numbers of answers, rules and evidence.
"""

import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from megatron_ring.config.base import ConfigError
from megatron_ring.config.curation.preference import BlendConfig, ChoiceConfig
from megatron_ring.curation.mix import priority
from megatron_ring.curation.preference.general import Chosen, General, Rejected
from megatron_ring.curation.preference.offers import Offer, read_offers
from megatron_ring.curation.preference.quotas import Assignment, divide
from megatron_ring.curation.preference.structure import Structure
from megatron_ring.curation.record import Rejection, told_apart

PARTS = ("general", "structure")
EVIDENCE = 500  # characters kept of each reason; many answers have long ones
FILL = "+"  # a part's cell for whatever makes up for rules that are short
OWN = {  # keys that a pair gives itself
    *("id", "source", "chosen", "rejected", "format_spans"),
    *("rule", "damage", "preference"),
}

Pair = dict[str, Any]
Watch = Callable[[Iterator[Offer], str], Iterator[Offer]]  # of a part's offers: shows progress


@dataclass
class Found:
    """What an offer could give."""

    number: int  # of the offer in its part
    chosen: int | str
    overlap: float
    hand: dict[str, Rejected | None]  # rule or damage -> what is rejected


@dataclass
class Node:
    """A prompt that can give a pair; once it has one, further pairs have nodes of their own."""

    key: str
    found: dict[str, Found] = field(default_factory=dict)  # by part
    further: list[Found] = field(default_factory=list)  # general pairs with other rejected answers
    is_first: bool = True

    def cells(self) -> list[str]:
        """Those of all rules, and of both parts' makeup."""
        named = [f"{part}/{rule}" for part, found in self.found.items() for rule in found.hand]
        return [*named, *(part + FILL for part in self.found)]

    def split(self, rule: str | None) -> list["Node"]:
        """Keeps for itself one of several general pairs, with this rule; nodes of the others."""
        hands, self.further = self.further, []
        own = next((one for one in hands if rule in one.hand), hands[0])
        self.found["general"] = own
        others = [one for one in hands if one is not own]
        return [Node(self.key, {"general": one}, is_first=False) for one in others]


@dataclass
class Cell:
    """A rule or a damage: pairs asked for, prompts that could give one, pairs made."""

    asked: int
    possible: int = 0
    made: int = 0


@dataclass
class Part:
    """What is known of one part of the blend."""

    read: int = 0
    cells: dict[str, Cell] = field(default_factory=dict)
    left_out: list[dict[str, str]] = field(default_factory=list)
    kept: dict[int, list[tuple[str, Found]]] = field(default_factory=dict)  # by number of the offer
    where: dict[int, tuple[str, str, str]] = field(default_factory=dict)  # place, id, source
    verdicts: Counter[str] = field(default_factory=Counter)

    def leave(self, place: str, name: str, source: str, why: Rejection) -> None:
        """Note that an offer gives no pair."""
        self.left_out.append(
            {
                "id": name,
                "place": place,
                "source": source,
                "reason": why.reason,
                "evidence": why.evidence[:EVIDENCE],
            }
        )

    @property
    def asked(self) -> int:
        """Pairs asked for."""
        return sum(cell.asked for cell in self.cells.values())

    @property
    def made(self) -> int:
        """Pairs that are made."""
        return sum(cell.made for cell in self.cells.values())


class Blend:
    """One blend: `plan` decides, `pairs` gives them."""

    def __init__(self, options: BlendConfig, watch: Watch = lambda offers, _: offers) -> None:
        """ConfigError when an option needs a package that is not there."""
        self.options, self.watch = options, watch
        self.makers: dict[str, General | Structure] = {}
        if options.general is not None:
            self.makers["general"] = General(options.general, options.seed)
        if options.structure is not None:
            self.makers["structure"] = Structure(options.structure, options.seed)
        self.parts = {name: Part() for name in self.makers}

    def plan(self) -> dict[str, Part]:
        """Reads all sources and decides. ConfigError for what cannot be read, when no pair can be
        made, and by when_short=error."""
        nodes: dict[str, Node] = {}
        for name in self.makers:
            for number, offer in enumerate(self._offers(name)):
                self._note(name, number, offer, nodes)
        self._decide(sorted(nodes.values(), key=lambda n: priority(self.options.seed, n.key)))
        if not any(part.made for part in self.parts.values()):
            raise ConfigError(f"no pair could be made: {self._told()}")
        if self.options.when_short == "error":
            self._check_enough()
        return self.parts

    def pairs(self, name: str) -> Iterator[Pair]:
        """The pairs of a part, in the order of its sources."""
        part, seen = self.parts[name], Counter[str]()
        for number, offer in enumerate(self._offers(name)):
            for rule, found in part.kept.get(number, []):
                yield {"id": told_apart(offer.id, seen), **self._pair(name, offer, rule, found)}

    def _options(self, name: str) -> ChoiceConfig:
        return self.makers[name].options

    def _offers(self, name: str) -> Iterator[Offer]:
        sources = self._options(name).sources
        every = (offer for source in sources for offer in read_offers(source))
        return self.watch(every, name)

    def _note(self, name: str, number: int, offer: Offer, nodes: dict[str, Node]) -> None:
        """Judge an offer, and keep what it could give."""
        part, maker = self.parts[name], self.makers[name]
        part.read += 1
        node = nodes.get(offer.key)
        if offer.fault is not None:
            proposal: Any = offer.fault
        elif node is not None and name in node.found:
            first, _, _ = part.where[node.found[name].number]
            proposal = Rejection("same_prompt", f"as that of {first}")
        else:
            proposal = maker.propose(offer)
        if isinstance(maker, General):
            part.verdicts = maker.verdicts
        if isinstance(proposal, Rejection):
            part.leave(offer.place, offer.id, offer.source, proposal)
            return
        part.where[number] = (offer.place, offer.id, offer.source)
        if isinstance(proposal, Chosen):
            chosen: Chosen = proposal
            hands: list[dict[str, Rejected | None]] = [dict.fromkeys(self._options(name).shares)]
        else:
            chosen, hands = proposal
        found = [Found(number, chosen.number, chosen.overlap, hand) for hand in hands]
        node = nodes.setdefault(offer.key, Node(offer.key))
        # Until the prompt has a pair, any of them may be its first.
        every = {rule: one for hand in reversed(hands) for rule, one in hand.items()}
        ordered = {rule: every[rule] for rule in self._options(name).shares if rule in every}
        node.found[name] = Found(number, chosen.number, chosen.overlap, ordered)
        node.further = found if len(found) > 1 else node.further

    def _decide(self, nodes: list[Node]) -> None:
        """Give each prompt to a cell or to none."""
        for name, part in self.parts.items():
            found = [node for node in nodes if name in node.found]
            more = sum(len(node.further) - 1 for node in found if node.further)
            total = len(found) + (more if name == "general" else 0)
            asked = divide(self._options(name).take or total, self._options(name).shares)
            part.cells = {rule: Cell(number) for rule, number in asked.items()}
            for node in found:
                for rule in node.found[name].hand:
                    part.cells[rule].possible += 1
        assignment = Assignment()
        rooms = {
            f"{name}/{rule}": cell.asked
            for name, part in self.parts.items()
            for rule, cell in part.cells.items()
        }
        assignment.open_cells(rooms)
        fits = {number: node.cells() for number, node in enumerate(nodes)}
        _place_all(assignment, nodes, fits)
        if self.options.when_short == "fill":
            lacking: Counter[str] = Counter()
            for cell in rooms:
                lacking[cell.split("/")[0] + FILL] += assignment.close(cell)
            assignment.open_cells(lacking)
            _place_all(assignment, nodes, fits)
        for number, node in enumerate(nodes):
            self._settle(node, assignment.cell_of.get(number))

    def _settle(self, node: Node, cell: str | None) -> None:
        """Note what became of a prompt."""
        taken = None if cell is None else cell.removesuffix(FILL).split("/")[0]
        for name, found in node.found.items():
            part = self.parts[name]
            if name == taken:
                rule = self._rule(node, name, str(cell))
                part.cells[rule].made += 1
                part.kept.setdefault(found.number, []).append((rule, found))
            elif node.is_first:
                why = Rejection("over_quota", f"could be {', '.join(found.hand)}; all are full")
                if taken is not None:
                    why = Rejection("other_part", f"its prompt is in the part {taken}")
                part.leave(*part.where[found.number], why)

    def _rule(self, node: Node, name: str, cell: str) -> str:
        if not cell.endswith(FILL):
            return cell.split("/")[1]
        rng = random.Random(f"{self.options.seed} {node.key} fill")
        rules, shares = list(node.found[name].hand), self._options(name).shares
        return rng.choices(rules, [shares[rule] for rule in rules])[0]

    def _pair(self, name: str, offer: Offer, rule: str, found: Found) -> Pair:
        maker = self.makers[name]
        labels = {key: value for key, value in offer.record.items() if key not in OWN}
        chosen = offer.reference
        if found.chosen != "reference":
            chosen = offer.candidates[int(found.chosen)]["text"]
        assert chosen is not None, offer.place
        pair = {"source": offer.source, **labels, "chosen": chosen}
        told = {"chosen": found.chosen, "overlap": found.overlap}
        if isinstance(maker, Structure):
            rejected, spans = maker.damage(offer, chosen, rule)
            more = {"rejected": rejected, "format_spans": spans, "damage": rule}
            return {**pair, **more, "preference": told}
        other = found.hand[rule]
        assert other is not None, offer.place
        told |= {"rejected": other.number, "evidence": other.evidence}
        rejected = offer.candidates[other.number]["text"]
        return {**pair, "rejected": rejected, "rule": rule, "preference": told}

    def _told(self) -> str:
        counts = {
            name: dict(Counter(one["reason"] for one in part.left_out))
            for name, part in self.parts.items()
        }
        return "; ".join(f"{name}: {left}" for name, left in counts.items())

    def _check_enough(self) -> None:
        short = [
            f"{name}.{rule} has {cell.made:,} of {cell.asked:,}"
            for name, part in self.parts.items()
            for rule, cell in part.cells.items()
            if cell.made < cell.asked
        ]
        if short:
            raise ConfigError(
                f"{'; '.join(short)}; give more sources, lower take, change shares, or set "
                "when_short=fill or take_all"
            )


def _place_all(assignment: Assignment, nodes: list[Node], fits: dict[int, list[str]]) -> None:
    """Place what has no place: first pairs of prompts, then further ones; `nodes` grows by these.

    More of a prompt's pairs are general ones, so its first may not become another.
    """
    for first in (True, False):
        left = [
            number
            for number, node in enumerate(nodes)
            if node.is_first == first and number not in assignment.cell_of
        ]
        assignment.place(left, fits)
        for number in range(len(nodes)):
            cell = assignment.cell_of.get(number, "")
            if nodes[number].further and cell.startswith("general"):
                others = nodes[number].split(cell.removeprefix("general/"))
                own = [name for name in nodes[number].cells() if name.startswith("general")]
                assignment.restrict(number, own)
                for node in others:
                    fits[len(nodes)] = node.cells()
                    nodes.append(node)
