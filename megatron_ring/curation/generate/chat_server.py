"""The other end of the client: /v1/chat/completions over HTTP, for a model in this process.

It knows the protocol and nothing of models. tools/serve_small.py puts a small one behind it.
"""

import hmac
import json
import random
import select
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field, ValidationError

BODY_BYTES = 4 << 20
CHECK_S = 0.2  # how often a waiting request looks whether its client is still there


class Refusal(Exception):
    """A request that gets no answer: the HTTP status, OpenAI's code, and why."""

    def __init__(self, status: int, code: str, why: str) -> None:
        super().__init__(why)
        self.status, self.code = status, code


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Message(_Part):
    """One turn."""

    role: Literal["system", "user", "assistant"]
    content: str


class Ask(_Part):
    """The body of a request; a key that is null counts as absent."""

    model: str
    messages: list[Message] = Field(min_length=1)
    temperature: float = Field(1.0, ge=0, le=2)
    top_p: float = Field(1.0, gt=0, le=1)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)  # its newer name
    stop: str | list[Annotated[str, Field(min_length=1)]] = []
    seed: int | None = None
    n: Literal[1] = 1
    stream: Literal[False] = False
    user: str = ""


REMEDIES = {"stream": "answers come whole", "n": "ask once for each answer"}


@dataclass
class Ticket:
    """A request on its way, and what came of it."""

    prompt: list[int]  # its tokens
    tokens: list[int] = field(default_factory=list)  # of the answer, its end included
    text: str = ""
    finish: Literal["", "stop", "length"] = ""
    gone: bool = False  # set when nobody waits for it any more
    done: threading.Event = field(default_factory=threading.Event)


class Backend(Protocol):
    """Whoever answers."""

    model: str
    fingerprint: str  # another one: the same seed may give another text

    def submit(self, ask: Ask) -> Ticket:
        """Take a request, or raise Refusal. Its `done` is set once text and finish are; or, with
        no finish, when decoding failed."""

    def counts(self) -> dict[str, int]:
        """What /health says."""


def parse(body: bytes) -> Ask:
    """The request in `body`; Refusal 400 that names every key that is wrong."""
    try:
        given = json.loads(body)
        if not isinstance(given, dict):
            raise ValueError("an object is wanted")
        json.dumps(given, ensure_ascii=False).encode()  # no half of a surrogate pair
    except (ValueError, RecursionError) as error:
        raise Refusal(400, "invalid_json", f"the body is not JSON: {error}") from None
    try:
        return Ask(**{key: value for key, value in given.items() if value is not None})
    except ValidationError as error:
        wrong = []
        for one in error.errors():
            key = ".".join(map(str, one["loc"]))
            remedy = REMEDIES.get(key, "")
            wrong.append(f"{key}: {one['msg']}" + (f" ({remedy})" if remedy else ""))
        raise Refusal(400, "invalid_value", "; ".join(wrong)) from None


class ChatServer(ThreadingHTTPServer):
    """Listens on 127.0.0.1; a thread for each connection. With `key`, clients must send it."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, port: int, backend: Backend, key: str = "") -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.backend, self.key = backend, key
        self.url = f"http://127.0.0.1:{self.server_address[1]}/v1"

    def announce(self, file: Path) -> None:
        """Write the URL into a file, which is whole when it is there."""
        part = file.with_name(file.name + ".part")
        part.write_text(self.url + "\n")
        part.replace(file)

    def serve_beside(self, command: Sequence[str]) -> int:
        """Serve as long as a command runs, {endpoint} in it standing for the URL.

        Its exit status, as a shell gives it; SystemExit when it cannot be started. SIGTERM is
        handed on; an interrupt of the terminal reaches it by itself. Of the main thread.
        """
        threading.Thread(target=self.serve_forever, daemon=True).start()
        given = [word.replace("{endpoint}", self.url) for word in command]
        try:
            process = subprocess.Popen(given)
        except OSError as error:
            raise SystemExit(f"cannot run {given[0]}: {error}") from None
        signal.signal(signal.SIGTERM, lambda *_: process.terminate())
        while True:
            try:
                code = process.wait()
            except KeyboardInterrupt:
                continue
            return 128 - code if code < 0 else code


class _Handler(BaseHTTPRequestHandler):
    server: ChatServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    timeout = 600  # seconds for a connection that says nothing

    def do_GET(self) -> None:
        if self.path == "/health":
            self._reply(200, {"status": "ok", **self.server.backend.counts()})
        else:
            self._guarded(self._models if self.path == "/v1/models" else self._unknown)

    def do_POST(self) -> None:
        known = self.path == "/v1/chat/completions"
        self._guarded(self._complete if known else self._unknown)

    def _guarded(self, answer: Callable[[], dict[str, Any] | None]) -> None:
        """Send what `answer` gives, or its Refusal; None: nobody listens any more."""
        try:
            sent, key = self.headers.get("Authorization", ""), f"Bearer {self.server.key}"
            if self.server.key and not hmac.compare_digest(sent.encode(), key.encode()):
                raise Refusal(401, "invalid_api_key", "send the key as Authorization: Bearer KEY")
            body = answer()
        except Refusal as refusal:
            self.close_connection = True  # what was sent may not have been read
            kind = "server_error" if refusal.status >= 500 else "invalid_request_error"
            error = {"message": str(refusal), "type": kind, "param": None, "code": refusal.code}
            self._reply(refusal.status, {"error": error})
        else:
            if body is None:
                self.close_connection = True
            else:
                self._reply(200, body)

    def _unknown(self) -> dict[str, Any]:
        raise Refusal(404, "not_found", f"there is no {self.command} {self.path}")

    def _models(self) -> dict[str, Any]:
        return {"object": "list", "data": [{"id": self.server.backend.model, "object": "model"}]}

    def _complete(self) -> dict[str, Any] | None:
        backend = self.server.backend
        ask = parse(self._read())
        if ask.model != backend.model:
            why = f"the model {ask.model!r} does not exist; this server has {backend.model!r}"
            raise Refusal(404, "model_not_found", why)
        ticket = backend.submit(ask)
        while not ticket.done.wait(CHECK_S):
            if self._hung_up():
                ticket.gone = True
                return None
        if not ticket.finish:
            raise Refusal(500, "engine_failed", "decoding failed; the server says why and ends")
        counts = len(ticket.prompt), len(ticket.tokens)
        names = ("prompt_tokens", "completion_tokens", "total_tokens")
        message = {"role": "assistant", "content": ticket.text}
        return {
            "id": f"chatcmpl-{random.getrandbits(96):024x}",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": backend.model,
            "choices": [{"index": 0, "message": message, "finish_reason": ticket.finish}],
            "usage": dict(zip(names, (*counts, sum(counts)), strict=True)),
            "system_fingerprint": backend.fingerprint,
        }

    def _read(self) -> bytes:
        size = self.headers.get("Content-Length", "")
        if not size.isdecimal():
            raise Refusal(411, "length_required", "send the body with its Content-Length")
        if int(size) > BODY_BYTES:
            why = f"the body has {size} bytes; {BODY_BYTES} are the most"
            raise Refusal(413, "request_too_large", why)
        return self.rfile.read(int(size))

    def _hung_up(self) -> bool:
        try:
            heard = select.select([self.connection], [], [], 0)[0]
            return bool(heard) and not self.connection.recv(1, socket.MSG_PEEK)
        except OSError:
            return True

    def _reply(self, status: int, body: dict[str, Any]) -> None:
        data = json.dumps(body, ensure_ascii=False).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        if status == 429:
            self.send_header("Retry-After", "1")
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Say nothing of single requests."""
