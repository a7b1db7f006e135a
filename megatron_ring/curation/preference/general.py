"""General pairs: of the answers to a prompt, one to be chosen, and those that break a rule.

May be chosen: an answer that is finished, with right think tags, that does not loop, and right (or
by correct=prefer not known to be wrong). Of these the one known to be right goes first, then the
one with the lowest n-gram overlap (rules.overlap), then the shortest. The report says "low n-gram
overlap" and not with what; here it is all three: with itself, with the prompt, with other answers.
"""

import random
from collections import Counter
from dataclasses import dataclass
from typing import Any

from megatron_ring.config.curation.preference import ChoiceConfig, GeneralConfig
from megatron_ring.curation.preference import rules
from megatron_ring.curation.preference.offers import Offer
from megatron_ring.curation.record import Rejection, prompt_of


@dataclass(frozen=True)
class Chosen:
    """The better answer of a pair."""

    number: int | str  # of the candidate; "reference" for the record's own response
    text: str
    verdict: str
    overlap: float


@dataclass(frozen=True)
class Rejected:
    """A worse answer, and the rule that it breaks."""

    number: int
    rule: str
    evidence: str


class Chooser:
    """Finds the answer to be chosen."""

    def __init__(self, options: ChoiceConfig) -> None:
        self.options = options
        self.judge = rules.Judge(options)

    def choose(self, offer: Offer) -> Chosen | Rejection:
        """The best answer, or why there is none.

        Rejected with no_answer, the fault that all have (wrong, unknown, timeout, unfinished, tags,
        repetitive), or none_good, and the fault of each.
        """
        return self.choose_judged(offer, self.judged(offer))

    def judged(self, offer: Offer) -> list[tuple[dict[str, Any], str]]:
        """Candidates that say anything, with the verdict on each."""
        gold = offer.record.get("answer")
        return [
            (one, self.judge.verdict(one, gold)) for one in offer.candidates if one["text"].strip()
        ]

    def choose_judged(
        self, offer: Offer, judged: list[tuple[dict[str, Any], str]]
    ) -> Chosen | Rejection:
        """As `choose`, of candidates whose verdicts are known."""
        options = self.options
        own = self._reference(offer)
        if options.reference == "always" and isinstance(own, Chosen):
            return own
        found, fates = [], []
        for place, (one, verdict) in enumerate(judged):
            fault = self._fault(one, verdict)
            fates.append(f"{one['number']}: {fault or verdict}")
            if fault is None:
                others = [other["text"] for i, (other, _) in enumerate(judged) if i != place]
                prompt = prompt_of(offer.record)
                share = rules.overlap(one["text"], prompt, others, options.overlap)
                found.append(Chosen(one["number"], one["text"], verdict, round(share, 6)))
        if found:
            return min(found, key=lambda a: (a.verdict != "right", a.overlap, len(a.text)))
        if isinstance(own, Chosen):
            return own
        if own is not None:
            fates.append(own)
        if not fates:
            return Rejection("no_answer", f"{len(offer.candidates)} candidates, no response")
        reasons = {fate.split(": ")[1].split(" ")[0] for fate in fates}
        return Rejection(reasons.pop() if len(reasons) == 1 else "none_good", "; ".join(fates))

    def _fault(self, one: dict[str, Any], verdict: str) -> str | None:
        """Why an answer may not be chosen; None where it may."""
        options, text = self.options, one["text"]
        if (end := rules.unfinished(one, options)) is not None:
            return f"unfinished {end}"
        if (tags := rules.wrong_tags(text, options)) is not None:
            return f"tags {tags}"
        if verdict != "right" and (verdict == "wrong" or options.correct == "require"):
            return verdict
        if (loop := rules.loops(text, options)) is not None:
            return f"repetitive {loop}"
        return None

    def _reference(self, offer: Offer) -> Chosen | str | None:
        """The record's own response, why it is not chosen, or None where there is none.

        It need not be known to be right: whoever made the data says so.
        """
        text = offer.reference
        if text is None or self.options.reference == "never":
            return None
        one = {"text": text}
        verdict = self.judge.verdict(one, offer.record.get("answer"))
        fault = self._fault(one, verdict if verdict == "wrong" else "right")
        if fault is not None:
            return f"reference: {fault}"
        share = rules.overlap(text, prompt_of(offer.record), [], self.options.overlap)
        return Chosen("reference", text, verdict, round(share, 6))


class General:
    """Which general pairs a prompt could give."""

    def __init__(self, options: GeneralConfig, seed: int) -> None:
        self.options, self.seed = options, seed
        self.chooser = Chooser(options)
        self.verdicts: Counter[str] = Counter()  # of all candidates

    def propose(self, offer: Offer) -> tuple[Chosen, list[dict[str, Rejected]]] | Rejection:
        """The chosen answer, and for each pair of the prompt what could be rejected, by rule.

        No answer is in two of these hands. Rejected with no_candidates, as by `choose`, or with
        nothing_to_reject where no other answer breaks a rule.
        """
        if not offer.candidates:
            return Rejection("no_candidates", "no sampled answers in extra.candidates")
        judged = self.chooser.judged(offer)
        self.verdicts.update(verdict for _, verdict in judged)
        self.verdicts["blank"] += len(offer.candidates) - len(judged)
        chosen = self.chooser.choose_judged(offer, judged)
        if isinstance(chosen, Rejection):
            return chosen
        others = [
            (one, verdict) for one, verdict in judged if one["text"].strip() != chosen.text.strip()
        ]
        broken = [found for pair in others if (found := self._broken(*pair, chosen, offer))]
        if not broken:
            told = f"{len(others)} other answers break none of {', '.join(self.options.shares)}"
            return Rejection("nothing_to_reject", told)
        # As good as random, and the same whatever else is in the file.
        random.Random(f"{self.seed} {offer.key}").shuffle(broken)
        size = min(self.options.pairs_per_prompt, len(broken))
        hands: list[dict[str, Rejected]] = [{} for _ in range(size)]
        for place, found in enumerate(broken):
            hand = hands[place % size]
            for one in found:
                hand.setdefault(one.rule, one)
        return chosen, hands

    def _broken(
        self, one: dict[str, Any], verdict: str, chosen: Chosen, offer: Offer
    ) -> list[Rejected]:
        """The rules among the recipe's that an answer breaks."""
        options, text = self.options, one["text"]
        evidence: dict[str, str | None] = {
            "unfinished": rules.unfinished(one, options),
            "tags": rules.wrong_tags(text, options),
        }
        well_formed = evidence["unfinished"] is None and evidence["tags"] is None
        if "repetitive" in options.shares:  # the only one that takes its time
            evidence["repetitive"] = rules.repetitive(text, chosen.text, options)
        if verdict == "wrong":
            evidence["wrong"] = self.chooser.judge.wrong(one, offer.record.get("answer"))
        elif well_formed and verdict in ("right", chosen.verdict):
            # Length alone is to blame: the answer is as good as the chosen one.
            evidence["longer"] = rules.longer(text, chosen.text, options)
        return [
            Rejected(one["number"], rule, seen)
            for rule in options.shares
            if (seen := evidence.get(rule)) is not None
        ]
