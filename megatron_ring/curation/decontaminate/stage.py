"""The stage: n-grams, then neighbours, the guard of numbers, and a judge where there is one."""

import json
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from megatron_ring.config.base import ConfigError
from megatron_ring.config.curation.decontaminate import DecontaminateConfig
from megatron_ring.curation.decontaminate import numbers, words
from megatron_ring.curation.decontaminate.benchmark_file import read_items, sha256_of
from megatron_ring.curation.decontaminate.fingerprints import Fingerprint, load, open_salt
from megatron_ring.curation.decontaminate.judge import Embedder, Judge
from megatron_ring.curation.decontaminate.neighbours import NeighbourSearch
from megatron_ring.curation.decontaminate.ngrams import Found, NgramSearch
from megatron_ring.curation.decontaminate.words import Words
from megatron_ring.curation.record import Record, Rejection, prompt_of

BATCH_CHARACTERS = 1 << 19  # of 2^17 to 2^19 the fastest; more needs more memory at once
FEW_NUMBERS = 3
SHOWN = 200  # characters of a span in a rejection's evidence

Embed = Callable[[Sequence[str]], np.ndarray]  # texts -> unit vectors [texts, width]


class Verdict(NamedTuple):
    """An item of a benchmark near a text, and how near."""

    rule: str  # n-grams, whole text, neighbour, judge, judge unclear; numbers changed: another one
    benchmark: str
    item: str
    score: float  # coverage, or overlap of words, or cosine
    span: str  # what of the text was matched

    @property
    def contaminated(self) -> bool:
        """Is it the same problem?"""
        return self.rule != "numbers changed"


class Decontaminate:
    """Drops records that hold an item of a benchmark. Their evidence names item, score and span."""

    batch = 256  # a judge and embeddings are asked for many at a time

    def __init__(self, options: DecontaminateConfig, embed: Embed | None = None) -> None:
        """ConfigError: a file is missing, damaged, or does not go with the others. `embed` takes
        the place of the endpoint in options.embedding."""
        words.keep_memory()
        self.options = options
        self.salt = open_salt(options.salt)
        prints = [load(file, self.salt) for file in options.fingerprints]
        self._same_n(prints)
        self._items = [item for one in prints for item in one.items]
        self._benchmarks = [one.name for one in prints for _ in one.items]
        self._numbers = [item.numbers.tolist() for item in self._items]
        self._ngrams = NgramSearch(self._items, prints[0].n, options.coverage, self.salt)
        near = options.neighbours
        self._neighbours = near and NeighbourSearch(
            self._items, near.unsure if options.judge else near.same, self.salt
        )
        self._judge = options.judge and Judge(options.judge)
        self._texts = self._read_texts(prints) if options.judge else []
        self._embed = None
        if options.embedding is not None:
            self._embed = embed or Embedder(options.embedding)
            self._vectors = self._embed(self._texts)

    def apply(self, record: Record) -> Record | Rejection:
        """The record, or why it goes."""
        return self.apply_batch([record])[0]

    def apply_batch(self, records: Sequence[Record]) -> list[Record | Rejection]:
        """What `apply` says of each; many at a time are many times faster."""
        return [
            self._decide(record, verdicts)
            for record, verdicts in zip(records, self.check(records), strict=True)
        ]

    def check(self, records: Sequence[Record]) -> list[list[Verdict]]:
        """For each record the items found: contaminated first, then by score."""
        prompts = [prompt_of(record) for record in records]
        verdicts = self.check_texts(prompts)
        if self.options.text == "all":
            said = [(number, text) for number, one in enumerate(records) for text in _said(one)]
            # An answer is no paraphrase of a problem, but it may quote one.
            quoted = self.check_texts([text for _, text in said], near=False)
            for (number, _), found in zip(said, quoted, strict=True):
                verdicts[number] += found
        return [sorted(set(found), key=_order) if found else found for found in verdicts]

    def check_texts(self, texts: Sequence[str], near: bool = True) -> list[list[Verdict]]:
        """For each text the items found: by n-grams, and if `near` by neighbours too."""
        verdicts: list[list[Verdict]] = [[] for _ in texts]
        near = near and self._neighbours is not None
        for start, stop in batches(texts):
            part = texts[start:stop]
            batch = words.split(part, self.salt)
            done, known = set(), set()
            for found in self._ngrams.search(batch):
                verdict = self._by_ngrams(found, batch, part[found.text])
                verdicts[start + found.text].append(verdict)
                if near:
                    known.add((found.text, found.item))
                    if verdict.contaminated:
                        done.add(found.text)
            if not near:
                continue
            for text, item, score, certain in self._near(batch, part):
                if text in done or (text, item) in known:
                    continue
                known.add((text, item))
                verdict = self._by_neighbour(part[text], item, score, certain)
                if verdict is not None:
                    verdicts[start + text].append(verdict)
        return verdicts

    def _decide(self, record: Record, verdicts: list[Verdict]) -> Record | Rejection:
        if not verdicts:
            return record
        best = verdicts[0]
        if not best.contaminated and self.options.numbers_changed == "keep":
            extra = record.get("extra", {})
            noted = {**extra, "numbers_changed_from": f"{best.benchmark}/{best.item}"}
            return {**record, "extra": noted}
        reason = "contaminated" if best.contaminated else "numbers_changed"
        others = f" (and {len(verdicts) - 1} more)" if len(verdicts) > 1 else ""
        span = " ".join(best.span.split())
        span = span if len(span) <= SHOWN else span[: SHOWN - 1] + "…"
        return Rejection(
            reason,
            f"{best.benchmark} item {best.item}{others}, {best.rule} {best.score:.2f}: {span}",
        )

    def _by_ngrams(self, found: Found, batch: Words, text: str) -> Verdict:
        rule = "whole text" if self._items[found.item].whole else "n-grams"
        if self.options.number_guard and found.coverage < 1 and self._numbers[found.item]:
            theirs = numbers.hashed(numbers.numbers_of(text), self.salt)
            if numbers.missing(self._numbers[found.item], theirs) > self.options.numbers_missing:
                rule = "numbers changed"
        span = batch.span(found.text, found.start, found.stop, text)
        return self._verdict(rule, found.item, found.coverage, span)

    def _near(self, batch: Words, texts: Sequence[str]) -> Iterator[tuple[int, int, float, bool]]:
        """Text, item, score, and whether the score is enough by itself."""
        near = self.options.neighbours
        for text, item, overlap in self._neighbours.search(batch):
            few = len(self._numbers[item]) < FEW_NUMBERS
            yield text, item, overlap, overlap >= (near.few_numbers if few else near.same)
        if self._embed is None:
            return
        options = self.options.embedding
        cosines = self._embed(texts) @ self._vectors.T
        for text in range(len(texts)):
            nearest = np.argsort(-cosines[text], kind="stable")[: options.top].tolist()
            for item in nearest:
                cosine = float(cosines[text, item])
                if cosine >= options.similarity:
                    yield text, item, cosine, False

    def _by_neighbour(self, text: str, item: int, score: float, certain: bool) -> Verdict | None:
        if self.options.number_guard and not self._same_numbers(text, item):
            return self._verdict("numbers changed", item, score, text) if certain else None
        if certain:
            return self._verdict("neighbour", item, score, text)
        if self._judge is None:
            return None
        same = self._judge.same(text, self._texts[item])
        if same is None and self.options.judge.unclear == "reject":
            return self._verdict("judge unclear", item, score, text)
        return self._verdict("judge", item, score, text) if same else None

    def _same_numbers(self, text: str, item: int) -> bool:
        mine = self._numbers[item]
        theirs = numbers.hashed(numbers.numbers_of(text), self.salt)
        return (
            numbers.missing(mine, theirs) <= self.options.numbers_missing
            and numbers.missing(theirs, mine) <= self.options.numbers_extra
        )

    def _verdict(self, rule: str, item: int, score: float, span: str) -> Verdict:
        return Verdict(rule, self._benchmarks[item], self._items[item].id, score, span)

    def _same_n(self, prints: list[Fingerprint]) -> None:
        for file, one in zip(self.options.fingerprints, prints, strict=True):
            if one.n != prints[0].n:
                raise ConfigError(
                    f"{file}: n={one.n}, but {self.options.fingerprints[0]} has n={prints[0].n}; "
                    "build them with one n"
                )
        names = [one.name for one in prints]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ConfigError(f"fingerprints: two are of {twice!r}; give each benchmark once")

    def _read_texts(self, prints: list[Fingerprint]) -> list[str]:
        """The items' texts from the user's copy, which must be the fingerprints' own source."""
        texts = []
        for one in prints:
            file = self.options.benchmarks.get(one.name)
            if file is None:
                raise ConfigError(
                    f"benchmarks.{one.name} is missing; the judge reads the items there"
                )
            items = read_items(file.path, file.column, file.id_column)
            if sha256_of(file.path) != one.source or [i for i, _ in items] != [
                item.id for item in one.items
            ]:
                raise ConfigError(
                    f"benchmarks.{one.name}.path={file.path}: not what the fingerprint was built "
                    "from; build it again from this file, or give the other one"
                )
            texts += [text for _, text in items]
        return texts


def _order(verdict: Verdict) -> tuple[bool, float, str, str, str]:
    return not verdict.contaminated, -verdict.score, verdict.benchmark, verdict.item, verdict.span


def _said(record: Record) -> list[str]:
    """All texts of a record that are not the user's."""
    texts = []
    for turn in record["messages"]:
        texts.append(turn.get("reasoning_content"))
        texts.append(turn.get("content") if turn["role"] != "user" else None)
        calls = turn.get("tool_calls")
        texts.append(json.dumps(calls, ensure_ascii=False) if calls else None)
    return [text for text in texts if text]


def batches(texts: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Ranges of texts that are some BATCH_CHARACTERS long together."""
    if not texts:
        return
    ends = np.cumsum(np.fromiter(map(len, texts), np.int64, len(texts)))
    cuts = np.flatnonzero(np.diff(ends // BATCH_CHARACTERS)) + 1
    yield from pairwise([0, *cuts.tolist(), len(texts)])
