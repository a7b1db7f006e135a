"""Asks a model behind an OpenAI-compatible endpoint: many requests at a time, each paid once."""

import asyncio
import hashlib
import json
import os
import threading
from collections.abc import Callable, Coroutine, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

from megatron_ring.config.curation.generate import GeneratorConfig
from megatron_ring.curation.generate.budget import Purse
from megatron_ring.curation.generate.memory import Memory, Spent
from megatron_ring.curation.generate.sending import Sender, whole

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a model is asked. Values that are None are the client's options."""

    messages: tuple[Mapping[str, Any], ...]  # role and content
    tools: tuple[Mapping[str, Any], ...] = ()  # OpenAI-style definitions that it may call
    sample: int = 0  # of several independent draws
    purpose: str = "answer"  # under which its cost is counted; makes no other request of it
    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = None


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What it said."""

    text: str  # with <think>thought</think> in front also where the thought came apart
    finish_reason: str  # stop; length: cut at max_tokens; or the endpoint's own word
    card: dict[str, Any]  # model, sampling, seed, tokens, date: all to know how it was made


class Client:
    """A model, its memory of replies, and its purse. One for each process and set of options."""

    def __init__(self, options: GeneratorConfig) -> None:
        self.options = options
        self.memory = Memory(options.replies)
        self.num_remembered = 0  # requests of this process that were answered before
        self._purse = Purse(options, self.memory)
        self._sender = Sender(options)
        self._pool = ThreadPoolExecutor(len(os.sched_getaffinity(0)) + 1)
        self._pending: dict[str, asyncio.Task[dict[str, Any]]] = {}
        self._slots: asyncio.Semaphore | None = None

    @property
    def spent(self) -> Spent:
        """By all runs that used the folder of replies."""
        return self.memory.spent

    async def ask(self, request: Request) -> Reply:
        """The reply, remembered or new.

        RefusedError when this request gets no answer; NoAnswerError, BudgetError end the run.
        """
        body, key = self.body_of(request), self.key_of(request)
        value = self.memory.recall(key)
        if value is not None:
            self.num_remembered += 1
            return _reply(value)
        task = self._pending.get(key)
        if task is None:
            task = asyncio.ensure_future(self._post(key, body, request.purpose))
            self._pending[key] = task
            task.add_done_callback(lambda done: self._over(key, done))
        # A reply that is on its way is paid: it comes home whatever becomes of who asked for it.
        return _reply(await asyncio.shield(task))

    async def aside(self, function: Callable[..., T], *arguments: Any) -> T:
        """What a function that blocks returns, from a thread; as many at a time as cores."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, function, *arguments)

    def gather(
        self,
        coroutines: Iterable[Coroutine[Any, Any, T]],
        tell: Callable[[], None] = lambda: None,
        beside: Iterable["Client"] = (),
    ) -> list[T]:
        """Results of all, in order; `tell` is called whenever one is there.

        The coroutines may ask this client and those `beside` it. At the first error no further
        request is sent; those on their way come home before it is raised. So does the first
        interrupt by the user; a second one ends at once.
        """
        clients = [self, *(client for client in beside if client is not self)]
        going_on = _gather(list(coroutines), tell, clients)
        future = asyncio.run_coroutine_threadsafe(going_on, _loop())
        try:
            return future.result()
        except KeyboardInterrupt:
            for client in clients:
                _loop().call_soon_threadsafe(client._sender.stop)
            try:
                future.result()
            except Exception:  # whatever the end made of what was half done
                pass
            raise

    def close(self) -> None:
        """End connections and threads; what was written reaches the disk."""
        asyncio.run_coroutine_threadsafe(self._sender.close(), _loop()).result()
        self._pool.shutdown(cancel_futures=True)
        self.memory.close()

    def body_of(self, request: Request) -> dict[str, Any]:
        """What is sent."""
        options = self.options
        drawn = request.temperature, request.top_p, request.max_tokens
        own = options.temperature, options.top_p, options.max_tokens
        names = ("temperature", "top_p", "max_tokens")
        sampling = {
            name: ours if given is None else given
            for name, given, ours in zip(names, drawn, own, strict=True)
        }
        body = {
            "model": options.model,
            "messages": [
                {name: whole(value) if isinstance(value, str) else value for name, value in turn}
                for turn in map(Mapping.items, request.messages)
            ],
            **({"tools": [dict(tool) for tool in request.tools]} if request.tools else {}),
            **sampling,
            **options.extra,
        }
        digest = hashlib.sha256(_spelled([body, options.seed, request.sample])).digest()
        return {**body, "seed": int.from_bytes(digest[:4]) >> 1} if options.send_seed else body

    def key_of(self, request: Request) -> str:
        """Under which its reply is remembered: all that it depends on, but not where it was asked.

        A server that moves to another port is the same model still.
        """
        body = {name: value for name, value in self.body_of(request).items() if name != "seed"}
        spelled = _spelled([body, self.options.seed, request.sample, self.options.opens_thought])
        return hashlib.sha256(spelled).hexdigest()

    def _open(self) -> None:
        self._sender.open()
        self._slots = asyncio.Semaphore(self.options.concurrency)

    def _over(self, key: str, done: "asyncio.Task[dict[str, Any]]") -> None:
        self._pending.pop(key, None)
        if not done.cancelled():
            done.exception()  # looked at: whoever asked may be gone

    async def _post(self, key: str, body: dict[str, Any], purpose: str) -> dict[str, Any]:
        """Ask the endpoint, and remember what it said."""
        assert self._slots is not None, "gather makes them"
        async with self._slots:
            self.memory.look()
            if (value := self.memory.recall(key)) is not None:  # of another process
                return value
            return await self._sender.send(key, body, purpose, self.memory, self._purse)


@cache
def _loop() -> asyncio.AbstractEventLoop:
    """One for all clients of the process, in a thread: a coroutine may ask several of them."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()
    return loop


async def _gather(
    coroutines: list[Coroutine[Any, Any, T]], tell: Callable[[], None], clients: list[Client]
) -> list[T]:
    for client in clients:
        client._open()

    def over(task: asyncio.Task[T]) -> None:
        if not task.cancelled() and task.exception() is None:
            tell()

    tasks = [asyncio.ensure_future(one) for one in coroutines]
    for task in tasks:
        task.add_done_callback(over)
    try:
        return await asyncio.gather(*tasks)
    except BaseException:
        for client in clients:
            client._sender.stop()
        # A task may have begun another one meanwhile.
        while pending := [one for client in clients for one in client._pending.values()]:
            await asyncio.wait(pending)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise


def _spelled(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, ensure_ascii=True).encode()


def _reply(value: dict[str, Any]) -> Reply:
    return Reply(text=value["text"], finish_reason=value["finish_reason"], card=value["card"])
