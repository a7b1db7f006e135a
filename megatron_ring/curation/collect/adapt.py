"""A row of any data set as a record, by the map of its columns.

Answers that a set offers to choose from, and what it says of them, wait in extra.candidates for the
stage select_answer; until then the record holds the prompt alone.
"""

import json
import re
from typing import Any

from megatron_ring.config.base import ConfigError
from megatron_ring.config.curation.collect import SourceConfig
from megatron_ring.curation.collect.answers import behind_hashes, boxed
from megatron_ring.curation.collect.cells import pick, text
from megatron_ring.curation.collect.forms import FORMS
from megatron_ring.curation.collect.known import KNOWN
from megatron_ring.curation.collect.read import Row, paths_of, stem_of
from megatron_ring.curation.collect.turns import RowError
from megatron_ring.curation.record import Record, Rejection

LABELS = ("domain", "level", "topic")
CARD = ("model", "date", "sampling")


def complete(source: SourceConfig) -> SourceConfig:
    """The source with what is known of its set, and a name.

    ConfigError for an unknown set, and unless there is one of path and hub.
    """
    if source.set is not None:
        if source.set not in KNOWN:
            known = ", ".join(KNOWN)
            raise ConfigError(f"source {source.name}: unknown set {source.set!r}; known: {known}")
        given = source.model_dump(exclude_unset=True)
        if "path" in given:
            given["hub"] = None  # a copy on this machine
        known_keys = KNOWN[source.set].model_dump(exclude_unset=True)
        source = SourceConfig.model_validate({**known_keys, **given})
    if (source.path is None) == (source.hub is None):
        raise ConfigError(
            f"source {source.name}: give one of path (local files) and hub (a `datasets` name); "
            f"path={source.path}, hub={source.hub}"
        )
    if source.name is None:
        here = stem_of(paths_of(source)[0]) if source.path else (source.hub or "").split("/")[-1]
        source = source.model_copy(update={"name": source.set or here})
    return source


def to_record(source: SourceConfig, row: Row) -> Record | Rejection:
    """One row as a record of its source, or why it is none (evidence begins with its place)."""
    assert row.data is not None, row
    try:
        if source.form == "record":
            return _own(source, row)
        content = FORMS[source.form](source, row.data)
    except RowError as error:
        return Rejection(error.reason, f"{row.place}: {error}")
    data, columns = row.data, source.columns
    labels = {key: text(data, getattr(columns, key)) for key in LABELS}
    labels = {
        key: source.values[key].get(value) if key in source.values and value else value
        for key, value in labels.items()
    }
    constants = dict(source.constants)
    labels |= {key: constants.pop(key) for key in LABELS if key in constants}
    card = {key: constants.pop(key) for key in CARD if key in constants}
    if (model := text(data, columns.model)) is not None:
        card["model"] = model
    extra = {place: value for place in columns.extra if (value := pick(data, place)) is not None}
    extra |= constants | content.pop("extra", {})
    own = text(data, columns.id)
    if own is None:
        several = source.path is not None and glob_in(source.path)
        own = f"{row.file}:{row.number}" if several else str(row.number)
    record = {
        "id": f"{source.name}/{own}",
        **content,
        "answer": _answer(source, data),
        "source": source.name,
        "split": source.split,
        "revision": row.revision or source.revision,
        "licence": text(data, columns.licence) or source.licence,
        "card": card,
        **labels,
        "extra": extra,
    }
    return {key: value for key, value in record.items() if value not in (None, {}, [])}


def _own(source: SourceConfig, row: Row) -> Record:
    """A record that was written before, as it is but for what the source says of all of them.

    Its id begins with the source's name, and its messages are looked at as everyone's are.
    """
    assert row.data is not None, row
    record, constants = dict(row.data), dict(source.constants)
    own = str(record.get("id", row.number))
    own = own if own.startswith(f"{source.name}/") else f"{source.name}/{own}"
    record |= {key: constants.pop(key) for key in LABELS if key in constants}
    card = {key: constants.pop(key) for key in CARD if key in constants}
    told = {"revision": row.revision or source.revision, "licence": source.licence}
    record |= {key: value for key, value in told.items() if value is not None}
    record |= {"id": own, "source": source.name, "split": record.get("split") or source.split}
    for key, more in {"card": card, "extra": constants}.items():
        if given := {**_object(record.get(key), key), **more}:
            record[key] = given
    if isinstance(turns := record.get("messages"), list):  # Parquet has all columns in each turn
        kept = [_without_none(turn) if isinstance(turn, dict) else turn for turn in turns]
        record["messages"] = kept
    return {key: value for key, value in record.items() if value not in (None, {}, [])}


def _object(value: Any, key: str) -> dict[str, Any]:
    """A JSON object, which Parquet holds as text."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            pass
    if not isinstance(value, dict | None):
        raise RowError("no_record", f"{key} is {str(value)[:80]!r}, no object")
    return value or {}


def _without_none(turn: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in turn.items() if value is not None}


def glob_in(path: str) -> bool:
    """Does a path take several files?"""
    return re.search(r"[*?\[]", path) is not None


def _answer(source: SourceConfig, data: dict[str, Any]) -> str | None:
    found = text(data, source.columns.answer)
    if found is None or source.answer_in == "text":
        return found
    return boxed(found) if source.answer_in == "boxed" else behind_hashes(found)
