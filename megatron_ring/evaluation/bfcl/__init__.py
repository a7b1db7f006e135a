"""Berkeley Function Calling Leaderboard, v1 and v2 (live): calls compared by their syntax trees."""

from megatron_ring.evaluation.bfcl.task import BFCL

__all__ = ["BFCL"]
