"""A model behind an OpenAI-compatible endpoint, asked much, and never twice for the same.

What is made of replies is a function of them and of seeds alone, and a reply is on disk before
anyone sees it. To resume is to run again.
"""

from megatron_ring.curation.generate.client import Client, Reply, Request
from megatron_ring.curation.generate.errors import BudgetError, NoAnswerError, RefusedError

__all__ = ["BudgetError", "Client", "NoAnswerError", "RefusedError", "Reply", "Request"]
