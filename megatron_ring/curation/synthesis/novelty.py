"""Whether a text is new: not one of the known texts, nor much like one, nor near one in meaning.

What is said of a text follows from the set of known texts, not from the order of their coming.

Known n-grams are arrays of (hash, text), sorted by hash, 12 bytes each. New ones come as an array
of their own; two of like size are merged, so that there are few (O'Neil et al. 1996, log-structured
merge-tree).

Letters: W = words of a batch, T = texts of a batch, G = n-grams, E = width of an embedding.
"""

import base64
import hashlib
from array import array
from collections.abc import Callable, Sequence

import numpy as np
import xxhash

from megatron_ring.config.curation.novelty import NgramsConfig, NoveltyConfig, SemanticConfig
from megatron_ring.curation.decontaminate import words
from megatron_ring.curation.decontaminate.judge import Embedder
from megatron_ring.curation.decontaminate.numbers import SPELLED
from megatron_ring.curation.decontaminate.words import Salt, Words
from megatron_ring.curation.dedup import normal
from megatron_ring.curation.generate.memory import Memory
from megatron_ring.curation.label.embedding import load_encoder
from megatron_ring.curation.record import Rejection

SALT = Salt(b"novelty")  # nothing is kept beyond the process, so nothing is to be hidden
BATCH = 4096  # texts that wait to be split together, which is many times faster than alone
AT_A_TIME = 64  # embeddings that are asked for and then kept
Encode = Callable[[Sequence[str]], np.ndarray]  # texts -> unit vectors, float32 (texts, E)


class Novelty:
    """The known texts. Ids should be distinct; they are named as evidence."""

    def __init__(self, options: NoveltyConfig, memory: Memory | None = None) -> None:
        """`memory` keeps embeddings that an endpoint made: paid once, and the same ever after."""
        self._ids: list[str] = []
        self._digests: dict[bytes, str] = {}
        self._waiting: list[str] = []  # the last texts, not yet compared to
        self._ngrams = Ngrams(options.ngrams) if options.ngrams else None
        self._meanings = Meanings(options.semantic, memory) if options.semantic else None

    def __len__(self) -> int:
        return len(self._ids)

    def add(self, name: str, text: str) -> None:
        """From now on `text` is known, as `name`."""
        self._ids.append(name)
        digest = _digest(text)
        self._digests[digest] = min(name, self._digests.get(digest, name))
        self._waiting.append(text)
        if len(self._waiting) >= BATCH:
            self._take_in()

    def why_known(self, text: str) -> Rejection | None:
        """same_text, ngrams or semantic with the known text it is like; None of a new text."""
        self._take_in()
        if (name := self._digests.get(_digest(text))) is not None:
            return Rejection("same_text", f"same as {name} but for case and white space")
        if self._ngrams is not None:
            share, likest = self._ngrams.likest(text)
            options = self._ngrams.options
            if share >= options.threshold:
                told = f"{share:.3f} of {options.n}-grams shared with {self._name(likest)}"
                return Rejection("ngrams", f"{told}, from {options.threshold} it is known")
        if self._meanings is not None:
            cosine, likest = self._meanings.likest(text)
            lowest = self._meanings.options.similarity
            if cosine >= lowest:
                told = f"cosine {cosine:.3f} to {self._name(likest)}"
                return Rejection("semantic", f"{told}, from {lowest} it is known")
        return None

    def _take_in(self) -> None:
        if self._waiting:
            first = len(self._ids) - len(self._waiting)
            if self._ngrams is not None:
                self._ngrams.add(first, self._waiting)
            if self._meanings is not None:
                self._meanings.add(self._waiting)
            self._waiting = []

    def _name(self, texts: np.ndarray) -> str:
        """Of equally like texts the first by id, so that the order of adding does not show."""
        return min(self._ids[text] for text in texts.tolist())


class Ngrams:
    """The n-grams of known texts, by number of the text."""

    def __init__(self, options: NgramsConfig) -> None:
        self.options = options
        self._parts: list[tuple[np.ndarray, np.ndarray]] = []  # uint64 (G,) ascending, int32 (G,)
        self._sizes = array("i")  # n-grams of each text

    def add(self, first: int, texts: Sequence[str]) -> None:
        """Take in texts first, first + 1, ..."""
        grams, owners = ngrams_of(texts, self.options)
        self._sizes.frombytes(np.bincount(owners, minlength=len(texts)).astype(np.int32).tobytes())
        owners = (owners + first).astype(np.int32)
        while self._parts and len(self._parts[-1][0]) <= 2 * len(grams):
            other, others = self._parts.pop()
            grams, owners = np.concatenate([other, grams]), np.concatenate([others, owners])
        order = np.argsort(grams, kind="stable")
        self._parts.append((grams[order], owners[order]))

    def likest(self, text: str) -> tuple[float, np.ndarray]:
        """The largest share of n-grams in common with one known text, and which texts have it.

        Of the n-grams of the longer one: what a short text shares with a part of a long one is
        mostly boilerplate.
        """
        grams, _ = ngrams_of([text], self.options)
        owners = [np.zeros(0, np.int32)]
        for known, of in self._parts:
            begin, end = (np.searchsorted(known, grams, side=side) for side in ("left", "right"))
            found = np.flatnonzero(end > begin)
            if len(found):
                begin, end = begin[found], end[found]
                owners += [of[a:b] for a, b in zip(begin.tolist(), end.tolist(), strict=True)]
        texts, times = np.unique(np.concatenate(owners), return_counts=True)
        if not len(texts):
            return 0.0, texts
        shares = times / np.maximum(len(grams), np.frombuffer(self._sizes, np.int32)[texts])
        most = shares.max()
        return float(most), texts[shares == most]


class Meanings:
    """The embeddings of known texts, in the order of their coming."""

    def __init__(self, options: SemanticConfig, memory: Memory | None) -> None:
        self.options = options
        self._vectors_NE = np.zeros((0, 0), np.float32)  # with room for more
        self._size = 0
        self._encode: Encode
        if options.embedding is not None:
            embedder = Embedder(options.embedding)
            model = options.embedding.model
            self._encode = embedder if memory is None else Remembered(embedder, model, memory)
        else:
            assert options.folder is not None, "the options say that one of both is set"
            self._encode = load_encoder(options.folder)

    def add(self, texts: Sequence[str]) -> None:
        """Take in texts."""
        new_TE = _unit(self._encode(texts))
        size = self._size + len(texts)
        if size > len(self._vectors_NE):
            wider_NE = np.zeros((max(size, 2 * self._size), new_TE.shape[1]), np.float32)
            if self._size:
                wider_NE[: self._size] = self._vectors_NE[: self._size]
            self._vectors_NE = wider_NE
        self._vectors_NE[self._size : size] = new_TE
        self._size = size

    def likest(self, text: str) -> tuple[float, np.ndarray]:
        """The largest cosine to a known text, and which have it; -1 without any."""
        if not self._size:
            return -1.0, np.zeros(0, np.int64)
        cosines_N = self._vectors_NE[: self._size] @ _unit(self._encode([text]))[0]
        most = cosines_N.max()
        return float(most), np.flatnonzero(cosines_N == most)


class Remembered:
    """An encoder that asks once for each text: its answers may differ in their last bits."""

    def __init__(self, encode: Encode, model: str, memory: Memory) -> None:
        self._encode, self._model, self._memory = encode, model, memory

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        keys = [hashlib.sha256(f"embedding {self._model} {t}".encode()).hexdigest() for t in texts]
        known = {key: self._memory.recall(key) for key in keys}
        missing = {k: t for k, t in zip(keys, texts, strict=True) if known[k] is None}
        for start in range(0, len(missing), AT_A_TIME):
            some = list(missing)[start : start + AT_A_TIME]
            vectors = self._encode([missing[key] for key in some])
            for key, vector in zip(some, vectors, strict=True):
                # Rounded, also the first time.
                known[key] = base64.b64encode(vector.astype("<f2").tobytes()).decode()
                self._memory.keep(key, known[key])
        rows = [np.frombuffer(base64.b64decode(known[key]), "<f2") for key in keys]
        return np.stack(rows).astype(np.float32)


def ngrams_of(texts: Sequence[str], options: NgramsConfig) -> tuple[np.ndarray, np.ndarray]:
    """uint64 (G,), int64 (G,): the distinct n-grams of each text, hashed, and its number.

    A text of fewer words is one n-gram, a text without words has none.
    """
    batch = words.split(texts, SALT)
    hashes_W, owners_W = batch.hashes_W, np.repeat(np.arange(len(texts)), np.diff(batch.first_T))
    if options.mask_numbers:
        hashes_W, owners_W = _masked(batch, owners_W, options.min_words)
    n = options.n
    grams = words.grams(hashes_W, n, SALT)
    inside = owners_W[: len(grams)] == owners_W[n - 1 :]  # not over the end of a text
    sizes_T = np.bincount(owners_W, minlength=len(texts))
    first_T = np.concatenate([[0], np.cumsum(sizes_T)])
    short = np.flatnonzero((sizes_T > 0) & (sizes_T < n))
    whole = [
        words.grams(hashes_W[first_T[t] : first_T[t + 1]], int(sizes_T[t]), SALT) for t in short
    ]
    grams = np.concatenate([grams[inside], *whole])
    owners = np.concatenate([owners_W[: len(inside)][inside], short])
    order = np.lexsort((grams, owners))
    grams, owners = grams[order], owners[order]
    first = np.ones(len(grams), bool)
    first[1:] = (grams[1:] != grams[:-1]) | (owners[1:] != owners[:-1])
    return grams[first], owners[first]


def _masked(batch: Words, owners_W: np.ndarray, min_words: int) -> tuple[np.ndarray, np.ndarray]:
    """The words and their texts, where numbers are all one word; not in texts of few other words.

    2.5 and 1,000 are two words of a batch, and one number.
    """
    number_W = (batch.classes_W == words.NUMBER) | np.isin(batch.hashes_W, _spelled_numbers())
    others_T = np.bincount(owners_W[~number_W], minlength=len(batch.first_T) - 1)
    number_W &= others_T[owners_W] >= min_words
    stops_W = batch.starts_W + batch.lengths_W
    part_W = np.zeros(len(number_W), bool)
    part_W[1:] = number_W[1:] & number_W[:-1] & (batch.starts_W[1:] == stops_W[:-1] + 1)
    part_W[1:] &= np.isin(batch.buffer[stops_W[:-1]], np.frombuffer(b".,", np.uint8))
    return np.where(number_W, np.uint64(0), batch.hashes_W)[~part_W], owners_W[~part_W]


def _spelled_numbers() -> np.ndarray:
    """uint64: two, three, ... as hashes."""
    return np.array([words.hash_of(word.encode(), SALT) for word in SPELLED], np.uint64)


def _digest(text: str) -> bytes:
    return xxhash.xxh3_128_digest(normal(text).encode("utf-8", "replace"))


def _unit(vectors_TE: np.ndarray) -> np.ndarray:
    return vectors_TE / np.maximum(np.linalg.norm(vectors_TE, axis=1, keepdims=True), 1e-9)
