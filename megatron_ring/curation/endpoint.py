"""A model behind an OpenAI-compatible endpoint, asked with patience."""

import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx

from megatron_ring import think
from megatron_ring.config.base import ConfigError
from megatron_ring.config.curation.endpoint import EndpointConfig


class NoAnswerError(RuntimeError):
    """An endpoint did not answer; the last problem is in `problem`."""

    def __init__(self, url: str, attempts: int, problem: str) -> None:
        super().__init__(
            f"{url}: no answer after {attempts} attempts, the last time: {problem}. Start it "
            "and resume the run, or leave out `judge` and `embedding`"
        )
        self.problem = problem


class Endpoint:
    """POSTs JSON; waits and tries again where that may help."""

    def __init__(self, options: EndpointConfig) -> None:
        self._options = options
        headers = (
            {"authorization": f"Bearer {read_key(options.key_file)}"} if options.key_file else {}
        )
        self._client = httpx.Client(timeout=options.timeout_s, headers=headers)

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """The JSON it answers with; NoAnswerError after the last attempt."""
        url = f"{self._options.endpoint.rstrip('/')}/{path}"
        problem, attempt = "", 0
        for attempt in range(1, self._options.retries + 2):
            if attempt > 1:
                time.sleep(self._options.retry_wait_s * 2 ** (attempt - 2))
            try:
                reply = self._client.post(url, json={"model": self._options.model, **body})
                if reply.status_code == 200:
                    return reply.json()
                problem = f"HTTP {reply.status_code} {reply.text[:100]}"
                if reply.status_code != 429 and reply.status_code < 500:
                    break  # a wrong key or model name does not get better by waiting
            except httpx.HTTPError as error:
                problem = f"{type(error).__name__} {error}"
            except ValueError as error:  # no JSON
                problem = f"an answer of another shape: {type(error).__name__} {error}"
        raise NoAnswerError(url, attempt, problem)


def read_choice(said: str, choices: Sequence[str]) -> str | None:
    """The one of `choices` (words) that an answer begins with, behind its thought; None for others.

    Case, marks around it ("**Yes**.") and "Answer:" in front do not matter. An answer whose first
    line names two of them has not chosen.
    """
    words = "|".join(map(re.escape, choices))
    line = think.answer_of(said).strip().partition("\n")[0]
    found = re.match(
        rf"\W*(?:(?:the )?(?:final )?answer\W+(?:is\W+)?)?(?:boxed\W)?({words})\b", line, re.I
    )
    named = {word.lower() for word in re.findall(rf"\b(?:{words})\b", line, re.I)}
    return found[1].lower() if found and len(named) == 1 else None


def read_key(file: Path) -> str:
    """The first line of a file; ConfigError when there is none."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"key_file: cannot read {file}: {error}") from None
    if not lines or not lines[0].strip():
        raise ConfigError(f"key_file={file} has no key on its first line")
    key = lines[0].strip()
    if not (key.isascii() and key.isprintable()):
        raise ConfigError(
            f"key_file={file}: the key holds characters that no HTTP header can; copy it again"
        )
    return key
