"""Who answers: a model behind an endpoint, or one in this process. What follows is one path."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

from megatron_ring.config.base import ConfigError
from megatron_ring.config.curation.generate import GeneratorConfig
from megatron_ring.curation.generate import Client, RefusedError, Request

REFUSED = "refused"  # finish of an item that the endpoint does not answer, though it does others


@dataclass(frozen=True)
class Ask:
    """One answer that is wanted."""

    messages: Sequence[Mapping[str, Any]]
    sample: int  # of several independent draws for the same messages
    tools: Sequence[Mapping[str, Any]] = ()  # OpenAI-style definitions that may be called


@dataclass(frozen=True)
class Said:
    """What came."""

    # All that the model said: its thought in <think> tags, calls of tools in <tool_call> tags.
    text: str
    finish: str  # stop; length: cut at the most tokens allowed; refused
    card: dict[str, Any]  # model, sampling, seed, tokens: all to know how it was made


class Door(Protocol):
    """A model to be asked."""

    def described(self) -> dict[str, Any]:
        """All that its answers depend on besides the messages, as plain JSON: model, sampling."""

    def answers(self, asks: Sequence[Ask], tell: Callable[[], None]) -> list[Said]:
        """An answer to each, in order; `tell` is called whenever one is there.

        ValueError where the rest cannot be had; what was answered is not asked again.
        """


class EndpointDoor:
    """A model behind an OpenAI-compatible endpoint. Its replies are remembered as they come."""

    def __init__(self, options: GeneratorConfig) -> None:
        if options.key_file is not None and not options.key_file.is_file():
            raise ConfigError(f"generator.key_file: there is no file {options.key_file}")
        self.options = options
        self._before = 0

    @cached_property
    def client(self) -> Client:
        """Made when first needed: it makes the folder of replies."""
        client = Client(self.options)
        self._before = client.spent.requests
        return client

    def described(self) -> dict[str, Any]:
        """Keys of the request that change an answer."""
        names = ("model", "temperature", "top_p", "max_tokens", "seed", "opens_thought", "extra")
        return self.options.model_dump(mode="json", include=set(names))

    def answers(self, asks: Sequence[Ask], tell: Callable[[], None]) -> list[Said]:
        """As Door.answers; NoAnswerError and BudgetError are ValueErrors."""
        return self.client.gather(map(self._answer, asks), tell)

    @property
    def num_sent(self) -> int:
        """Requests of all runs since this one began, with those that failed."""
        return self.client.spent.requests - self._before if "client" in vars(self) else 0

    def close(self) -> None:
        """End connections; what was said is on disk."""
        if "client" in vars(self):
            self.client.close()

    async def _answer(self, ask: Ask) -> Said:
        request = Request(
            messages=tuple(ask.messages),
            tools=tuple(ask.tools),
            sample=ask.sample,
            purpose="evaluate",
        )
        try:
            reply = await self.client.ask(request)
        except RefusedError as error:
            return Said("", REFUSED, {"error": str(error)})
        return Said(reply.text, reply.finish_reason, reply.card)
