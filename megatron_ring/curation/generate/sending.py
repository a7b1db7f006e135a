"""One request until it is answered: attempts, waits between them, and what each failure means."""

import asyncio
import email.utils
import random
import time
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import httpx

from megatron_ring.config.curation.generate import GeneratorConfig
from megatron_ring.curation.endpoint import read_key
from megatron_ring.curation.generate.budget import Purse
from megatron_ring.curation.generate.errors import NoAnswerError, RefusedError
from megatron_ring.curation.generate.memory import Memory

LONGEST_WAIT = 120.0  # seconds between two attempts, unless the endpoint asks for more
MOST_ASKED = 3600.0  # seconds that an endpoint may ask to wait
WAITING = (408, 409, 425, 429)  # and 5xx: may be another time
OUR_FAULT = (401, 402, 403, 404, 405)  # key, money, address, model: every request would fail
SHOWN = 300  # characters of an error's body


class _Failed(Exception):
    """An attempt without a usable answer."""

    def __init__(self, problem: str, wait: float | None = None) -> None:
        super().__init__(problem)
        self.problem, self.wait = problem, wait  # seconds that the endpoint asks for


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
        problem, waited = "", 0.0
        for attempt in range(self._options.retries + 1):
            if attempt:
                waited = time.monotonic()
                await self._sleep(self._pause(attempt))
            await self._wait_for_endpoint()
            ticket = await purse.reserve(body)
            spent = {"purpose": purpose, "input_tokens": 0, "output_tokens": 0, "cost": 0.0}
            try:
                self._check_going_on()
                memory.note_sent(key)
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
                problem = failed.problem
                if failed.wait is not None:
                    until = time.monotonic() + min(failed.wait, MOST_ASKED)
                    self._not_before = max(self._not_before, until)
            finally:
                await purse.release(ticket)
        told = f"{self._url}: no answer after {attempt + 1} attempts, the last time: {problem}"
        if self._answered > waited:  # others were answered since: it is this request
            raise self._refuse(told)
        raise NoAnswerError(f"{told}. Start it and run again; nothing is lost")

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
            return RefusedError(problem)
        return NoAnswerError(
            f"{self._refused} requests in a row were refused (give_up_after="
            f"{self._options.give_up_after}), the last one: {problem}"
        )

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
        shown = f"HTTP {reply.status_code} {reply.text[:SHOWN]}"
        if reply.status_code in OUR_FAULT:
            raise NoAnswerError(f"{self._url}: {shown}. Look at endpoint, model and key_file")
        if reply.status_code in WAITING or reply.status_code >= 500:
            raise _Failed(shown, _asked_wait(reply.headers.get("retry-after")))
        if reply.status_code != 200:
            raise self._refuse(f"{self._url}: {shown}")
        try:
            return reply.json()
        except ValueError as error:
            raise _Failed(f"no JSON: {error}: {reply.text[:SHOWN]}") from None

    def _read(self, reply: Any, body: dict[str, Any], key: str) -> dict[str, Any]:
        try:
            choice = reply["choices"][0]
            message = choice["message"]
            said = message.get("content") or ""
            thought = message.get("reasoning_content") or message.get("reasoning") or ""
            finish = str(choice.get("finish_reason") or "unknown")
            if not isinstance(said, str) or not isinstance(thought, str):
                raise TypeError(f"content is {type(said).__name__}")
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            shape = f"{type(error).__name__} {error}: {str(reply)[:SHOWN]}"
            raise _Failed(f"an answer of another shape: {shape}") from None
        if not said.strip() and not thought.strip():
            raise _Failed(f"an empty answer, finish_reason={finish}")
        text = _joined(thought, said, self._options.opens_thought)
        usage = reply.get("usage") or {}
        sampling = {name: value for name, value in body.items() if name != "messages"}
        card = {
            **sampling,
            "served_model": reply.get("model"),
            "fingerprint": reply.get("system_fingerprint"),
            "finish_reason": finish,
            "input_tokens": usage.get("prompt_tokens"),
            "output_tokens": usage.get("completion_tokens"),
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "request": key,
        }
        return {
            "text": text,
            "finish_reason": finish,
            "card": card,
            "messages": body["messages"],
        }


def _joined(thought: str, said: str, opens_thought: bool) -> str:
    """The answer as training data has it."""
    if thought.strip():
        opened = f"<think>\n{thought.strip()}\n"
        return f"{opened}</think>\n\n{said.lstrip()}" if said.strip() else opened
    if opens_thought and "<think>" not in said:
        return f"<think>\n{said.lstrip()}"
    return said


def _usage(reply: Any, purse: Purse) -> dict[str, Any]:
    """What an answer cost, good or not; an endpoint that does not count costs nothing known."""
    usage = reply.get("usage") if isinstance(reply, dict) else None
    usage = usage if isinstance(usage, dict) else {}
    counts = [usage.get("prompt_tokens"), usage.get("completion_tokens")]
    read, written = (one if type(one) is int and one >= 0 else 0 for one in counts)
    return {"input_tokens": read, "output_tokens": written, "cost": purse.cost(read, written)}


def _asked_wait(header: str | None) -> float | None:
    """Seconds of a Retry-After header, which is a number or a date."""
    if header is None:
        return None
    try:
        return max(0.0, float(header))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(header).timestamp() - time.time())
    except (TypeError, ValueError):
        return None
