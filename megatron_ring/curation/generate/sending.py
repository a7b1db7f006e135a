"""One request until it is answered: attempts, waits between them, and what each failure means."""

import asyncio
import email.utils
import json
import math
import random
import time
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import httpx

from megatron_ring import think
from megatron_ring.config.curation.generate import GeneratorConfig
from megatron_ring.curation.endpoint import read_key
from megatron_ring.curation.generate.budget import Purse, worst_case
from megatron_ring.curation.generate.errors import NoAnswerError, RefusedError
from megatron_ring.curation.generate.memory import Memory

LONGEST_WAIT = 120.0  # seconds between two attempts, unless the endpoint asks for more
MOST_ASKED = 3600.0  # seconds that an endpoint may ask to wait
WAITING = (408, 409, 425, 429)  # and 5xx: may be another time
OUR_FAULT = (401, 402, 404, 405)  # key, money, address, model: every request would fail
SHOWN = 300  # characters of an error's body
PROBE = "Say yes."
ASKED = ("messages", "tools")  # of a request: what is asked; the rest is how


class _Failed(Exception):
    """An attempt without a usable answer."""

    def __init__(self, problem: str, wait: float | None = None, *, crowded: bool = False) -> None:
        super().__init__(problem)
        self.problem, self.wait = problem, wait  # seconds that the endpoint asks for
        self.crowded = crowded  # too many requests: says nothing of this one


class Sender:
    """Sends; one for a client."""

    def __init__(self, options: GeneratorConfig) -> None:
        self._options = options
        self._url = f"{options.endpoint.rstrip('/')}/chat/completions"
        self._key = read_key(options.key_file) if options.key_file else None
        self._http: httpx.AsyncClient | None = None
        self._answered = 0.0  # when the endpoint last answered anything well
        self._refused = 0  # requests in a row
        self._not_before = 0.0  # the endpoint asked for silence until then
        self._stopping = asyncio.Event()
        self._probing = asyncio.Lock()

    def open(self) -> None:
        """Be ready to send (again, after `stop`)."""
        self._stopping.clear()
        if self._http is None:
            self._http = httpx.AsyncClient(
                headers={"authorization": f"Bearer {self._key}"} if self._key else {},
                timeout=None,  # asyncio's, over the whole attempt
                limits=httpx.Limits(max_connections=None, max_keepalive_connections=None),
            )

    def stop(self) -> None:
        """Send nothing more; what is on its way may come home."""
        self._stopping.set()

    async def close(self) -> None:
        """End the connections."""
        if self._http is not None:
            await self._http.aclose()
            self._http = None

    async def send(
        self, key: str, body: dict[str, Any], purpose: str, memory: Memory, purse: Purse
    ) -> dict[str, Any]:
        """The value to remember: text, finish_reason, card, and what was sent."""
        failures = tries = 0
        last = time.monotonic()
        first = math.inf
        while failures <= self._options.retries:
            if tries:
                await self._sleep(self._pause(tries))
            await self._wait_for_endpoint()
            try:
                return await self._once(key, body, purpose, memory, purse)
            except _Failed as error:
                failed = error
            # A full house is nobody's failure as long as others are answered.
            failures += not (failed.crowded and self._answered > last)
            tries = min(tries + 1, max(self._options.retries, 1))
            last = time.monotonic()
            first = min(first, last)
        told = f"no answer after {failures} attempts, the last time: {failed.problem}"
        if await self._answers_others(first, body, memory, purse):
            raise self._refuse(told)
        raise self._ending(f"{told}. Start it and run again; nothing is lost")

    async def _once(
        self, key: str, body: dict[str, Any], purpose: str, memory: Memory, purse: Purse
    ) -> dict[str, Any]:
        """One attempt, with its place in the budget and in the memory."""
        ticket = await purse.reserve(body)
        spent = {"purpose": purpose, "input_tokens": 0, "output_tokens": 0, "cost": 0.0}
        try:
            self._check_going_on()
            memory.note_sent(key, worst_case(body))
            value = None
            try:
                reply = await self._attempt(key, body)
                spent |= _usage(reply, purse)
                value = self._read(reply, body, key)
            finally:
                memory.note_end(key, spent, value)
            self._answered, self._refused = time.monotonic(), 0
            return value
        except _Failed as failed:
            if failed.wait is not None:
                until = time.monotonic() + min(failed.wait, MOST_ASKED)
                self._not_before = max(self._not_before, until)
            raise
        finally:
            await purse.release(ticket)

    async def _answers_others(
        self, since: float, body: dict[str, Any], memory: Memory, purse: Purse
    ) -> bool:
        """Has the endpoint answered anything since then? If nobody knows, a short question tells.

        Without it a request that always fails, left over at the end, would look like an endpoint
        that is down, in this run and in all that resume it.
        """
        async with self._probing:
            if self._answered > since:
                return True
            self._check_going_on()
            messages = [{"role": "user", "content": PROBE}]
            probe = {**body, "messages": messages, "max_tokens": min(16, body["max_tokens"])}
            refused = self._refused
            key = f"probe {time.time_ns()}"  # another each time: no endpoint may remember it
            try:
                await self._once(key, probe, "probe", memory, purse)
            except (_Failed, RefusedError):
                return False
            finally:
                self._refused = refused
            return True

    async def _wait_for_endpoint(self) -> None:
        while (left := self._not_before - time.monotonic()) > 0:
            await self._sleep(left)

    async def _sleep(self, seconds: float) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), seconds)
        self._check_going_on()

    def _check_going_on(self) -> None:
        if self._stopping.is_set():
            raise asyncio.CancelledError

    def _pause(self, attempt: int) -> float:
        """Seconds before attempt 1, 2, ...; a little at random, so that not all come at once."""
        wait = self._options.retry_wait_s * 2 ** (attempt - 1)
        return min(wait, LONGEST_WAIT) * random.uniform(1.0, 1.25)

    def _refuse(self, problem: str) -> Exception:
        """RefusedError; NoAnswerError where nothing but refusals comes any more."""
        self._refused += 1
        if self._refused < self._options.give_up_after:
            return RefusedError(f"{self._url}: {problem}")
        return self._ending(
            f"{self._refused} requests in a row were refused (give_up_after="
            f"{self._options.give_up_after}), the last one: {problem}"
        )

    def _ending(self, problem: str) -> NoAnswerError:
        """The error that ends the run; from here on nothing is sent."""
        self.stop()
        return NoAnswerError(f"{self._url}: {problem}")

    def _shown(self, text: str) -> str:
        """The beginning of an answer, for an error. Some endpoints repeat the key they got."""
        return (text.replace(self._key, "(the key)") if self._key else text)[:SHOWN]

    async def _attempt(self, key: str, body: dict[str, Any]) -> Any:
        """The JSON of an answer with status 200."""
        assert self._http is not None, "open() makes it"
        try:
            async with asyncio.timeout(self._options.timeout_s):
                # Endpoints that know the header charge a request that is sent again only once.
                headers = {"idempotency-key": key}
                reply = await self._http.post(self._url, json=body, headers=headers)
        except TimeoutError:
            raise _Failed(f"nothing within timeout_s={self._options.timeout_s:g}") from None
        except httpx.HTTPError as error:
            raise _Failed(f"{type(error).__name__} {error}") from None
        if reply.status_code != 200:
            raise self._failure(reply)
        try:
            return reply.json()
        except (ValueError, RecursionError) as error:
            raise _Failed(f"no JSON: {error}: {self._shown(reply.text)}") from None

    def _failure(self, reply: httpx.Response) -> Exception:
        """What another status than 200 means."""
        status, shown = reply.status_code, f"HTTP {reply.status_code} {self._shown(reply.text)}"
        if status in WAITING or status >= 500:
            wait = asked_wait(reply.headers.get("retry-after"))
            return _Failed(shown, wait, crowded=status == 429)
        # 403 is a wrong key, or, where that was good before, a prompt that moderation forbids.
        forbidden = status == 403 and not self._answered
        if status in OUR_FAULT or status // 100 == 3 or forbidden:
            return self._ending(f"{shown}. Look at endpoint, model and key_file")
        return self._refuse(shown)

    def _read(self, reply: Any, body: dict[str, Any], key: str) -> dict[str, Any]:
        try:
            choice = reply["choices"][0]
            message = choice["message"]
            said = message.get("content") or ""
            thought = message.get("reasoning_content") or message.get("reasoning") or ""
            finish = str(choice.get("finish_reason") or "unknown")
            if not isinstance(said, str) or not isinstance(thought, str):
                raise TypeError(f"content is {type(said).__name__}")
            said = "\n".join(filter(None, [said, *_calls(message)]))
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            shape = f"{type(error).__name__} {error}: {self._shown(str(reply))}"
            raise _Failed(f"an answer of another shape: {shape}") from None
        if not said.strip() and not thought.strip():
            raise _Failed(f"an empty answer, finish_reason={finish}")
        text = joined(whole(thought), whole(said), self._options.opens_thought)
        read, written = _counts(reply)
        sampling = {name: value for name, value in body.items() if name not in ASKED}
        card = {
            **sampling,
            "served_model": reply.get("model"),
            "fingerprint": reply.get("system_fingerprint"),
            "finish_reason": finish,
            "input_tokens": read,
            "output_tokens": written,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "request": key,
        }
        return {
            "text": text,
            "finish_reason": finish,
            "card": card,
            "messages": body["messages"],
        }


def _calls(message: dict[str, Any]) -> list[str]:
    """The calls of tools in a message, as text: how models write them in their answers."""
    found = []
    for call in message.get("tool_calls") or ():
        name, given = call["function"]["name"], call["function"].get("arguments") or "{}"
        arguments = given if isinstance(given, str) else json.dumps(given, ensure_ascii=False)
        told = f'{{"name": {json.dumps(name)}, "arguments": {arguments}}}'
        found.append(f"<tool_call>\n{told}\n</tool_call>")
    return found


def joined(thought: str, said: str, opens_thought: bool) -> str:
    """The answer as training data has it; `opens_thought`: the prompt ends in <think>."""
    if thought.strip():
        if said.strip():
            return think.join(thought, said.lstrip())
        return f"{think.OPEN}\n{thought.strip()}\n"
    if opens_thought and not said.lstrip().startswith(think.OPEN):
        return f"{think.OPEN}\n{said.lstrip()}"
    return said


def whole(text: str) -> str:
    """The text with U+FFFD for halves of surrogate pairs, which cannot be written as UTF-8."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _counts(reply: Any) -> tuple[int | None, int | None]:
    """Tokens read and written, as far as the endpoint counts."""
    usage = reply.get("usage") if isinstance(reply, dict) else None
    usage = usage if isinstance(usage, dict) else {}
    counts = usage.get("prompt_tokens"), usage.get("completion_tokens")
    read, written = (one if type(one) is int and one >= 0 else None for one in counts)
    return read, written


def _usage(reply: Any, purse: Purse) -> dict[str, Any]:
    """What an answer cost, good or not; an endpoint that does not count costs nothing known."""
    read, written = (one or 0 for one in _counts(reply))
    return {"input_tokens": read, "output_tokens": written, "cost": purse.cost(read, written)}


def asked_wait(header: str | None) -> float | None:
    """Seconds of a Retry-After header, which is a number or a date."""
    if header is None:
        return None
    try:
        return max(0.0, float(header))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(header).timestamp() - time.time())
    except (TypeError, ValueError, OverflowError):
        return None
