"""Asks an endpoint, as a stage does; also as a program of its own, to be killed.

`python -m tests.curation.asking '{"options": {...}, "prompts": [...], "samples": 2, "out": ...}'`
writes the texts of all replies, in order, when it has them all.
"""

import json
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from megatron_ring.config.curation.generate import GeneratorConfig
from megatron_ring.curation.generate import Client, NoAnswerError, RefusedError, Reply, Request
from tests.curation.scripted import ROOT, Serving


def options(server: Serving | str, replies: Path, **more: Any) -> dict[str, Any]:
    """Of a client that is patient in small steps."""
    url = server if isinstance(server, str) else server.url
    own = {"retry_wait_s": 0.01, "timeout_s": 20, "max_tokens": 50}
    return {"endpoint": url, "model": "m", "replies": str(replies)} | own | more


def client(server: Serving | str, replies: Path, **more: Any) -> Client:
    return Client(GeneratorConfig(**options(server, replies, **more)))


def request(prompt: str, sample: int = 0, **more: Any) -> Request:
    return Request(messages=({"role": "user", "content": prompt},), sample=sample, **more)


def ask(asked: Client, *requests: Request | str) -> list[Reply | RefusedError]:
    """Replies in order; a request that is refused leaves its error."""

    async def one(what: Request | str) -> Reply | RefusedError:
        try:
            return await asked.ask(request(what) if isinstance(what, str) else what)
        except RefusedError as error:
            return error

    return asked.gather([one(what) for what in requests])


def warm_up(replies: Path) -> None:
    """Lets httpx import what it imports at its first request: on a busy machine a second's work."""
    asked = client("http://127.0.0.1:1/v1", replies, retries=0)
    with suppress(NoAnswerError):
        ask(asked, "anyone?")
    asked.close()


def texts(replies: list[Reply | RefusedError]) -> list[str]:
    return [one.text if isinstance(one, Reply) else "refused" for one in replies]


def start(work: dict[str, Any]) -> subprocess.Popen[str]:
    """The program, started."""
    command = [sys.executable, "-m", "tests.curation.asking", json.dumps(work)]
    return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)


def main(work: dict[str, Any]) -> None:
    asked = Client(GeneratorConfig(**work["options"]))
    numbers = range(work["samples"])
    found = texts(ask(asked, *[request(p, n) for p in work["prompts"] for n in numbers]))
    asked.close()
    part = Path(work["out"] + ".part")
    part.write_text(json.dumps(found))
    os.replace(part, work["out"])


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
