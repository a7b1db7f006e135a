"""Samples from files and data sets, tokenized in order by one or several processes."""

import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from megatron_ring.config import ConfigError, PackConfig, SourceConfig
from megatron_ring.data.chat import SampleError, encode_chat
from megatron_ring.data.pairs import encode_pair, pair_columns, read_preference
from megatron_ring.data.tokenizer import Tokenizer, load_tokenizer

JSON_SUFFIXES = (".jsonl", ".json", ".ndjson")
BATCH = 64  # samples a process tokenizes at a time


class Sample(NamedTuple):
    source: int
    number: int  # line of the file, or row of the table; 1 first
    record: Any  # a line of JSON (bytes), an element of an array, or the columns of a table


@dataclass(frozen=True)
class Document:
    source: int
    number: int
    id: str  # the sample's own `id` where it has one, else its number
    tokens: np.ndarray  # int32 [n]
    targets: np.ndarray  # bool [n]
    format: np.ndarray | None = None  # bool [n]; a target in a format span (pairs only)
    domain: str | None = None  # of the taxonomy


class Pair(NamedTuple):
    """Two documents with one prompt; they share a row."""

    chosen: Document
    rejected: Document


@dataclass(frozen=True)
class Rejected:
    source: int
    number: int
    id: str
    reason: str
    length: int | None  # tokens, None when the sample could not be tokenized


Item = Document | Pair | Rejected  # what becomes of a sample


def source_names(sources: list[SourceConfig]) -> list[str]:
    """Names shown in reports, one a source; ConfigError when two are equal or there are > 127."""
    names = [source.name or Path(source.path).stem for source in sources]
    for index, name in enumerate(names):
        if name in names[:index]:
            raise ConfigError(f"two sources are named {name!r}; set sources.{index}.name")
    if len(names) > 127:
        raise ConfigError(f"{len(names)} sources; at most 127 can be told apart in a row")
    return names


def where(source: SourceConfig, number: int) -> str:
    """A sample's place, as errors name it: `file:line`, or `file row number`."""
    path = Path(source.path)
    is_lines = path.suffix in JSON_SUFFIXES and not _is_array(path)
    return f"{source.path}:{number}" if is_lines else f"{source.path} row {number}"


def open_source(config: PackConfig, index: int) -> tuple[int, Iterator[Sample]]:
    """Number of samples (of JSON: lines) of a source, and the samples in order.

    ConfigError names the key when there is no such file or data set, or it lacks the columns.
    """
    source = config.sources[index]
    columns_of = pair_columns if config.kind == "pairs" else _columns
    path = Path(source.path)
    if path.suffix in (*JSON_SUFFIXES, ".parquet") and not path.is_file():
        raise ConfigError(f"sources.{index}.path={path}: there is no such file")
    if path.suffix in JSON_SUFFIXES and _is_array(path):
        try:
            array = json.loads(path.read_bytes())
        except ValueError as error:  # JSON or UTF-8
            raise ConfigError(f"sources.{index}.path={path} is no JSON array: {error}") from None
        return len(array), (Sample(index, number, item) for number, item in enumerate(array, 1))
    if path.suffix in JSON_SUFFIXES:
        with path.open("rb") as file:
            total = sum(1 for _ in file)
        return total, _read_lines(path, index)
    if path.suffix == ".parquet":
        try:
            file = pq.ParquetFile(path)
        except pa.ArrowInvalid as error:
            raise ConfigError(f"sources.{index}.path={path} is no Parquet: {error}") from None
        columns = columns_of(source, index, file.schema_arrow.names)
        batches = file.iter_batches(BATCH, columns=columns)
        rows = (row for batch in batches for row in batch.to_pylist())
        total = file.metadata.num_rows
    else:
        table = _load_data_set(source, index)
        rows = iter(table.select_columns(columns_of(source, index, table.column_names)))
        total = len(table)
    return total, (Sample(index, number, row) for number, row in enumerate(rows, 1))


def tokenize(config: PackConfig, samples: Iterable[Sample]) -> Iterator[Item]:
    """Documents in the order of the samples, whatever the number of processes.

    SampleError names file, line and reason of a sample that stops the run (config.invalid,
    config.overlong); otherwise such samples come out as Rejected.
    """
    batches = iter(lambda: list(islice(samples, BATCH)), [])
    tasks = ((config, batch) for batch in batches)
    if config.workers == 1:
        results = map(_tokenize_batch, tasks)
        yield from (item for batch in results for item in batch)
        return
    # Fresh processes: a tokenizer's threads do not survive a fork.
    with ProcessPoolExecutor(config.workers, mp_context=get_context("spawn")) as pool:
        results = _in_order(pool, _tokenize_batch, tasks, window=4 * config.workers)
        yield from (item for batch in results for item in batch)


def tokenize_sample(config: PackConfig, tokenizer: Tokenizer, sample: Sample) -> Item:
    """One sample as document or pair, or why it is none (SampleError where the run shall stop)."""
    source = config.sources[sample.source]
    name = str(sample.number)
    try:
        record = _parse(sample.record)
        name = str(record.get("id", sample.number))
        if config.kind == "pairs":
            answers = encode_pair(read_preference(source, sample.source, record), tokenizer)
            given = [(answer.tokens, answer.targets, answer.format) for answer in answers]
        else:
            messages, tools = _conversation(source, sample.source, record)
            tokens, targets = encode_chat(messages, tokenizer, tools)
            given = [(tokens, targets | (config.learn == "all"), None)]
    except SampleError as error:
        if config.invalid == "drop":
            return Rejected(sample.source, sample.number, name, str(error), None)
        raise SampleError(f"{where(source, sample.number)}: {error}") from None
    where_from = (sample.source, sample.number, name)
    domain = record.get(source.domain) if source.domain else None
    domain = str(domain) if domain else None
    items = [Document(*where_from, *arrays, domain=domain) for arrays in given]
    lengths = [len(item.tokens) for item in items]
    if sum(lengths) <= config.row_tokens:
        return Pair(*items) if config.kind == "pairs" else items[0]
    both = " (chosen {}, rejected {})".format(*lengths) if config.kind == "pairs" else ""
    reason = f"{sum(lengths)} tokens{both} are more than a row of {config.row_tokens} holds"
    if config.overlong == "drop":
        return Rejected(sample.source, sample.number, name, reason, sum(lengths))
    place = where(source, sample.number)
    raise SampleError(f"{place}: {reason}; raise row_tokens, or set overlong=drop")


@cache
def _tokenizer(path: str, chat_template: str | None) -> Tokenizer:
    """One tokenizer a process."""
    return load_tokenizer(path, chat_template)


def _tokenize_batch(task: tuple[PackConfig, list[Sample]]) -> list[Item]:
    config, samples = task
    tokenizer = _tokenizer(config.tokenizer, config.chat_template)
    return [tokenize_sample(config, tokenizer, sample) for sample in samples]


def _in_order(
    pool: ProcessPoolExecutor, function: Callable, tasks: Iterable, window: int
) -> Iterator[Any]:
    """Results in the order of the tasks, with at most `window` of them read ahead."""
    pending: deque = deque()
    for task in tasks:
        pending.append(pool.submit(function, task))
        if len(pending) == window:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


def _is_array(path: Path) -> bool:
    """Is a .json file one array of samples (read as a whole), not one sample a line?"""
    if path.suffix != ".json":
        return False
    with path.open("rb") as file:
        return next((line.strip()[:1] for line in file if line.strip()), b"") == b"["


def _read_lines(path: Path, index: int) -> Iterator[Sample]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield Sample(index, number, line)


def _parse(record: Any) -> dict[str, Any]:
    if isinstance(record, dict):
        return {key: value for key, value in record.items() if value is not None}
    if not isinstance(record, bytes):  # of a .json array
        raise SampleError(f"a JSON {type(record).__name__}, not an object")
    try:
        parsed = json.loads(record)
    except ValueError as error:  # JSON or UTF-8
        array = "; one object a line; an array is read from a file whose name ends in .json"
        hint = array if record.lstrip()[:1] == b"[" else ""
        raise SampleError(f"not JSON: {error}{hint}") from None
    if not isinstance(parsed, dict):
        raise SampleError(f"a JSON {type(parsed).__name__}, not an object")
    return parsed


def _conversation(source: SourceConfig, index: int, record: dict[str, Any]) -> tuple[Any, Any]:
    """Messages and tool definitions of a record."""
    needed = _needed(source, index)
    for key, column in needed.items():
        if column not in record:
            raise SampleError(
                f"no {column!r} here (its keys: {', '.join(record) or 'none'}); "
                f"set sources.{index}.{key}{_ALTERNATIVE if key == 'messages' else ''}"
                + _PAIRS
                * ({"chosen", "rejected"} <= set(record))
            )
    if source.prompt is None:
        return record[source.messages], record.get(source.tools)
    roles = {"prompt": "user", "response": "assistant"}
    return [{"role": roles[key], "content": record[needed[key]]} for key in roles], None


_ALTERNATIVE = ", or .prompt and .response for plain text"
_PAIRS = "; pairs of answers are packed with kind=pairs"


def _needed(source: SourceConfig, index: int) -> dict[str, str]:
    """Config key -> column that must be there."""
    for key in ("chosen", "rejected", "format_spans"):
        if getattr(source, key) != SourceConfig.model_fields[key].default:
            raise ConfigError(f"sources.{index}.{key} is for pairs of answers; add kind=pairs")
    if (source.prompt is None) != (source.response is None):
        missing = "prompt" if source.prompt is None else "response"
        raise ConfigError(
            f"sources.{index}.{missing} is missing: prompt and response come together"
        )
    if source.prompt is None or source.response is None:
        return {"messages": source.messages}
    return {"prompt": source.prompt, "response": source.response}


def _columns(source: SourceConfig, index: int, present: list[str]) -> list[str]:
    """Columns of a table to read; ConfigError when one that is needed is missing."""
    needed = _needed(source, index)
    for key, column in needed.items():
        if column not in present:
            raise ConfigError(
                f"{source.path} has no column {column!r} (its columns: {', '.join(present)}); "
                f"set sources.{index}.{key}{_ALTERNATIVE if key == 'messages' else ''}"
                + _PAIRS
                * ({"chosen", "rejected"} <= set(present))
            )
    optional = [name for name in (source.tools, "id", source.domain) if name in present]
    return list(dict.fromkeys([*needed.values(), *optional]))


def _load_data_set(source: SourceConfig, index: int) -> datasets.Dataset:
    """A data set by name, or a folder written by `save_to_disk`."""
    if (Path(source.path) / "dataset_dict.json").exists():
        splits = datasets.load_from_disk(source.path)
        if source.split not in splits:
            raise ConfigError(
                f"sources.{index}.split={source.split}: {source.path} has {', '.join(splits)}"
            )
        return splits[source.split]
    if (Path(source.path) / "state.json").exists():
        return datasets.load_from_disk(source.path)
    try:
        return datasets.load_dataset(source.path, source.subset, split=source.split)
    except (OSError, ValueError) as error:  # not found, no network, no such subset or split
        raise ConfigError(
            f"sources.{index}.path={source.path} is no .jsonl or .parquet file, and as a data set: "
            f"{error}"
        ) from None
