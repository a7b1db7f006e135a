"""Answers that loop, that were cut, whose LaTeX is invalid, that need a figure."""

from megatron_ring.curation.purify.purify import Purify

__all__ = ["Purify"]
