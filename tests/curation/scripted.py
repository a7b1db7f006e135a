"""A chat endpoint for tests that says what a script says, and fails on purpose.

A program of its own: `python -m tests.curation.scripted --ledger F --script echo`, or from a test

    with scripted.serve(tmp_path, script="sums", rates={"http_429": 0.2}, latency_s=0.01) as server:
        ...  # server.url is the endpoint, server.ledger what was asked, answered and charged

What happens to an attempt depends on the seed, the request and the attempt's number alone. A user's
message may also order it: "2 + 3? [[http_500 truncated ok]]" fails twice, then is answered; the
last kind named holds for all later attempts.

A script is `def script(messages, body, rng) -> str | dict`: the text, or parts of the message
("content", "reasoning_content"; "finish_reason" goes where it belongs). `rng` is the same for all
attempts of a request. It stands in SCRIPTS, or anywhere as "package.module:function".
"""

import argparse
import asyncio
import importlib
import json
import re
import socket
import struct
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from hashlib import sha256
from pathlib import Path
from random import Random
from typing import Any

from tests.curation.scripted_faults import FAULTS, ODD, Options, Sent, known, say, spoil
from tests.curation.scripted_ledger import Ledger

ROOT = Path(__file__).parents[2]
Script = Callable[[list[dict[str, Any]], dict[str, Any], Random], "str | dict[str, Any]"]


def last_user(messages: list[dict[str, Any]]) -> str:
    """The last question, without the faults it orders."""
    asked = [turn["content"] for turn in messages if turn["role"] == "user"]
    return re.sub(r"\s*\[\[.*?\]\]", "", asked[-1])


def echo(messages: list[dict[str, Any]], body: dict[str, Any], rng: Random) -> str:
    """The question, and a number that differs from draw to draw."""
    return f"{last_user(messages)} #{rng.randrange(10**9)}"


def sums(messages: list[dict[str, Any]], body: dict[str, Any], rng: Random) -> str:
    """Answers "a + b"; is right in 7 of 10 draws, off by 1 to 3 in the others."""
    a, b = map(int, re.findall(r"-?\d+", last_user(messages))[:2])
    found = a + b + (0 if rng.random() < 0.7 else rng.randint(1, 3))
    return f"<think>\n{a} and {b} make {found}.\n</think>\n\n\\boxed{{{found}}}"


def apart(messages: list[dict[str, Any]], body: dict[str, Any], rng: Random) -> dict[str, Any]:
    """The echo, with a thought that stands beside it."""
    thought = f"They ask: {last_user(messages)}"
    return {"reasoning_content": thought, "content": echo(messages, body, rng)}


def long(messages: list[dict[str, Any]], body: dict[str, Any], rng: Random) -> str:
    """300 words, or as many as the request allows."""
    return " ".join(f"word{number}" for number in range(300))


SCRIPTS: dict[str, Script] = {"echo": echo, "sums": sums, "apart": apart, "long": long}


class Endpoint:
    """What all connections share: options, counts, the ledger."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.script = script_named(options.script)
        self.attempts: Counter[str] = Counter()
        self.charged: Counter[str] = Counter()  # good answers, by identity
        self.open: set[Connection] = set()
        self.in_flight = self.most = 0
        self.answered: dict[int, int] = {}  # of the present window
        path = Path(options.ledger)
        for line in Ledger(path).lines:  # of an earlier life
            self.attempts[line["identity"]] += 1
            self.charged[line["identity"]] += line["charged"] and line["kept"]
        self.file = path.open("a", encoding="utf-8")

    def takes(self) -> int:
        """How many requests are in flight with this new one.

        The loop learns late of clients that hung up: before there is a new record, they are looked
        for.
        """
        self.in_flight += 1
        if self.in_flight > self.most:
            others = sum(one.attempt is not None and one.is_open() for one in self.open)
            self.most = max(self.most, 1 + others)
        return min(self.in_flight, self.most)

    def write(self, line: dict[str, Any], sent: Sent, gone: bool) -> None:
        """The end of an attempt: who pays, who remembers, and all of it in the ledger."""
        self.in_flight -= 1
        identity = line["identity"]
        kept = not gone and (
            sent.state == "good" or self.options.charge_lost and sent.state == "lost"
        )
        remembered = self.options.idempotent and line["key"] and self.charged[identity] > 0
        charged = (kept and not remembered) or (not gone and sent.state == "billed")
        self.charged[identity] += charged and kept
        line |= {
            "ended": time.time(),
            "did": f"{line['did']}, gone" if gone else line["did"],
            "delivered": not gone and sent.whole,
            "replayed": bool(kept and remembered),
            "charged": charged,
            "kept": kept,
            "input_tokens": sent.usage[0] * charged,
            "output_tokens": sent.usage[1] * charged,
        }
        self.file.write(json.dumps(line) + "\n")
        self.file.flush()

    def kind(self, identity: str, attempt: int, messages: list[dict[str, Any]]) -> str:
        """What is done to this attempt."""
        if self.options.most_in_s:
            window = int(time.time() / self.options.window_s)
            self.answered = {window: self.answered.get(window, 0) + 1}
            if self.answered[window] > self.options.most_in_s:
                return "limited"
        ordered = re.findall(r"\[\[([\w ]+)\]\]", str(messages[-1].get("content")))
        if ordered:
            kinds = ordered[-1].split()
            return kinds[min(attempt, len(kinds)) - 1]
        if attempt > self.options.faults_at_most:
            return "ok"
        drawn = Random(f"{self.options.seed} {identity} {attempt}").random()
        for kind, rate in self.options.rates.items():
            drawn -= rate
            if drawn < 0:
                return kind
        return "ok"

    def answer(self, identity: str, keyed: bool, body: dict[str, Any]) -> dict[str, Any]:
        """The whole answer; a request without a key is another draw each time it is answered."""
        draw = "" if keyed else self.charged[identity]
        said = self.script(body["messages"], body, Random(f"{self.options.seed} {identity} {draw}"))
        message = {"role": "assistant"} | ({"content": said} if isinstance(said, str) else said)
        finish = message.pop("finish_reason", "stop")
        words = re.findall(r"\s*\S+", message["content"])
        most = body.get("max_tokens") or body.get("max_completion_tokens") or 10**9
        if len(words) > most:
            message["content"], finish = "".join(words[:most]), "length"
        output = min(len(words), most) + len(str(message.get("reasoning_content", "")).split())
        given = sum(len(str(turn.get("content")).split()) for turn in body["messages"])
        return {
            "id": f"said-{identity[:12]}",
            "object": "chat.completion",
            "model": body.get("model"),
            "choices": [{"index": 0, "message": message, "finish_reason": finish}],
            "usage": {
                "prompt_tokens": given,
                "completion_tokens": output,
                "total_tokens": given + output,
            },
        }


def script_named(name: str) -> Script:
    if name in SCRIPTS:
        return SCRIPTS[name]
    module, _, function = name.partition(":")
    return getattr(importlib.import_module(module), function)


class Connection(asyncio.Protocol):
    """One client's connection: reads requests one after the other, answers each."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint, self.buffer, self.busy = endpoint, b"", False
        self.attempt: tuple[dict[str, Any], Sent] | None = None  # the one that waits or trickles
        self.timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.endpoint.open.add(self)

    def connection_lost(self, error: Exception | None) -> None:
        self.endpoint.open.discard(self)
        if self.attempt:
            self._close_books(gone=True)

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        if not self.busy:
            self._read()

    def is_open(self) -> bool:
        """Has the client not hung up, whether or not the loop has been told?"""
        if self.transport.is_closing():
            return False
        raw = socket.socket(fileno=self.transport.get_extra_info("socket").fileno())
        try:
            return raw.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) != b""
        except BlockingIOError:
            return True
        except OSError:
            return False
        finally:
            raw.detach()

    def _read(self) -> None:
        head, found, rest = self.buffer.partition(b"\r\n\r\n")
        if not found:
            return
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = {k.strip().lower(): v.strip() for k, _, v in (x.partition(":") for x in lines)}
        size = int(headers.get("content-length", 0))
        if len(rest) < size:
            return
        self.buffer, self.busy = rest[size:], True
        method, path, _ = first.split(" ", 2)
        self._take(method, path, headers, rest[:size])

    def _take(self, method: str, path: str, headers: dict[str, str], body: bytes) -> None:
        key = self.endpoint.options.key
        if (method, path) == ("GET", "/v1/models"):
            models = {"object": "list", "data": [{"id": "scripted", "object": "model"}]}
            self._end(say(200, models))
        elif (method, path) != ("POST", "/v1/chat/completions"):
            self._end(say(404, {"error": {"message": f"no {method} {path}"}}))
        elif key and headers.get("authorization") != f"Bearer {key}":
            self._end(say(401, {"error": {"message": "wrong key"}}))
        else:
            self._complete(headers, body)

    def _end(self, data: bytes) -> None:
        self.transport.write(data)
        self.busy = False
        if self.buffer:
            self._read()

    def _complete(self, headers: dict[str, str], raw: bytes) -> None:
        endpoint, options = self.endpoint, self.endpoint.options
        body, key = json.loads(raw), headers.get("idempotency-key")
        request = sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
        identity = sha256(key.encode()).hexdigest() if key else request
        endpoint.attempts[identity] += 1
        number = endpoint.attempts[identity]
        kind = endpoint.kind(identity, number, body["messages"])
        answer = endpoint.answer(identity, key is not None, body)
        line = {
            "began": time.time(),
            "request": request,
            "key": key,
            "identity": identity,
            "attempt": number,
            "did": kind,
            "in_flight": endpoint.takes(),
            "body": body,
        }
        self.attempt = line, spoil(kind, answer, options, headers)
        spread = Random(f"{options.seed} {identity} {number} wait").uniform(0.5, 1.5)
        wait = {"slow": options.slow_s, "slow_ok": 0.1}.get(kind, options.latency_s * spread)
        if kind == "trickle":
            self._trickle(0)
        elif wait:
            self.timer = asyncio.get_running_loop().call_later(wait, self._finish)
        else:
            self._finish()

    def _trickle(self, at: int) -> None:
        """A byte at a time, so that no single read waits long."""
        assert self.attempt
        data = self.attempt[1].data
        if at == len(data):
            self._close_books(gone=False)
            self._end(b"")
            return
        self.transport.write(data[at : at + 1])
        wait = self.endpoint.options.slow_s / len(data)
        self.timer = asyncio.get_running_loop().call_later(wait, self._trickle, at + 1)

    def _finish(self) -> None:
        """Sends the answer, or what is left of it."""
        assert self.attempt
        sent = self.attempt[1]
        self._close_books(gone=not self.is_open())  # before a client can look into them
        if sent.then == "stays":
            self._end(sent.data)
            return
        self.transport.write(sent.data)
        if sent.then == "closes":
            self.transport.close()
        else:
            linger = struct.pack("ii", 1, 0)  # closing then resets
            raw = self.transport.get_extra_info("socket")
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.transport.abort()

    def _close_books(self, gone: bool) -> None:
        """The attempt's line in the ledger."""
        assert self.attempt
        (line, sent), self.attempt = self.attempt, None
        if self.timer:
            self.timer.cancel()
            self.timer = None
        self.endpoint.write(line, sent, gone)


async def run(options: Options) -> None:
    """Serves until its standard input is closed: it does not outlive who started it."""
    loop, done = asyncio.get_running_loop(), asyncio.Event()
    endpoint = Endpoint(options)
    server = await loop.create_server(
        lambda: Connection(endpoint), "127.0.0.1", options.port, backlog=1024
    )
    print(server.sockets[0].getsockname()[1], flush=True)
    loop.add_reader(sys.stdin.fileno(), lambda: sys.stdin.buffer.raw.read(1) or done.set())
    await done.wait()
    server.close()


@dataclass(frozen=True)
class Serving:
    """A running endpoint, as a test sees it."""

    url: str  # up to /v1
    file: Path
    process: subprocess.Popen[bytes]

    @property
    def ledger(self) -> Ledger:
        return Ledger(self.file)


@contextmanager
def serve(folder: Path, **options: Any) -> Iterator[Serving]:
    """A process of its own with these `Options`; its ledger is `folder`/ledger.jsonl."""
    file = folder / "ledger.jsonl"
    given = json.dumps({"ledger": str(file)} | options)
    command = [sys.executable, "-m", "tests.curation.scripted", "--json", given]
    process = subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    )
    assert process.stdin and process.stdout
    try:
        port = process.stdout.readline().decode().strip()
        assert port, f"the scripted endpoint does not start: {given}"
        yield Serving(f"http://127.0.0.1:{port}/v1", file, process)
    finally:
        process.stdin.close()
        process.wait(timeout=20)
        process.stdout.close()


def options_of(arguments: list[str]) -> Options:
    """Of `--json '{"seed": 3, …}'` and `--seed 3 --rates '{"slow": 0.1}' --no-idempotent`."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=json.loads, default={})
    for option in fields(Options):
        name = "--" + option.name.replace("_", "-")
        if option.type is bool:
            parser.add_argument(name, action=argparse.BooleanOptionalAction)
        else:
            kind = option.type if option.type in (int, float) else str
            kind = json.loads if option.name == "rates" else kind
            parser.add_argument(name, type=kind)
    typed = vars(parser.parse_args(arguments))
    given = typed.pop("json") | {k: v for k, v in typed.items() if v is not None}
    options = Options(**given)
    for kind in options.rates:
        if not known(kind):
            parser.error(f"rates: no kind {kind}; kinds: {', '.join((*FAULTS, *ODD))}")
    return options


if __name__ == "__main__":
    asyncio.run(run(options_of(sys.argv[1:])))
