"""What graders need besides texts: workers of math-verify, and the limits of the sandbox."""

from functools import cached_property

from megatron_ring.config.evaluation import GradingConfig
from megatron_ring.curation import sandbox
from megatron_ring.curation.collect.equality import MathVerifyPool
from megatron_ring.curation.synthesis.code_answers import limits_of


class Means:
    """Made when first needed, so that a benchmark without code needs no sandbox."""

    def __init__(self, options: GradingConfig) -> None:
        self.options = options
        self._pools: list[MathVerifyPool] = []

    @cached_property
    def equality(self) -> MathVerifyPool:
        """Says whether two short answers are the same; from any thread."""
        pool = MathVerifyPool(self.options.workers, self.options.equality_seconds)
        self._pools.append(pool)
        return pool

    @cached_property
    def limits(self) -> sandbox.Limits:
        """Of a program and one of its tests. SandboxError where this machine cannot isolate."""
        sandbox.proven()
        return limits_of(self.options.program)

    def close(self) -> None:
        """Kill the workers."""
        for pool in self._pools:
            pool.close()

    def __enter__(self) -> "Means":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
