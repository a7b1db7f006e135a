"""Sentence embeddings, by which T-Eval compares plans and thoughts."""

import threading
from collections.abc import Sequence
from functools import cached_property
from importlib.util import find_spec
from typing import Any

import numpy as np

from megatron_ring.config.base import ConfigError

KEPT = 10_000  # embeddings of texts, 6 KB each with the default model


class Embedder:
    """A model of sentence-transformers, loaded when first needed; from any thread."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._one = threading.Lock()
        self._known: dict[str, np.ndarray] = {}

    @cached_property
    def model(self) -> Any:
        """ConfigError where the package or the model is not there, and what to do."""
        instead = "or set grading.embeddings='' to leave plan and reason out of T-Eval's score"
        if find_spec("sentence_transformers") is None:
            raise ConfigError(
                "tasks.teval compares plans and thoughts by sentence-transformers, which is not "
                f"installed: pip install 'megatron-ring[embeddings]', {instead}"
            )
        import sentence_transformers  # slow to import

        try:
            return sentence_transformers.SentenceTransformer(self.name)
        except (OSError, ValueError) as error:  # not found, no network, no such model
            raise ConfigError(
                f"grading.embeddings={self.name}: cannot be loaded: {error}; give the path of a "
                f"copy, {instead}"
            ) from None

    def load(self) -> None:
        """Load it now; ConfigError as `model`."""
        with self._one:
            self.model  # noqa: B018

    def cosines(self, ours: Sequence[str], theirs: Sequence[str]) -> np.ndarray:
        """(ours, theirs) of cosines, nothing below 0. Names of functions come again and again."""
        texts = [*ours, *theirs]
        with self._one:
            if len(self._known) > KEPT:
                self._known.clear()
            if new := [text for text in dict.fromkeys(texts) if text not in self._known]:
                found = np.asarray(self.model.encode(new, show_progress_bar=False), dtype=float)
                lengths = np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12)
                self._known.update(zip(new, found / lengths, strict=True))
            rows = np.stack([self._known[text] for text in texts])
        return np.maximum(rows[: len(ours)] @ rows[len(ours) :].T, 0)
