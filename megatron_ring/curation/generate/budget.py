"""What may still be spent, counting what is on its way at its worst."""

import asyncio
import json
from typing import Any

from megatron_ring.config.curation.generate import Budget, GeneratorConfig
from megatron_ring.curation.generate.errors import BudgetError
from megatron_ring.curation.generate.memory import Memory


class Purse:
    """Lets requests out as long as their worst case fits into the budget."""

    def __init__(self, options: GeneratorConfig, memory: Memory) -> None:
        self._options, self._memory = options, memory
        self._reserved: dict[int, tuple[int, int]] = {}  # ticket -> tokens read, written at most
        self._tickets = 0
        self._changed = asyncio.Condition()

    def cost(self, input_tokens: int, output_tokens: int) -> float:
        """In the currency of the prices."""
        prices = self._options.prices
        return (input_tokens * prices.input + output_tokens * prices.output) / 1e6

    async def reserve(self, body: dict[str, Any]) -> int:
        """A ticket, when the request fits; BudgetError when it never will."""
        worst = worst_case(body)
        async with self._changed:
            # Another model of this process may spend from the same budget at the same time.
            self._memory.look(at_once=self._options.budget != Budget())
            while (problem := self._problem(worst)) is not None:
                if not self._reserved:
                    raise BudgetError(problem)
                await self._changed.wait()  # what is on its way may cost less than its worst
            self._tickets += 1
            self._reserved[self._tickets] = worst
            return self._tickets

    async def release(self, ticket: int) -> None:
        """The request is over, and what it cost is in the memory."""
        async with self._changed:
            del self._reserved[ticket]
            self._changed.notify_all()

    def _problem(self, worst: tuple[int, int]) -> str | None:
        """Which limit another request with this worst case would break."""
        spent, budget = self._memory.spent, self._options.budget
        waiting = [*self._memory.open_elsewhere(), *self._reserved.values(), worst]
        most = [sum(one) for one in zip(*waiting, strict=True)]
        limits = {
            "requests": (budget.requests, spent.requests, len(waiting)),
            "tokens": (budget.tokens, spent.input_tokens + spent.output_tokens, sum(most)),
            "cost": (budget.cost, spent.cost, self.cost(*most)),
        }
        for name, (limit, so_far, more) in limits.items():
            if limit is not None and so_far + more > limit:
                return (
                    f"budget.{name}={limit:g}: {so_far:,.6g} spent, and what is on its way or "
                    f"broke off may with the next request take {more:,.6g} more. It counts all "
                    f"runs with replies={self._options.replies}; raise it and run again, nothing "
                    "is lost"
                )
        return None


def worst_case(body: dict[str, Any]) -> tuple[int, int]:
    """Tokens that a request may read and write."""
    tools = json.dumps(body["tools"]) if "tools" in body else ""
    return most_tokens(body["messages"]) + len(tools), body["max_tokens"]


def most_tokens(messages: list[dict[str, Any]]) -> int:
    """No tokenizer makes more tokens of a text than it has bytes; a few for each turn's marks."""
    return sum(
        len(str(turn.get("content") or "").encode("utf-8", "replace")) + 8 for turn in messages
    )
