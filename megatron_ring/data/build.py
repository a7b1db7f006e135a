"""Builds a packed folder: tokenize, plan, write. The folder appears complete or not at all."""

import json
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa

from megatron_ring.config import ConfigError, PackConfig
from megatron_ring.data import documents
from megatron_ring.data.chat import SampleError
from megatron_ring.data.documents import Document, Item, Pair, Rejected
from megatron_ring.data.folder_hash import FORMAT, FolderHash
from megatron_ring.data.packing import Plan, make_plan
from megatron_ring.data.report import draw_lengths, write_text
from megatron_ring.data.rows import Rows
from megatron_ring.data.tokenizer import Tokenizer, load_tokenizer

FEATURES = datasets.Features(
    {
        "tokens": datasets.List(datasets.Value("int32")),
        "targets": datasets.List(datasets.Value("bool")),
        "source": datasets.Value("int8"),
        "id": datasets.Value("string"),
        "domain": datasets.Value("int16"),
    }
)
PAIR_FEATURES = datasets.Features(FEATURES | {"format": datasets.List(datasets.Value("bool"))})
DOCUMENTS = {"chat": 1, "pairs": 2}  # of a sample
MAX_DOMAINS = 100  # each is a curve
WRITE_BATCH = 512  # documents in an Arrow record batch

Progress = Callable[[Iterator[Item], int], Iterator[Item]]


@dataclass
class Tally:
    """What is known of the documents once all are written; lists hold one entry a document."""

    hasher: FolderHash = field(default_factory=FolderHash)
    lengths: list[int] = field(default_factory=list)
    supervised: list[int] = field(default_factory=list)
    formats: list[int] = field(default_factory=list)  # tokens in format spans
    sources: list[int] = field(default_factory=list)
    domains: dict[str, int] = field(default_factory=dict)  # of all documents, numbered as met
    rejected: list[Rejected] = field(default_factory=list)
    max_id: int = -1

    def add(self, document: Document) -> None:
        """Count and hash one document."""
        marks = document.format
        self.hasher.add(document.tokens, document.targets, document.source, marks)
        self.lengths.append(len(document.tokens))
        self.supervised.append(int(document.targets[1:].sum()))
        self.formats.append(0 if marks is None else int((marks & document.targets)[1:].sum()))
        self.sources.append(document.source)
        self.max_id = max(self.max_id, int(document.tokens.max()))
        if document.domain is not None:
            self.domains.setdefault(document.domain, len(self.domains))
            if len(self.domains) > MAX_DOMAINS:
                raise ConfigError(
                    f"more than {MAX_DOMAINS} domains, the last {document.domain!r}: "
                    f"sources.{document.source}.domain names a column of few values, or is null"
                )


def pack(config: PackConfig, progress: Progress = lambda items, total: items) -> Rows:
    """Write config.output and open it.

    `progress` wraps the stream of samples, whose number is at most `total`. ConfigError for keys
    that cannot be, SampleError for a sample that stops the run; then nothing is left behind.
    """
    names = documents.source_names(config.sources)
    check_output(config)
    tokenizer = load_tokenizer(config.tokenizer, config.chat_template)
    opened = [documents.open_source(config, i) for i in range(len(config.sources))]
    samples = chain.from_iterable(samples for _, samples in opened)
    stream = progress(documents.tokenize(config, samples), sum(total for total, _ in opened))
    with _new_folder(Path(config.output), config.overwrite) as folder:
        tally = _write_documents(folder, config, stream)
        lengths = np.array(tally.lengths, dtype=np.int64)
        plan = _make_plan(config, lengths, np.array(tally.sources))
        if not len(plan.documents):
            raise ConfigError(
                f"the plan is empty: {len(lengths) // DOCUMENTS[config.kind]} samples, "
                f"{len(tally.rejected)} dropped, "
                f"{config.epochs} epochs; see sources.*.weight and row_tokens={config.row_tokens}"
            )
        if not any(tally.supervised):
            raise ConfigError(
                f"none of {len(lengths)} samples has a token to learn: is every assistant turn "
                'marked "train": false?'
            )
        np.save(folder / "plan_documents.npy", plan.documents)
        np.save(folder / "plan_row_starts.npy", plan.row_starts)
        tokenizer.save(folder / "tokenizer")
        manifest = _manifest(config, names, tokenizer, tally, plan)
        (folder / "manifest.json").write_text(json.dumps(manifest, indent=1), encoding="utf-8")
        write_text(folder / "report.txt", manifest, lengths)
        draw_lengths(folder / "lengths.png", manifest, lengths, np.array(tally.sources))
    return Rows.open(config.output)


def _make_plan(config: PackConfig, lengths: np.ndarray, sources: np.ndarray) -> Plan:
    """The plan of documents; the two of a pair are one card, and stay side by side."""
    together = DOCUMENTS[config.kind]
    plan = make_plan(
        lengths.reshape(-1, together).sum(axis=1),
        np.bincount(sources[::together], minlength=len(config.sources)).tolist(),
        [source.weight for source in config.sources],
        config.row_tokens,
        config.epochs,
        config.seed,
    )
    shown = plan.documents[:, None] * together + np.arange(together)
    return Plan(shown.reshape(-1), plan.row_starts * together, plan.rows_in_epoch)


def check_output(config: PackConfig) -> None:
    """ConfigError when config.output exists and may not be replaced."""
    output = Path(config.output)
    if not output.exists():
        return
    if not config.overwrite:
        raise ConfigError(f"output={output} exists; type overwrite=true to replace it")
    if not (output / "manifest.json").exists():
        raise ConfigError(
            f"output={output} is no packed folder (no manifest.json), so overwrite=true does not "
            "replace it; choose another output"
        )


@contextmanager
def _new_folder(output: Path, overwrite: bool) -> Iterator[Path]:
    """A folder to fill, which takes the place of `output` when all went well."""
    unique = uuid.uuid4().hex[:8]  # process ids repeat, in containers above all
    temporary = output.with_name(f"{output.name}.tmp-{unique}")
    temporary.mkdir(parents=True)
    try:
        yield temporary
        if overwrite and output.exists():
            replaced = output.with_name(f"{output.name}.old-{unique}")
            output.rename(replaced)
            temporary.rename(output)
            shutil.rmtree(replaced)
        else:
            temporary.rename(output)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write_documents(folder: Path, config: PackConfig, stream: Iterator[Item]) -> Tally:
    """documents/ and rejected.jsonl, from a stream that never lies in memory as a whole."""
    tally = Tally()
    names = documents.source_names(config.sources)
    streamed = folder / "documents.arrow"
    schema = (PAIR_FEATURES if config.kind == "pairs" else FEATURES).arrow_schema
    pending: list[Document] = []
    with (
        open(folder / "rejected.jsonl", "w", encoding="utf-8") as rejected,
        pa.ipc.new_stream(str(streamed), schema) as writer,
    ):
        for item in stream:
            if isinstance(item, Rejected):
                tally.rejected.append(item)
                place = documents.where(config.sources[item.source], item.number)
                line = {"where": place, **asdict(item), "source": names[item.source]}
                rejected.write(json.dumps(line, ensure_ascii=False) + "\n")
                continue
            for document in item if isinstance(item, Pair) else [item]:
                tally.add(document)
                pending.append(document)
            if len(pending) >= WRITE_BATCH:
                writer.write_batch(_record_batch(pending, tally.domains, schema))
                pending = []
        if pending:
            writer.write_batch(_record_batch(pending, tally.domains, schema))
    if not tally.lengths:
        first = f"; the first: {tally.rejected[0].reason}" if tally.rejected else ""
        raise SampleError(f"no sample is left: {len(tally.rejected)} dropped{first}")
    datasets.Dataset.from_file(str(streamed)).save_to_disk(str(folder / "documents"))
    streamed.unlink()
    return tally


def _record_batch(
    items: list[Document], domains: dict[str, int], schema: pa.Schema
) -> pa.RecordBatch:
    offsets = pa.array(np.cumsum([0, *(len(item.tokens) for item in items)]), pa.int32())
    tokens = pa.array(np.concatenate([item.tokens for item in items]), pa.int32())
    targets = pa.array(np.concatenate([item.targets for item in items]), pa.bool_())
    columns = [
        pa.ListArray.from_arrays(offsets, tokens),
        pa.ListArray.from_arrays(offsets, targets),
        pa.array([item.source for item in items], pa.int8()),
        pa.array([item.id for item in items], pa.string()),
        pa.array([domains.get(item.domain or "", -1) for item in items], pa.int16()),
    ]
    if "format" in schema.names:
        marks = pa.array(np.concatenate([item.format for item in items]), pa.bool_())
        columns.append(pa.ListArray.from_arrays(offsets, marks))
    return pa.record_batch(columns, schema=schema)


def _manifest(
    config: PackConfig, names: list[str], tokenizer: Tokenizer, tally: Tally, plan: Plan
) -> dict[str, Any]:
    """Everything a reader of the folder wants to know before reading it."""
    lengths, supervised = np.array(tally.lengths), np.array(tally.supervised)
    sources = np.array(tally.sources)
    shown = np.bincount(sources[plan.documents], minlength=len(names))
    described = []
    for index, (name, source) in enumerate(zip(names, config.sources, strict=True)):
        own = sources == index
        described.append(
            {
                "name": name,
                "path": source.path,
                "weight": source.weight,
                "documents": int(own.sum()),
                "tokens": int(lengths[own].sum()),
                "supervised": int(supervised[own].sum()),
                "without_targets": int((supervised[own] == 0).sum()),
                "dropped": sum(item.source == index for item in tally.rejected),
                "placements": int(shown[index]),
            }
        )
        if config.kind == "pairs":
            described[-1] |= _describe_pairs(supervised[own], np.array(tally.formats)[own])
    placed = int(lengths[plan.documents].sum())
    about = {
        "path": config.tokenizer,
        "fingerprint": tokenizer.fingerprint,
        "size": tokenizer.size,
        "eos_id": tokenizer.eos_id,
        "pad_id": tokenizer.pad_id,
        "max_id": tally.max_id,
    }
    fingerprint = tally.hasher.finish(
        config.row_tokens, about, plan.documents, plan.row_starts, config.kind
    )
    num_rows = len(plan.row_starts) - 1
    return {
        "format": FORMAT,
        "kind": config.kind,
        "fingerprint": fingerprint,
        "row_tokens": config.row_tokens,
        "num_rows": num_rows,
        "num_documents": len(lengths),
        **({"num_pairs": len(lengths) // 2} if config.kind == "pairs" else {}),
        "num_placements": len(plan.documents),
        "num_tokens": placed,
        "num_supervised": int(supervised[plan.documents].sum()),
        "fill": placed / (num_rows * config.row_tokens),
        "epochs": config.epochs,
        "rows_in_epoch": plan.rows_in_epoch,
        "seed": config.seed,
        "tokenizer": about,
        "sources": described,
        "domains": list(tally.domains),
    }


def _describe_pairs(supervised: np.ndarray, formats: np.ndarray) -> dict[str, int]:
    """What the manifest adds for a source of pairs; both [documents of the source]."""
    return {
        "pairs": len(supervised) // 2,
        "supervised_chosen": int(supervised[0::2].sum()),
        "supervised_rejected": int(supervised[1::2].sum()),
        "format_tokens": int(formats.sum()),
        "without_format": int((formats.reshape(-1, 2) == 0).any(axis=1).sum()),
    }
