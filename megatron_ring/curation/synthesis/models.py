"""The models of a run: a client for each, and what was asked of them."""

from collections import Counter
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, TypeVar

from megatron_ring.config.curation.generate import GeneratorConfig
from megatron_ring.curation.generate import Client, Reply, Request
from megatron_ring.curation.generate.memory import Spent

T = TypeVar("T")


class Models:
    """Clients by their options, so that two roles of one model share one."""

    def __init__(self) -> None:
        self._clients: dict[str, _Counted] = {}

    def client(self, options: GeneratorConfig) -> Client:
        """The one with these options; made when it is first asked for."""
        key = options.model_dump_json()
        if key not in self._clients:
            self._clients[key] = _Counted(options)
        return self._clients[key]

    def gather(
        self, coroutines: Iterable[Coroutine[Any, Any, T]], tell: Callable[[], None] = lambda: None
    ) -> list[T]:
        """As Client.gather; the coroutines may ask all clients that there are."""
        first, *others = self._clients.values()
        try:
            return first.gather(coroutines, tell, others)
        finally:
            for client in self._clients.values():
                client.memory.look(at_once=True)  # all know what all have spent

    def take_used(self) -> dict[str, dict[str, float]]:
        """Replies used since the last call, by purpose: requests, tokens, cost.

        Remembered replies count as new ones do: this says what the work is worth, not what this
        run paid, and is the same after a run that was killed.
        """
        total: dict[str, dict[str, float]] = {}
        for client in self._clients.values():
            prices = client.options.prices
            for purpose, used in sorted(client.used.items()):
                one = total.setdefault(purpose, dict.fromkeys(COUNTED, 0))
                for key in COUNTED[:-1]:
                    one[key] += used[key]
                tokens = used["input_tokens"], used["output_tokens"]
                one["cost"] += (tokens[0] * prices.input + tokens[1] * prices.output) / 1e6
            client.used.clear()
        return dict(sorted(total.items()))

    def paid(self) -> list[dict[str, Any]]:
        """By all runs that used the models' folders of replies, failed attempts included."""
        folders: dict[str, dict[str, Any]] = {}
        for client in self._clients.values():
            client.memory.look(at_once=True)
            purposes = {
                purpose: dict(sorted(one.items()))
                for purpose, one in sorted(client.spent.by_purpose.items())
            }
            folder = str(client.options.replies)
            folders[folder] = {"replies": folder, "by_purpose": purposes}
        return list(folders.values())

    def live(self) -> dict[str, float]:
        """Requests, output tokens and cost of all folders so far, for who watches.

        While several models are at work it may be a second behind.
        """
        latest: dict[str, Spent] = {}
        for client in self._clients.values():  # of those that share a folder one looked last
            folder = str(client.options.replies)
            seen = latest.get(folder, client.spent)
            latest[folder] = max(seen, client.spent, key=lambda one: one.requests)
        spent = latest.values()
        return {
            "requests": sum(one.requests for one in spent),
            "tokens": sum(one.output_tokens for one in spent),
            "cost": sum(one.cost for one in spent),
        }

    def close(self) -> None:
        """Connections end, and replies are on disk."""
        for client in self._clients.values():
            client.close()


COUNTED = ("requests", "input_tokens", "output_tokens", "cost")


class _Counted(Client):
    """A client that counts the replies it hands out, remembered or new."""

    def __init__(self, options: GeneratorConfig) -> None:
        super().__init__(options)
        self.used: dict[str, Counter[str]] = {}

    async def ask(self, request: Request) -> Reply:
        """As Client.ask."""
        reply = await super().ask(request)
        used = self.used.setdefault(request.purpose, Counter())
        used["requests"] += 1
        for key in ("input_tokens", "output_tokens"):
            count = reply.card.get(key)
            used[key] += count if type(count) is int else 0
        return reply
