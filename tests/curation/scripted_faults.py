"""How the scripted endpoint answers, well and badly: what is sent, and who pays for it."""

import copy
import json
import re
from dataclasses import dataclass, field
from typing import Any, Literal

# A client cannot use these answers.
FAULTS = (
    "http_NNN",  # any status; http_429 and http_503 say Retry-After, http_429_bare does not
    "echo_key",  # HTTP 400 that repeats the authorization header
    "drop_before",  # the connection is reset before the first byte
    "drop_headers",  # closed in the middle of the headers
    "drop_middle",  # reset in the middle of the body
    "truncated",  # closed in the middle of a body whose length was announced
    "broken_json",  # cut short, its length fits
    "bad_bytes",  # no UTF-8
    "html",
    "error_200",  # an "error" where the choices should be
    "no_choices",
    "not_an_object",
    "deep_json",  # deeper than a reader goes
    "null_content",  # this one and the next two are billed: the endpoint thinks it has answered
    "empty_content",
    "list_content",
    "slow",  # nothing for `slow_s`, then a good answer
    "trickle",  # a good answer, a byte at a time over `slow_s`
)
# These it can.
ODD = (
    "ok",
    "slow_ok",  # after a tenth of a second
    "no_usage",
    "wrong_usage",  # words and negative numbers
    "usage_text",  # where an object should be
    "close_after",  # the connection, without a word
    "chunked",
    "length",  # the text is cut short
    "surrogate",  # half a pair at the end of the text
)


@dataclass(frozen=True)
class Options:
    ledger: str
    script: str = "echo"
    seed: int = 1
    port: int = 0
    rates: dict[str, float] = field(default_factory=dict)  # of kinds; the rest is "ok"
    faults_at_most: int = 2  # attempts of a request that `rates` may spoil; ok from then on
    idempotent: bool = True  # a key that got its answer gets it again, and is not charged again
    charge_lost: bool = False  # charge, and remember, good answers that a broken connection lost
    latency_s: float = 0.0  # from half to one and a half of it, by request and attempt
    slow_s: float = 30.0
    retry_after: str = "0.2"  # seconds, or anything else that a server may write there
    most_in_s: int = 0  # answers in a window; more are "limited": HTTP 429. 0: no limit
    window_s: float = 1.0
    key: str = ""  # that clients must send


@dataclass(frozen=True)
class Sent:
    """What goes to the client."""

    data: bytes
    # good: a client can use it. lost: it could, had the connection held. billed: it cannot, and
    # pays. nothing: no answer was made.
    state: Literal["good", "lost", "billed", "nothing"]
    usage: tuple[int, int] = (0, 0)  # input and output tokens
    then: Literal["stays", "closes", "resets"] = "stays"  # what the connection does
    whole: bool = True


def known(kind: str) -> bool:
    status = re.fullmatch(r"http_[1-9]\d\d(_bare)?", kind)
    return status is not None or kind in (*FAULTS[1:], *ODD, "limited")


def say(status: int, body: Any, *headers: str, length: int | None = None) -> bytes:
    """A whole HTTP answer; `body` is JSON to be written, or bytes as they are."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    size = f"content-length: {len(data) if length is None else length}"
    head = [f"HTTP/1.1 {status} So", "content-type: application/json", *headers, size]
    return "\r\n".join([*head, "", ""]).encode() + data


def spoil(kind: str, answer: dict[str, Any], options: Options, headers: dict[str, str]) -> Sent:
    """The answer as this kind sends it."""
    if not known(kind):
        return Sent(say(418, {"error": {"message": f"no kind {kind}"}}), "nothing")
    if kind == "limited":
        return _status("http_429", options)
    if kind.startswith("http_"):
        return _status(kind, options)
    if kind in ODD:
        return _odd(kind, copy.deepcopy(answer))
    body = json.dumps(answer).encode()
    head = say(200, b"", length=len(body))
    half = body[: len(body) // 2]
    usage = _usage(answer)
    lost: dict[str, Sent] = {
        "drop_before": Sent(b"", "lost", usage, "resets", whole=False),
        "drop_headers": Sent(head[: len(head) // 2], "lost", usage, "closes", whole=False),
        "drop_middle": Sent(head + half, "lost", usage, "resets", whole=False),
        "truncated": Sent(head + half, "lost", usage, "closes", whole=False),
        "trickle": Sent(head + body, "lost", usage, whole=False),
        "slow": Sent(head + body, "good", usage),
    }
    if kind in lost:
        return lost[kind]
    message = answer["choices"][0]["message"]
    contents: dict[str, Any] = {
        "null_content": None,
        "empty_content": "",
        "list_content": [{"type": "text", "text": message["content"]}],
    }
    if kind in contents:
        other = copy.deepcopy(answer)
        other["choices"][0]["message"] = {"role": "assistant", "content": contents[kind]}
        if kind != "list_content":
            other["usage"]["completion_tokens"] = 0
            other["usage"]["total_tokens"] = other["usage"]["prompt_tokens"]
        return Sent(say(200, other), "billed", _usage(other))
    key = headers.get("authorization", "")
    bodies: dict[str, bytes] = {
        "echo_key": say(400, {"error": {"message": f"I do not like {key} at all"}}),
        "broken_json": say(200, half),
        "bad_bytes": say(200, half + b"\xff\xfe" + body[len(half) :]),
        "html": say(200, b"<html><body>Welcome to the proxy</body></html>"),
        "error_200": say(200, {"error": {"message": "overloaded", "code": 529}}),
        "no_choices": say(200, answer | {"choices": []} | {"usage": None}),
        "not_an_object": say(200, b"[]"),
        "deep_json": say(200, b"[" * 100_000 + b"]" * 100_000),
    }
    return Sent(bodies[kind], "nothing")


def _status(kind: str, options: Options) -> Sent:
    status = int(kind.split("_")[1])
    later = [f"retry-after: {options.retry_after}"] if kind in ("http_429", "http_503") else []
    if status // 100 == 3:
        later = ["location: /v1/models"]
    error = {"error": {"message": f"scripted {status}", "type": "scripted"}}
    return Sent(say(status, error, *later), "nothing")


def _odd(kind: str, answer: dict[str, Any]) -> Sent:
    usage, choice = _usage(answer), answer["choices"][0]
    if kind == "no_usage":
        del answer["usage"]
    elif kind == "wrong_usage":
        answer["usage"] = {"prompt_tokens": "many", "completion_tokens": -3}
    elif kind == "usage_text":
        answer["usage"] = "many"
    elif kind == "surrogate":
        choice["message"]["content"] += " \ud83d"
    elif kind == "length":
        words = re.findall(r"\s*\S+", choice["message"]["content"])
        left = max(len(words) // 2, 1)
        choice["message"]["content"] = "".join(words[:left])
        choice["finish_reason"] = "length"
        answer["usage"]["completion_tokens"] -= len(words) - left
        answer["usage"]["total_tokens"] -= len(words) - left
        usage = _usage(answer)
    elif kind == "chunked":
        data = json.dumps(answer).encode()
        head = "HTTP/1.1 200 So\r\ncontent-type: application/json\r\ntransfer-encoding: chunked"
        parts = [data[at : at + 50] for at in range(0, len(data), 50)]
        chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts)
        return Sent(head.encode() + b"\r\n\r\n" + chunks + b"0\r\n\r\n", "good", usage)
    then: Literal["stays", "closes"] = "closes" if kind == "close_after" else "stays"
    return Sent(say(200, answer), "good", usage, then)


def _usage(answer: dict[str, Any]) -> tuple[int, int]:
    return answer["usage"]["prompt_tokens"], answer["usage"]["completion_tokens"]
