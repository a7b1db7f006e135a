"""The domains there are.

A new one: its options in megatron_ring/config/curation (a DomainPart with `kind`, joined to
DomainConfig in synthesis.py there), its class in a file beside this one, a line in the table.
"""

from collections.abc import Callable
from typing import Any

from megatron_ring.config.curation.domain import DomainPart
from megatron_ring.curation.synthesis.code import Code
from megatron_ring.curation.synthesis.domain import Domain
from megatron_ring.curation.synthesis.maths import Maths
from megatron_ring.curation.synthesis.models import Models
from megatron_ring.curation.synthesis.science import Science

# By `kind`: made from its options and the models, which hands out clients.
DOMAINS: dict[str, Callable[[Any, Models], Domain]] = {
    "code": lambda options, models: Code(options, models.client(options.solver)),
    "maths": Maths,
    "science": Science,
}


def make_domain(options: DomainPart, models: Models) -> Domain:
    """The domain with these options."""
    return DOMAINS[vars(options)["kind"]](options, models)
