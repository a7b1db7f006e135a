"""Records that were there before: exactly, or nearly (MinHash, checked by true similarity)."""

import base64
import re
import unicodedata
from collections.abc import Iterable
from typing import Any

import numpy as np
import xxhash

from megatron_ring.config.curation.dedup import ExactConfig, MinHashConfig
from megatron_ring.curation.collect.cells import other_kind
from megatron_ring.curation.record import Record, Rejection, prompt_of, response_of

# A Chinese, Japanese or Korean character, or a run of other letters and digits.
CJK = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff"
WORD = re.compile(rf"[{CJK}]|[^\W_{CJK}]+")


class Exact:
    """Of records whose normal text is the same, one stays."""

    def __init__(self, options: ExactConfig) -> None:
        self.options = options

    def summarise(self, record: Record) -> list[Any] | None:
        """Hash of the normal text (128 bits, hexadecimal) and the answer's characters; None of
        records of other kinds."""
        if other_kind(record, self.options.kinds):
            return None
        text = normal(compared_text(record, self.options.text))
        return [xxhash.xxh3_128_hexdigest(text.encode()), len(response_of(record) or "")]

    def decide(self, summaries: Iterable[tuple[str, list[Any] | None]]) -> dict[str, Rejection]:
        """All but the preferred one of equal records go."""
        groups: dict[str, list[tuple[str, int]]] = {}
        for name, summary in summaries:
            if summary is not None:
                digest, length = summary
                groups.setdefault(digest, []).append((name, length))
        what = "prompt" if self.options.text == "prompt" else "prompt and response"
        gone = {}
        for members in groups.values():
            kept, _ = _preferred(members, self.options.prefer)
            evidence = f"same {what} as {kept}"
            gone |= {name: Rejection("duplicate", evidence) for name, _ in members if name != kept}
        return gone


class MinHash:
    """Of records with similar text, one stays: sets of word n-grams with a high Jaccard similarity.

    Signatures (Broder 1997) propose pairs: those with all hashes of a band equal, which at
    similarity s happens with probability 1 - (1 - s^rows)^bands. The true similarity of a pair's
    sets then decides; what is similar to something similar goes with it.
    """

    def __init__(self, options: MinHashConfig) -> None:
        self.options = options
        random = np.random.Generator(np.random.PCG64(options.seed))
        # h -> (a h + b) >> 32 on 64 bits, a odd: nearly a random permutation of 32-bit numbers.
        self.a = random.integers(0, 2**63, options.permutations, dtype=np.uint64) * 2 + 1
        self.b = random.integers(0, 2**63, options.permutations, dtype=np.uint64)

    def summarise(self, record: Record) -> list[Any] | None:
        """Bands' hashes, the set of shingles, the answer's characters; None without any word."""
        options = self.options
        words = words_of(compared_text(record, options.text))
        if not words:
            return None
        hashes = shingles(words, options.ngram)
        rows = options.permutations // options.bands
        signature = (self.a * hashes.astype(np.uint64)[:, None] + self.b) >> np.uint64(32)
        bands = np.ascontiguousarray(signature.min(0).reshape(options.bands, rows))
        digests = np.array([xxhash.xxh3_64_intdigest(band.tobytes()) for band in bands], np.uint64)
        return [_encode(digests), _encode(hashes), len(response_of(record) or "")]

    def decide(self, summaries: Iterable[tuple[str, list[Any] | None]]) -> dict[str, Rejection]:
        """All but the preferred one of each cluster go."""
        names, lengths, digests = [], [], []
        for name, summary in summaries:
            if summary is not None:
                names.append(name)
                lengths.append(summary[2])
                digests.append(_decode(summary[0], np.uint64))
        groups = list(_groups(np.array(digests))) if digests else []
        wanted = {index for group in groups for index in group}
        # Only sets of records that share a bucket are held in memory.
        filled = (summary for _, summary in summaries if summary is not None)
        sets = {i: _decode(s[1], np.uint32) for i, s in enumerate(filled) if i in wanted}
        clusters = _Clusters()
        for group in groups:
            _join_similar(group, sets, clusters, self.options.threshold)
        gone = {}
        for cluster in clusters.all():
            members = [(names[index], lengths[index]) for index in cluster]
            kept, _ = _preferred(members, self.options.prefer)
            for index in cluster:
                other, similarity = clusters.links[index]
                if names[index] != kept:
                    gone[names[index]] = Rejection(
                        "near_duplicate",
                        f"similarity {similarity:.3f} to {names[other]}, from "
                        f"{self.options.threshold} they are one; kept: {kept}",
                    )
        return gone


def compared_text(record: Record, text: str) -> str:
    """The prompt, or with text="both" the answer behind it."""
    prompt = prompt_of(record)
    return prompt if text == "prompt" else f"{prompt}\n{response_of(record) or ''}"


def normal(text: str) -> str:
    """Text without differences of case, white space and Unicode forms (NFKC)."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def words_of(text: str) -> list[str]:
    """Words of the normal text; each CJK character is one."""
    return WORD.findall(normal(text))


def shingles(words: list[str], ngram: int) -> np.ndarray:
    """Hashes uint32 [n], sorted and distinct, of all runs of `ngram` words; of fewer, their own."""
    runs = {" ".join(words[i : i + ngram]) for i in range(max(1, len(words) - ngram + 1))}
    hashes = (xxhash.xxh32_intdigest(run.encode()) for run in runs)
    return np.unique(np.fromiter(hashes, np.uint32, len(runs)))


def jaccard(one: np.ndarray, other: np.ndarray) -> float:
    """Size of the common part of two sets (distinct values) over that of their union."""
    common = len(np.intersect1d(one, other, assume_unique=True))
    return common / (len(one) + len(other) - common)


def _groups(digests: np.ndarray) -> Iterable[list[int]]:
    """Records with the same hash in a column of [records, bands], each group in their order."""
    for band in digests.T:
        order = np.argsort(band, kind="stable")
        ends = np.flatnonzero(np.diff(band[order])) + 1
        for group in np.split(order, ends):
            if len(group) > 1:
                yield group.tolist()


def _join_similar(
    group: list[int], sets: dict[int, np.ndarray], clusters: "_Clusters", threshold: float
) -> None:
    """Join each record of a bucket with the clusters in it that it is similar to."""
    seen: dict[int, list[int]] = {}  # root -> members in this bucket
    for index in group:
        for root in list(seen):
            members = seen[root]
            if clusters.root(index) == clusters.root(members[0]):
                continue
            for other in members:
                if (index, other) in clusters.apart:
                    continue
                similarity = jaccard(sets[index], sets[other])
                if similarity >= threshold:
                    clusters.join(index, other, similarity)
                    break
                clusters.apart.add((index, other))
        merged = [index]
        for root in list(seen):
            if clusters.root(seen[root][0]) == clusters.root(index):
                merged = seen.pop(root) + merged
        seen[clusters.root(index)] = merged


class _Clusters:
    """Union-find over records; the root of a cluster is its first record."""

    def __init__(self) -> None:
        self.parents: dict[int, int] = {}
        self.links: dict[int, tuple[int, float]] = {}  # first similar record found, and how much
        self.apart: set[tuple[int, int]] = set()  # compared, not similar

    def root(self, index: int) -> int:
        while (parent := self.parents.get(index, index)) != index:
            self.parents[index] = self.parents.get(parent, parent)  # halve the path
            index = parent
        return index

    def join(self, one: int, other: int, similarity: float) -> None:
        self.links.setdefault(one, (other, similarity))
        self.links.setdefault(other, (one, similarity))
        first, last = sorted((self.root(one), self.root(other)))
        self.parents[last] = first

    def all(self) -> Iterable[list[int]]:
        found: dict[int, list[int]] = {}
        for index in sorted(self.links):
            found.setdefault(self.root(index), []).append(index)
        return found.values()


def _preferred(members: list[tuple[str, int]], prefer: str) -> tuple[str, int]:
    """Of (id, answer's characters) in input order; the first of the longest, or the first."""
    return members[0] if prefer == "first" else max(members, key=lambda member: member[1])


def _encode(array: np.ndarray) -> str:
    return base64.b64encode(array.astype(array.dtype.newbyteorder("<")).tobytes()).decode()


def _decode(text: str, kind: type[np.generic]) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), np.dtype(kind).newbyteorder("<"))
