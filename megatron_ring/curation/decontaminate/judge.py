"""Models behind OpenAI-compatible endpoints: a judge of two texts, and embeddings."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from megatron_ring.config.curation.decontaminate import JudgeConfig
from megatron_ring.config.curation.endpoint import EndpointConfig
from megatron_ring.curation.endpoint import Endpoint, read_choice

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


class Judge:
    """Says whether two texts are one problem. A dead endpoint is an error, not a verdict."""

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
    word = read_choice(said, ("yes", "no"))
    return None if word is None else word == "yes"


def _content(reply: Any) -> str:
    try:
        return str(reply["choices"][0]["message"]["content"] or "")
    except (KeyError, IndexError, TypeError):
        return ""


class Embedder:
    """Texts -> unit vectors, float32 [texts, width]."""

    def __init__(self, options: EndpointConfig) -> None:
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
