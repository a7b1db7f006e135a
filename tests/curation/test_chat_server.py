"""The endpoint by itself: what it asks of requests, its errors, and clients that hang up."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from megatron_ring.curation.generate.chat_server import BODY_BYTES, Ask, ChatServer, Refusal, Ticket

HELLO = {"model": "echo", "messages": [{"role": "user", "content": "hello"}]}


class Echo:
    """Answers at once with what was said; "wait" waits until it is let go, "fail" fails."""

    model, fingerprint = "echo", "fp_1"

    def __init__(self) -> None:
        self.tickets: list[Ticket] = []

    def counts(self) -> dict[str, int]:
        return {"active": sum(not one.done.is_set() for one in self.tickets)}

    def submit(self, ask: Ask) -> Ticket:
        said = ask.messages[-1].content
        if said == "full":
            raise Refusal(429, "rate_limit_exceeded", "2 requests wait already")
        ticket = Ticket([1] * len(said), [2, 3], said.upper(), "stop")
        self.tickets.append(ticket)
        if said == "fail":
            ticket.finish = ""
        if said != "wait":
            ticket.done.set()
        return ticket


@pytest.fixture
def server() -> Iterator[ChatServer]:
    one = ChatServer(0, Echo())
    threading.Thread(target=one.serve_forever, args=(0.05,), daemon=True).start()
    yield one
    for ticket in one.backend.tickets:
        ticket.done.set()
    one.shutdown()
    one.server_close()


def post(server: ChatServer, **changes: object) -> httpx.Response:
    return httpx.post(f"{server.url}/chat/completions", json=HELLO | changes)


def said(text: str) -> list[dict]:
    return [{"role": "user", "content": text}]


def test_an_answer_has_openais_shape(server: ChatServer) -> None:
    answer = post(server, temperature=None, seed=3, stop=["a"], max_tokens=5).json()
    assert (
        answer.pop("id").startswith("chatcmpl-") and abs(answer.pop("created") - time.time()) < 60
    )
    assert answer == {
        "object": "chat.completion",
        "model": "echo",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "HELLO"},
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7},
        "system_fingerprint": "fp_1",
    }
    models = httpx.get(f"{server.url}/models").json()
    assert models == {"object": "list", "data": [{"id": "echo", "object": "model"}]}
    health = httpx.get(server.url.removesuffix("/v1") + "/health").json()
    assert health == {"status": "ok", "active": 0}


@pytest.mark.parametrize(
    ("changes", "status", "code", "why"),
    [
        (
            {"model": "gpt"},
            404,
            "model_not_found",
            "the model 'gpt' does not exist; this server has 'echo'",
        ),
        ({"messages": said("full")}, 429, "rate_limit_exceeded", "2 requests wait already"),
        (
            {"messages": said("fail")},
            500,
            "engine_failed",
            "decoding failed; the server says why and ends",
        ),
        (
            {"stream": True},
            400,
            "invalid_value",
            "stream: Input should be False (answers come whole)",
        ),
        (
            {"n": 2, "top_k": 5},
            400,
            "invalid_value",
            "n: Input should be 1 (ask once for each answer); "
            "top_k: Extra inputs are not permitted",
        ),
        (
            {"temperature": -1, "top_p": 0},
            400,
            "invalid_value",
            "temperature: Input should be greater than or equal to 0; "
            "top_p: Input should be greater than 0",
        ),
        (
            {"max_tokens": "9"},
            400,
            "invalid_value",
            "max_tokens: Input should be a valid integer",
        ),
        (
            {"messages": []},
            400,
            "invalid_value",
            "messages: List should have at least 1 item after validation, not 0",
        ),
        (
            {"messages": [{"role": "tool", "content": "x"}]},
            400,
            "invalid_value",
            "messages.0.role: Input should be 'system', 'user' or 'assistant'",
        ),
        (
            {"stop": ["a", ""]},
            400,
            "invalid_value",
            "stop.str: Input should be a valid string; "
            "stop.list[constrained-str].1: String should have at least 1 character",
        ),
    ],
)
def test_refusals(server: ChatServer, changes: dict, status: int, code: str, why: str) -> None:
    reply = post(server, **changes)
    error = reply.json()["error"]
    assert (reply.status_code, error["code"], error["message"]) == (status, code, why)
    assert error["type"] == ("server_error" if status == 500 else "invalid_request_error")
    assert reply.headers.get("Retry-After") == ("1" if status == 429 else None)


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"{", "the body is not JSON: Expecting property name"),
        (b"[1]", "the body is not JSON: an object is wanted"),
        (b"\xff", "the body is not JSON: "),
        (b"[" * 100_000, "the body is not JSON: "),
        (
            json.dumps(HELLO | {"messages": said("\ud800")}).encode(),
            "the body is not JSON: 'utf-8' codec can't encode character '\\ud800'",
        ),
    ],
    ids=["cut", "list", "bytes", "deep", "surrogate"],
)
def test_broken_bodies(server: ChatServer, body: bytes, why: str) -> None:
    reply = httpx.post(f"{server.url}/chat/completions", content=body)
    assert reply.status_code == 400 and reply.json()["error"]["message"].startswith(why)


def test_sizes_and_addresses(server: ChatServer) -> None:
    host = server.url.removesuffix("/v1").removeprefix("http://")
    connection = http.client.HTTPConnection(host)
    connection.putrequest("POST", "/v1/chat/completions")
    connection.putheader("Content-Length", str(BODY_BYTES + 1))
    connection.endheaders()
    reply = connection.getresponse()
    why = json.load(reply)["error"]["message"]
    assert (reply.status, why) == (413, "the body has 4194305 bytes; 4194304 are the most")
    reply = httpx.post(f"{server.url}/chat/completions", content=iter([b"{}"]))
    assert reply.status_code == 411
    assert reply.json()["error"]["message"] == "send the body with its Content-Length"
    reply = httpx.get(f"{server.url}/chat")
    assert reply.status_code == 404
    assert reply.json()["error"]["message"] == "there is no GET /v1/chat"
    assert httpx.post(f"{server.url}/completions", json={}).status_code == 404


def test_a_key_is_asked_for(server: ChatServer) -> None:
    server.key = "sécret"
    for headers in ({}, {"Authorization": "Bearer other"}):
        reply = httpx.get(f"{server.url}/models", headers=headers)
        assert reply.status_code == 401
        why = reply.json()["error"]["message"]
        assert why == "send the key as Authorization: Bearer KEY"
    server.key = "secret"
    headers = {"Authorization": "Bearer secret"}
    assert httpx.get(f"{server.url}/models", headers=headers).status_code == 200


def test_one_connection_serves_many_requests(server: ChatServer) -> None:
    host = server.url.removesuffix("/v1").removeprefix("http://")
    connection = http.client.HTTPConnection(host)
    for text in ("one", "two"):
        body = json.dumps(HELLO | {"messages": said(text)})
        connection.request("POST", "/v1/chat/completions", body)
        address = connection.sock.getsockname()
        answer = json.load(connection.getresponse())
        assert answer["choices"][0]["message"]["content"] == text.upper()
        assert connection.sock.getsockname() == address


def test_a_client_that_hangs_up_is_noticed(server: ChatServer) -> None:
    body = json.dumps(HELLO | {"messages": said("wait")})
    with socket.create_connection(server.server_address[:2]) as one:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: {len(body)}\r\n\r\n"
        one.sendall((head + body).encode())
        until = time.monotonic() + 10
        while not server.backend.tickets and time.monotonic() < until:
            time.sleep(0.01)
        (ticket,) = server.backend.tickets
        time.sleep(0.5)
        assert not ticket.gone
    while not ticket.gone and time.monotonic() < until:
        time.sleep(0.01)
    assert ticket.gone


ASKS = """import sys, httpx
said = httpx.get(sys.argv[1] + "/models").json()["data"][0]["id"]
raise SystemExit(7 if said == "echo" else 1)"""


@pytest.mark.parametrize(
    ("program", "status"),
    [(ASKS, 7), ("pass", 0), ("import os; os.kill(os.getpid(), 15)", 128 + 15)],
)
def test_it_serves_as_long_as_a_command_runs(program: str, status: int) -> None:
    one = ChatServer(0, Echo())
    before = signal.getsignal(signal.SIGTERM)
    try:
        assert one.serve_beside([sys.executable, "-c", program, "{endpoint}"]) == status
    finally:
        signal.signal(signal.SIGTERM, before)
        one.shutdown()
        one.server_close()


def test_a_command_that_cannot_be_run_is_named() -> None:
    one = ChatServer(0, Echo())
    with pytest.raises(SystemExit, match="cannot run no-such-thing: .*No such file"):
        one.serve_beside(["no-such-thing"])
    one.shutdown()
    one.server_close()


SERVES = """import sys
from megatron_ring.curation.generate.chat_server import ChatServer
sys.exit(ChatServer(0, None).serve_beside([sys.executable, "-c", sys.argv[1], sys.argv[2]]))"""
WAITS = """import os, sys, time
with open(sys.argv[1] + ".part", "w") as file:
    file.write(str(os.getpid()))
os.rename(sys.argv[1] + ".part", sys.argv[1])
time.sleep(100)"""


def test_its_end_is_that_of_the_command(tmp_path: Path) -> None:
    """SIGTERM to the server ends both."""
    told = tmp_path / "pid"
    with subprocess.Popen([sys.executable, "-c", SERVES, WAITS, told]) as process:
        for _ in range(1200):
            if told.exists():
                break
            time.sleep(0.05)
        command = int(told.read_text())
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 128 + 15
    with pytest.raises(ProcessLookupError):
        os.kill(command, 0)


def test_the_file_that_is_announced_holds_the_url(server: ChatServer, tmp_path: Path) -> None:
    server.announce(tmp_path / "url")
    assert (tmp_path / "url").read_text() == server.url + "\n"
    assert [file.name for file in tmp_path.iterdir()] == ["url"]
