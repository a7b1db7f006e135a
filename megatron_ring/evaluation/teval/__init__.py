"""T-Eval: planning, reasoning, retrieval, understanding, instructions and review of tool use."""

from megatron_ring.evaluation.teval.task import TEval

__all__ = ["TEval"]
