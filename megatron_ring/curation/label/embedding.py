"""The labeller by meaning: nearness of a text to the taxonomy's own words, in a model's space.

Needs sentence-transformers (which brings torch) and the folder of a model. Nothing is downloaded.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from megatron_ring.config.base import ConfigError
from megatron_ring.curation.label.model import Row
from megatron_ring.curation.label.scores import Heads

Encode = Callable[[Sequence[str]], np.ndarray]  # texts -> (texts, width) float32
# Cosines of sentence embeddings differ by a few hundredths between subjects.
SHARPNESS = 25.0


class NearestLabeller:
    """A `Scorer`: a node's prototype is the mean of what is known of it and of all below it."""

    def __init__(self, heads: Heads, rows: Sequence[Row], encode: Encode) -> None:
        self.heads, self._encode = heads, encode
        vectors_RE = _unit(encode([row.text for row in rows]))
        weights_R = np.asarray([row.weight for row in rows], np.float32)
        self._prototypes: dict[str, np.ndarray] = {}
        for name, children in heads.items():
            means = []
            for child in children:
                at = [
                    i
                    for i, row in enumerate(rows)
                    if all(path == child or path.startswith(f"{child}/") for path in row.paths)
                ]
                if not at:
                    raise ConfigError(
                        f"nothing is known of {child}: it has neither words nor seeds"
                    )
                means.append((vectors_RE[at] * weights_R[at, None]).sum(0))
            self._prototypes[name] = _unit(np.stack(means))  # (children, width)

    def logits(self, text: str) -> dict[str, np.ndarray]:
        vector = _unit(self._encode([text]))[0]
        return {name: SHARPNESS * (p_CE @ vector) for name, p_CE in self._prototypes.items()}


def load_encoder(folder: Path) -> Encode:
    """The model in `folder`; ConfigError when it, or sentence-transformers, is not there."""
    if not folder.is_dir():
        raise ConfigError(f"embedding_model={folder} is no folder of a model")
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError:
        raise ConfigError(
            "method=embeddings needs sentence-transformers: pip install 'megatron-ring[embeddings]'"
        ) from None
    model = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    return lambda texts: model.encode(list(texts), show_progress_bar=False)


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
