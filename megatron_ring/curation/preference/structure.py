"""Structural pairs: one answer, with right and with damaged think tags."""

import random
from typing import Any

from megatron_ring.config.curation.preference import StructureConfig
from megatron_ring.curation import corrupt_tags
from megatron_ring.curation.preference.general import Chooser, Chosen
from megatron_ring.curation.preference.offers import Offer
from megatron_ring.curation.record import Rejection


class Structure:
    """Which answer of a prompt is damaged. Each damage can be done to each of them."""

    def __init__(self, options: StructureConfig, seed: int) -> None:
        self.options, self.seed = options, seed
        self.chooser = Chooser(options)

    def propose(self, offer: Offer) -> Chosen | Rejection:
        """The answer, a sampled one or the record's own; rejected as by Chooser.choose."""
        return self.chooser.choose(offer)

    def damage(self, offer: Offer, chosen: str, kind: str) -> tuple[str, dict[str, Any]]:
        """The damaged answer, and {chosen, rejected}: spans of characters where the two part.

        The place of the damage depends on the seed and the prompt alone.
        """
        rng = random.Random(f"{self.seed} {offer.key} {kind}")
        rejected = corrupt_tags.corrupt(chosen, kind, rng)
        one, other = corrupt_tags.differences(chosen, rejected)
        return rejected, {"chosen": one, "rejected": other}
