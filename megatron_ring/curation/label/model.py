"""A linear labeller over hashed n-grams: fitted in seconds, a file below a megabyte, no torch.

Each node with children is a softmax of its own over them. A row may leave open which of several
children it is; a first fit, on rows that do not, then says how likely each of these is.
"""

import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from megatron_ring.config.base import ConfigError
from megatron_ring.curation.label.features import BUCKETS, features, weighted
from megatron_ring.curation.label.scores import Heads

OWN_FILE = Path(__file__).with_name("labeller.npz")  # tools/train_labeller.py makes it
# Fitting: chosen by the held-out log-likelihood of the domain over a few tries; flat around these.
EPOCHS, FIRST_EPOCHS, RATE, DECAY = 8, 3, 0.5, 2e-6
BATCH, LEAST_BATCH, BATCHES = 128, 8, 50  # a small set is cut into 50 batches, or into eights
BALANCE = 0.5  # 0: every row counts the same; 1: every child does


@dataclass(frozen=True)
class Row:
    """A text and what it may be."""

    text: str
    paths: tuple[str, ...]  # one, or all that fit; a path may end above the leaves
    source: str = ""
    weight: float = 1.0


@dataclass(frozen=True)
class Head:
    """One fitted softmax."""

    weights: np.ndarray  # (BUCKETS, children) float32
    bias: np.ndarray  # (children,) float32
    temperature: float = 1.0  # logits are divided by it


class LinearLabeller:
    """See module docstring; a `Scorer`."""

    def __init__(self, heads: Heads, idf: np.ndarray, fitted: dict[str, Head], about: Any) -> None:
        self.heads, self.idf, self.fitted, self.about = heads, idf, fitted, about
        self.names = list(heads)
        # All softmaxes in one matrix: a text's rows of it are gathered once.
        self._weights = np.concatenate([fitted[name].weights for name in self.names], axis=1)

    def raw(self, text: str) -> dict[str, np.ndarray]:
        """Logits before calibration."""
        buckets, values = weighted(text, self.idf)
        every = values @ self._weights[buckets]
        ends = np.cumsum([len(self.heads[name]) for name in self.names])[:-1]
        parts = np.split(every, ends)
        return {n: part + self.fitted[n].bias for n, part in zip(self.names, parts, strict=True)}

    def logits(self, text: str) -> dict[str, np.ndarray]:
        return {n: values / self.fitted[n].temperature for n, values in self.raw(text).items()}

    def calibrated(self, temperatures: dict[str, float]) -> "LinearLabeller":
        """The same with other temperatures."""
        fitted = {
            name: Head(head.weights, head.bias, temperatures.get(name, head.temperature))
            for name, head in self.fitted.items()
        }
        return LinearLabeller(self.heads, self.idf, fitted, self.about)

    def save(self, file: Path, keep: float) -> None:
        """Write the model with that share of its weights, the largest of each softmax, in 8 bits.

        Two runs on one machine write the same bytes.
        """
        arrays: dict[str, np.ndarray] = {"idf": self.idf.astype(np.float16)}
        for name, head in self.fitted.items():
            limit = np.quantile(np.abs(head.weights), 1 - keep)
            scale = max(float(np.abs(head.weights).max()) / 127, 1e-12)
            small = np.where(np.abs(head.weights) > limit, head.weights, 0) / scale
            # Children side by side in memory: runs of zeros are long, and the file is small.
            arrays[f"weights:{name}"] = np.round(small).astype(np.int8).T.copy()
            arrays[f"bias:{name}"] = head.bias.astype(np.float32)
            arrays[f"scale:{name}"] = np.asarray([scale, head.temperature], np.float32)
        about = {"heads": {name: list(paths) for name, paths in self.heads.items()}}
        text = json.dumps(about | {"about": self.about}, ensure_ascii=False)
        arrays["about"] = np.frombuffer(text.encode(), np.uint8)
        np.savez_compressed(file, **arrays)


def load_labeller(file: Path, heads: Heads) -> LinearLabeller:
    """A saved model; ConfigError when it is none, or was fitted for another taxonomy."""
    try:
        with np.load(file, allow_pickle=False) as found:
            arrays = {name: found[name] for name in found.files}
        about = json.loads(arrays["about"].tobytes())
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise ConfigError(f"cannot read the labeller {file}: {error}") from None
    own = {name: tuple(paths) for name, paths in about["heads"].items()}
    if own != heads:
        mine = {path for paths in heads.values() for path in paths}
        its = {path for paths in own.values() for path in paths}
        apart = sorted(mine ^ its)[:3] or ["their order"]
        raise ConfigError(
            f"the labeller {file} was fitted for another taxonomy (they differ in "
            f"{', '.join(apart)}); fit one with tools/train_labeller.py"
        )
    fitted = {}
    for name in heads:
        scale, temperature = arrays[f"scale:{name}"]
        weights = arrays[f"weights:{name}"].T.astype(np.float32) * scale
        fitted[name] = Head(weights, arrays[f"bias:{name}"], float(temperature))
    return LinearLabeller(heads, arrays["idf"].astype(np.float32), fitted, about["about"])


def fit(rows: Sequence[Row], heads: Heads, seed: int = 0, about: Any = None) -> LinearLabeller:
    """The labeller that makes `rows` likely. Same rows, same order, same seed: same labeller."""
    bags = [features(row.text) for row in rows]
    seen = np.zeros(BUCKETS)
    for buckets, _ in bags:
        seen[buckets] += 1
    idf = np.log((1 + len(rows)) / (1 + seen)).astype(np.float32)
    bags = [(b, (v := w * idf[b]) / max(float(np.linalg.norm(v)), 1e-12)) for b, w in bags]
    fitted = {}
    for name, paths in heads.items():
        masks = [mask_of(row.paths, name, paths) for row in rows]
        at = [i for i, mask in enumerate(masks) if mask is not None and len(bags[i][0])]
        if not at:
            empty = np.zeros((BUCKETS, len(paths)), np.float32)
            fitted[name] = Head(empty, np.zeros(len(paths), np.float32))
            continue
        own = [bags[i] for i in at]
        mask_NC = np.asarray([masks[i] for i in at])
        weights = np.asarray([rows[i].weight for i in at])
        sure = np.flatnonzero(mask_NC.sum(1) == 1)
        goal_NC = mask_NC / mask_NC.sum(1, keepdims=True)
        if 0 < len(sure) < len(at):
            # Left free, rows of several topics all become the one topic that all of them may be.
            first = _fit_head(
                [own[i] for i in sure], goal_NC[sure], weights[sure], seed, FIRST_EPOCHS
            )
            goal_NC = mask_NC * np.stack([_chances(first, *bag) for bag in own])
            goal_NC /= goal_NC.sum(1, keepdims=True)
        fitted[name] = _fit_head(own, goal_NC, weights, seed)
    return LinearLabeller(heads, idf, fitted, about)


def _chances(head: Head, buckets: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Softmax over a head's children, none of them below 1e-6."""
    logits = values @ head.weights[buckets] + head.bias
    chances = np.exp(logits - logits.max())
    return np.maximum(chances / chances.sum(), 1e-6)


def mask_of(paths: Sequence[str], head: str, children: Sequence[str]) -> np.ndarray | None:
    """Which children of `head` a row of these paths may be; None when it says nothing of them."""
    if not all(path.startswith(f"{head}/") if head else path for path in paths):
        return None
    mask = np.asarray([any(_within(path, child) for path in paths) for child in children])
    if mask.all() or not all(any(_within(path, child) for child in children) for path in paths):
        return None
    return mask


def _within(path: str, node: str) -> bool:
    return path == node or path.startswith(f"{node}/")


def _fit_head(
    bags: list[tuple[np.ndarray, np.ndarray]],
    goal_NC: np.ndarray,
    weights: np.ndarray,
    seed: int,
    epochs: int = EPOCHS,
) -> Head:
    """Adagrad on the cross-entropy to goal_NC, (rows, children), whose rows add up to 1.

    Rows of rare children weigh more, by a root of their rarity.
    """
    num_children = goal_NC.shape[1]
    weight_BC = np.zeros((BUCKETS, num_children), np.float32)
    bias_C = np.zeros(num_children, np.float32)
    rarity = np.maximum((goal_NC * weights[:, None]).sum(0), 1) ** -BALANCE
    weights = weights * (goal_NC * rarity).sum(1)
    weights = (weights / weights.mean()).astype(np.float32)
    goal_NC = goal_NC.astype(np.float32)
    squares_BC, squares_C = np.full_like(weight_BC, 1e-4), np.full_like(bias_C, 1e-4)
    batch = min(max(len(bags) // BATCHES, LEAST_BATCH), BATCH)
    rng = np.random.default_rng(seed)
    for epoch in range(epochs):
        order = rng.permutation(len(bags))
        rate = RATE * (1 - epoch / epochs)
        for start in range(0, len(order), batch):
            at = order[start : start + batch]
            buckets = np.concatenate([bags[i][0] for i in at])
            values = np.concatenate([bags[i][1] for i in at])
            lengths = [len(bags[i][0]) for i in at]
            firsts = np.cumsum([0, *lengths[:-1]])
            logits = np.add.reduceat(values[:, None] * weight_BC[buckets], firsts) + bias_C
            gradient = _gradient(logits, goal_NC[at]) * (weights[at] / len(at))[:, None]
            # The gradient of each weight: its entries summed, in an order that does not change.
            by_bucket = np.argsort(buckets, kind="stable")
            touched, begins = np.unique(buckets[by_bucket], return_index=True)
            entries = values[:, None] * np.repeat(gradient, lengths, axis=0)
            step = np.add.reduceat(entries[by_bucket], begins)
            step += DECAY * weight_BC[touched]
            squares_BC[touched] += step**2
            weight_BC[touched] -= rate * step / np.sqrt(squares_BC[touched])
            total = gradient.sum(0)
            squares_C += total**2
            bias_C -= 0.1 * rate * total / np.sqrt(squares_C)
    return Head(weight_BC, bias_C)


def _gradient(logits: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """Of the cross-entropy -sum(goal ln p) by the logits: p - goal. (rows, children) float32"""
    chances = np.exp(logits - logits.max(1, keepdims=True))
    return chances / chances.sum(1, keepdims=True) - goal


def temperature_of(logits: Sequence[np.ndarray], masks: Sequence[np.ndarray]) -> float:
    """The temperature, from 0.25 to 8, under which the masked children are likeliest."""
    logits_NC, masks_NC = np.stack(logits).astype(np.float64), np.stack(masks)
    logits_NC -= logits_NC.max(1, keepdims=True)
    best = (np.inf, 1.0)
    for temperature in np.geomspace(0.25, 8, 61):
        chances = np.exp(logits_NC / temperature)
        right = (chances * masks_NC).sum(1) / chances.sum(1)
        best = min(best, (-np.log(np.maximum(right, 1e-12)).sum(), float(temperature)))
    return best[1]
