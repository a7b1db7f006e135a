"""Models behind OpenAI-compatible endpoints: a judge of two texts, and embeddings."""

import re
import time
from collections.abc import Sequence
from typing import Any

import httpx
import numpy as np

from megatron_ring.config.base import ConfigError
from megatron_ring.config.curation.decontaminate import (
    EmbeddingConfig,
    EndpointConfig,
    JudgeConfig,
)

MAX_CHARACTERS = 8000  # of a text that are shown to a model

ASKED = """Two texts follow. Do they pose the same problem, so that whoever has seen one solved \
knows the answer to the other? Other words, another order and other names make no difference; \
other numbers, other conditions or another question do.

<first>
{first}
</first>

<second>
{second}
</second>

Answer yes or no, and nothing else."""


class Endpoint:
    """POSTs JSON; waits and tries again where that may help."""

    def __init__(self, options: EndpointConfig) -> None:
        self._options = options
        headers = {}
        if options.key_file is not None:
            lines = options.key_file.read_text(encoding="utf-8").splitlines()
            if not lines:
                raise ConfigError(f"{options.key_file}: empty, but its first line is the API key")
            headers = {"authorization": f"Bearer {lines[0].strip()}"}
        self._client = httpx.Client(timeout=options.timeout_s, headers=headers)

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """What the endpoint answers. RuntimeError after the last attempt: were a dead endpoint
        taken for an answer, verdicts would depend on its health."""
        url = f"{self._options.endpoint.rstrip('/')}/{path}"
        problem = ""
        for attempt in range(self._options.retries + 1):
            if attempt:
                time.sleep(self._options.retry_wait_s * 2 ** (attempt - 1))
            try:
                reply = self._client.post(url, json={"model": self._options.model, **body})
                if reply.status_code == 200:
                    return reply.json()
                problem = f"HTTP {reply.status_code} {reply.text[:100]}"
                if reply.status_code != 429 and reply.status_code < 500:
                    break  # a wrong key or model name does not get better by waiting
            except (httpx.HTTPError, ValueError) as error:
                problem = f"{type(error).__name__} {error}"
        raise RuntimeError(
            f"{url}: no answer after {attempt + 1} attempts, the last time: {problem}. Start it "
            "and resume the run, or leave out `judge` and `embedding`"
        )


class Judge:
    """Says whether two texts are one problem."""

    def __init__(self, options: JudgeConfig) -> None:
        self._options, self._endpoint = options, Endpoint(options)

    def same(self, text: str, item: str) -> bool | None:
        """Yes or no; None when the model says neither, twice."""
        asked = ASKED.format(first=text[:MAX_CHARACTERS], second=item[:MAX_CHARACTERS])
        body: dict[str, Any] = {
            "messages": [{"role": "user", "content": asked}],
            "temperature": 0,
            "max_tokens": self._options.max_tokens,
        }
        for seed in (0, 1):
            said = _content(self._endpoint.post("chat/completions", {**body, "seed": seed}))
            if (verdict := read_verdict(said)) is not None:
                return verdict
        return None


def read_verdict(said: str) -> bool | None:
    """The yes or no that an answer begins with, behind its thought; None when it has neither."""
    said = re.sub(r"\A.*</think>", "", said, flags=re.DOTALL)
    found = re.match(r"\W*(yes|no)\b", said, flags=re.IGNORECASE)
    return found and found[1].lower() == "yes"


def _content(reply: Any) -> str:
    try:
        return str(reply["choices"][0]["message"]["content"] or "")
    except (KeyError, IndexError, TypeError):
        return ""


class Embedder:
    """Texts -> unit vectors, float32 [texts, width]."""

    def __init__(self, options: EmbeddingConfig) -> None:
        self._endpoint = Endpoint(options)

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        rows: list[list[float]] = []
        for start in range(0, len(texts), 64):
            part = [text[:MAX_CHARACTERS] for text in texts[start : start + 64]]
            reply = self._endpoint.post("embeddings", {"input": part})
            try:
                data = sorted(reply["data"], key=lambda one: one["index"])
                rows += [one["embedding"] for one in data]
            except (KeyError, TypeError) as error:
                raise RuntimeError(f"embeddings of another shape: {error!r}") from None
            if len(rows) != start + len(part):
                raise RuntimeError(f"{len(data)} embeddings for {len(part)} texts")
        vectors = np.array(rows, np.float32)
        return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
