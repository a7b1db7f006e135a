"""Packed rows, and the folder of them that tools/pack.py writes. `Rows.at_step` is pure.

Shape letters: S = tokens in a row, N = segments in a row (documents, then pieces of padding).
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa

from megatron_ring.config import ConfigError
from megatron_ring.data.folder_hash import FORMAT, FolderHash

PAD_SEGMENT = 128  # tokens; padding attends only within short pieces, so that it costs little

Document = tuple[np.ndarray, np.ndarray]  # tokens int32 [n], targets bool [n]


class DataError(ConfigError):
    """A row cannot be read; the message names it, its sources and the remedy."""


@dataclass(frozen=True)
class Row:
    """One packed row. Segments tile it exactly: cu_seqlens[0] == 0, cu_seqlens[-1] == S."""

    tokens_S: np.ndarray  # int32
    labels_S: np.ndarray  # int32; the next token of the same document, 0 where there is none
    mask_S: np.ndarray  # bool; True where labels_S is a target
    positions_S: np.ndarray  # int32; restarts at 0 in every segment
    cu_seqlens: np.ndarray  # int32 [N + 1]; segment boundaries, as variable-length attention wants
    num_documents: int  # segments before the padding
    format_S: np.ndarray  # bool; where mask_S, does the label lie in a format span (pairs only)
    sources: np.ndarray = field(  # int8 [num_documents]; index into Rows.sources
        default_factory=lambda: np.zeros(0, np.int8)
    )
    domains: np.ndarray = field(  # int16 [num_documents]; index into Rows.domains, -1 for none
        default_factory=lambda: np.zeros(0, np.int16)
    )
    reference: np.ndarray | None = None  # float64 [num_documents, 2]; the reference's Σ logp

    @property
    def num_supervised(self) -> int:
        """Positions whose label is a target."""
        return int(self.mask_S.sum())

    @property
    def num_pairs(self) -> int:
        """Of a row of pairs: documents 2p and 2p + 1 are the chosen and rejected answer of one."""
        return self.num_documents // 2

    @property
    def num_tokens(self) -> int:
        """Tokens that are not padding."""
        return int(self.cu_seqlens[self.num_documents])

    @property
    def padding_S(self) -> np.ndarray:
        """bool [S]; True on padding, known by position: the pad id may also be the end token."""
        return np.arange(len(self.tokens_S)) >= self.num_tokens


def make_row(
    documents: Sequence[Document],
    row_tokens: int,
    pad_id: int,
    sources: Sequence[int] | None = None,
    formats: Sequence[np.ndarray] | None = None,
    domains: Sequence[int] | None = None,
) -> Row:
    """Lay whole documents end to end and cut the rest into padding of at most PAD_SEGMENT tokens.

    A document's first token is never a label: nothing comes before it. `formats` (bool [n] for each
    document) says which tokens lie in format spans; without it none does. ValueError when the
    documents do not fit, one is empty, or targets or formats are not as long as its tokens.
    """
    lengths = []
    for index, (tokens, targets) in enumerate(documents):
        if len(tokens) != len(targets):
            raise ValueError(f"document {index}: {len(tokens)} tokens but {len(targets)} targets")
        if not len(tokens):
            raise ValueError(f"document {index} is empty")
        lengths.append(len(tokens))
    if formats is not None and [len(marks) for marks in formats] != lengths:
        raise ValueError(
            f"documents of {lengths} tokens but formats of {[len(marks) for marks in formats]}"
        )
    used = sum(lengths)
    if used > row_tokens:
        raise ValueError(
            f"{len(lengths)} documents of {used} tokens in all do not fit a row of {row_tokens}"
        )
    padding = range(used, row_tokens, PAD_SEGMENT)
    cu_seqlens = np.array([*np.cumsum([0, *lengths])[:-1], *padding, row_tokens], dtype=np.int32)
    tokens_S = np.full(row_tokens, pad_id, np.int32)
    labels_S = np.zeros(row_tokens, np.int32)
    mask_S = np.zeros(row_tokens, bool)
    format_S = np.zeros(row_tokens, bool)
    for n, (tokens, targets) in enumerate(documents):
        start, stop = cu_seqlens[n : n + 2]
        tokens_S[start:stop] = tokens
        labels_S[start : stop - 1] = tokens[1:]
        mask_S[start : stop - 1] = targets[1:]
        if formats is not None:
            format_S[start : stop - 1] = formats[n][1:]
    positions_S = np.arange(row_tokens) - np.repeat(cu_seqlens[:-1], np.diff(cu_seqlens))
    return Row(
        tokens_S=tokens_S,
        labels_S=labels_S,
        mask_S=mask_S,
        positions_S=positions_S.astype(np.int32),
        cu_seqlens=cu_seqlens,
        num_documents=len(lengths),
        format_S=format_S & mask_S,
        sources=np.asarray([0] * len(lengths) if sources is None else sources, dtype=np.int8),
        domains=np.asarray([-1] * len(lengths) if domains is None else domains, dtype=np.int16),
    )


class Rows:
    """A packed folder, opened. Documents stay in memory-mapped Arrow; a row reads only its own."""

    def __init__(
        self,
        folder: Path,
        manifest: dict[str, Any],
        documents: datasets.Dataset,
        plan_documents: np.ndarray,
        row_starts: np.ndarray,
    ) -> None:
        self.folder = folder
        self.manifest = manifest
        self.documents = documents
        columns = ["tokens", "targets", "source"] + ["format"] * (self.kind == "pairs")
        columns += ["domain"] * bool(self.domains)
        self._arrow = documents.select_columns(columns).with_format("arrow")
        self._plan_documents = plan_documents
        self._row_starts = row_starts
        self._reference: np.ndarray | None = None
        self._fingerprint: str = manifest["fingerprint"]

    @classmethod
    def open(cls, folder: str | Path) -> "Rows":
        """Open a folder written by tools/pack.py; ValueError when it is none, or its parts differ.

        Only counts are compared here, which takes no time; `verify` reads everything.
        """
        folder = Path(folder)
        manifest = _read_manifest(folder)
        try:
            documents = datasets.load_from_disk(str(folder / "documents"))
            plan_documents = np.load(folder / "plan_documents.npy", mmap_mode="r")
            row_starts = np.load(folder / "plan_row_starts.npy", mmap_mode="r")
        except (OSError, EOFError, ValueError, pa.ArrowInvalid) as error:
            raise ValueError(f"{folder} is damaged: {error}; pack it again") from error
        counts = {
            "documents": (manifest["num_documents"], len(documents)),
            "rows": (manifest["num_rows"], len(row_starts) - 1),
            "placements": (manifest["num_placements"], len(plan_documents)),
        }
        for what, (promised, found) in counts.items():
            if promised != found:
                raise ValueError(
                    f"{folder} is damaged: manifest.json promises {promised} {what}, "
                    f"the files hold {found}; pack it again"
                )
        return cls(folder, manifest, documents, plan_documents, row_starts)

    @property
    def kind(self) -> str:
        """What was packed: "chat", or "pairs" of answers."""
        return self.manifest.get("kind", "chat")

    @property
    def row_tokens(self) -> int:
        """S: tokens in a row."""
        return self.manifest["row_tokens"]

    @property
    def num_rows(self) -> int:
        """Rows of the plan, over all epochs."""
        return self.manifest["num_rows"]

    @property
    def fingerprint(self) -> str:
        """Hex hash of tokens, targets, sources, plan, row length, tokenizer, and reference."""
        return self._fingerprint

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of every document, int64."""
        chunks = self.documents.data.column("tokens").chunks
        return np.concatenate([np.diff(chunk.offsets).astype(np.int64) for chunk in chunks])

    @property
    def tokenizer_size(self) -> int:
        """Highest id of the tokenizer plus one; a model's vocabulary must be at least this."""
        return self.manifest["tokenizer"]["size"]

    @property
    def sources(self) -> list[str]:
        """Names of the sources; Row.sources indexes them."""
        return [source["name"] for source in self.manifest["sources"]]

    @property
    def domains(self) -> list[str]:
        """Names of the taxonomy's domains that documents are of; Row.domains indexes them."""
        return self.manifest.get("domains", [])

    def num_steps(self, rows_per_step: int) -> int:
        """Steps of the whole plan; the last may be filled up with padding rows."""
        return -(-self.num_rows // rows_per_step)

    def documents_of(self, row: int) -> list[int]:
        """Indices into `documents`, in the row's order."""
        if not 0 <= row < self.num_rows:
            raise ValueError(f"row {row} is outside the plan of {self.num_rows} rows (0 first)")
        start, stop = self._row_starts[row : row + 2]
        return self._plan_documents[start:stop].tolist()

    def with_reference(self, scores: np.ndarray, fingerprint: str) -> "Rows":
        """The same rows, each of which carries its documents' reference scores.

        `scores` are float64 [documents, 2], `fingerprint` that of the model that made them; the
        rows' own becomes the SHA-256 of both. ValueError when there are not as many scores.
        """
        if scores.shape != (len(self.documents), 2):
            raise ValueError(
                f"{self.folder} has {len(self.documents)} documents, but the reference scores are "
                f"of shape {list(scores.shape)}, not [documents, 2]; score it again"
            )
        rows = copy(self)
        rows._reference = np.asarray(scores, dtype=np.float64)
        rows._fingerprint = hashlib.sha256(f"{self.fingerprint}{fingerprint}".encode()).hexdigest()
        return rows

    def row(self, row: int) -> Row:
        """Row number `row` of the plan, in training order.

        DataError when it cannot be read, or holds what no tokenizer of these rows gave.
        """
        documents = self.documents_of(row)
        try:
            made = self._read(documents)
            largest = int(made.tokens_S.max())
            if made.tokens_S.min() < 0 or largest >= self.tokenizer_size:
                raise ValueError(f"token {largest} of a tokenizer of {self.tokenizer_size}")
            return made
        except (OSError, ValueError, IndexError, KeyError, pa.ArrowException) as error:
            which = f"row {row} of {self.folder} ({self._sources_of(documents)})"
            raise DataError(
                f"{which} cannot be read: {error}. The folder is damaged, or its disk is: pack it "
                "again with tools/pack.py and resume; Rows.verify of this folder reads all of it"
            ) from error

    def _sources_of(self, documents: list[int]) -> str:
        """For an error: documents and where they come from, as far as that can be read."""
        try:
            numbers = sorted(set(self._arrow[documents].column("source").to_pylist()))
            return f"documents {documents}, of {', '.join(self.sources[n] for n in numbers)}"
        except (OSError, ValueError, IndexError, KeyError, pa.ArrowException):
            return f"documents {documents}, of sources that cannot be read either"

    def _read(self, documents: list[int]) -> Row:
        table = self._arrow[documents]
        tokens = _split(table.column("tokens"))
        targets = _split(table.column("targets"))
        made = make_row(
            list(zip(tokens, targets, strict=True)),
            self.row_tokens,
            self.manifest["tokenizer"]["pad_id"],
            table.column("source").to_pylist(),
            list(_split(table.column("format"))) if self.kind == "pairs" else None,
            table.column("domain").to_pylist() if self.domains else None,
        )
        return self._referred(made, documents)

    def at_step(self, step: int, rows_per_step: int, rank: int = 0, size: int = 1) -> list[Row]:
        """Rows of one data-parallel rank at one step; a pure function of its arguments.

        Row i of the step's rows_per_step goes to rank i % size, so the union over ranks does not
        depend on their number. Rows past the end of the plan are all padding: nothing is dropped.
        """
        if rows_per_step % size:
            raise ValueError(f"rows_per_step={rows_per_step} is not a multiple of {size} ranks")
        if not 0 <= rank < size:
            raise ValueError(f"rank {rank} is outside 0..{size - 1}")
        if not 0 <= step < self.num_steps(rows_per_step):
            raise ValueError(
                f"step {step} is outside the plan of {self.num_steps(rows_per_step)} steps "
                f"({self.num_rows} rows, {rows_per_step} a step, step 0 first)"
            )
        first = step * rows_per_step
        numbers = range(first + rank, first + rows_per_step, size)
        try:
            return [self.row(n) if n < self.num_rows else self.empty_row() for n in numbers]
        except DataError as error:
            raise DataError(f"step {step + 1}: {error}") from error

    def named(self, step: int, rows_per_step: int) -> dict[str, list[Any]]:
        """What a step is made of: the numbers of its rows, and the names of their sources."""
        first = step * rows_per_step
        numbers = range(first, min(first + rows_per_step, self.num_rows))
        found = {int(index) for number in numbers for index in self.row(number).sources}
        return {"rows": list(numbers), "sources": [self.sources[index] for index in sorted(found)]}

    def verify(self) -> None:
        """Read everything and hash it again; ValueError when it is not what was packed."""
        hasher = FolderHash()
        for batch in self._arrow.iter(1024):
            pairs = self.kind == "pairs"
            for tokens, targets, source, marks in zip(
                _split(batch.column("tokens")),
                _split(batch.column("targets")),
                batch.column("source").to_pylist(),
                _split(batch.column("format")) if pairs else [None] * len(batch),
                strict=True,
            ):
                hasher.add(tokens, targets, source, marks)
        found = hasher.finish(
            self.row_tokens,
            self.manifest["tokenizer"],
            self._plan_documents,
            self._row_starts,
            self.kind,
        )
        promised = self.manifest["fingerprint"]
        if found != promised:
            raise ValueError(
                f"{self.folder} is damaged: manifest.json has fingerprint {promised}, "
                f"its contents {found}; pack it again"
            )

    def empty_row(self) -> Row:
        """A row of padding only."""
        made = make_row([], self.row_tokens, self.manifest["tokenizer"]["pad_id"])
        return self._referred(made, [])

    def _referred(self, row: Row, documents: list[int]) -> Row:
        scores = self._reference
        return row if scores is None else replace(row, reference=scores[documents])


def _split(column: pa.ChunkedArray) -> Iterable[np.ndarray]:
    """One numpy array for each list of a column."""
    for chunk in column.chunks:
        # Not chunk.values: of a slice that would be the whole chunk, unpacked for nothing.
        offsets = chunk.offsets.to_numpy() - chunk.offsets[0].as_py()
        values = chunk.flatten().to_numpy(zero_copy_only=False)
        for start, stop in zip(offsets[:-1], offsets[1:], strict=True):
            yield values[start:stop]


def _read_manifest(folder: Path) -> dict[str, Any]:
    file = folder / "manifest.json"
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(
            f"{folder} is not a packed folder: there is no {file}; make one with tools/pack.py"
        ) from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{file} is not JSON: {error}; pack it again") from None
    if manifest.get("format") != FORMAT:
        raise ValueError(
            f"{file} has format {manifest.get('format')}, this program reads format {FORMAT}; "
            "pack it again"
        )
    return manifest
