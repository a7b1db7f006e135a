"""Rows of known subject, read from a folder of data sets by the table in rows.yaml."""

import csv
import gzip
import io
import json
import re
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import xxhash
import yaml

from megatron_ring.config.base import ConfigError
from megatron_ring.curation.label.model import Row
from megatron_ring.curation.taxonomy import Taxonomy

TABLE = Path(__file__).with_name("rows.yaml")
TEST_SHARE = 0.3
KEY_CHARACTERS = 60


@dataclass(frozen=True)
class Labelled:
    """A row of a data set with its label."""

    text: str
    paths: tuple[str, ...]  # all that are right
    open_paths: tuple[str, ...]  # what is fitted: as `paths`, or wider where the table says so
    source: str
    family: str
    value: str  # of the field that gives the label; "" where the whole source has one
    trainable: bool  # by its licence
    in_test: bool

    def row(self, strict: bool) -> Row:
        return Row(self.text, self.paths if strict else self.open_paths, self.source)


def load_seeds(taxonomy: Taxonomy, file: Path | None = None) -> list[Row]:
    """What may always be learned from: names and words of the taxonomy and our own short texts."""
    file = file or TABLE.with_name("seeds.yaml")
    texts = yaml.safe_load(file.read_text(encoding="utf-8"))
    if unknown := [path for path in texts if path not in taxonomy.nodes]:
        raise ConfigError(f"{file}: {unknown[0]!r} is no path of the taxonomy")
    rows = [Row(text, (path,), "seeds") for path, of_it in texts.items() for text in of_it]
    for node in taxonomy.nodes.values():
        if node.words:
            # All words at once, then threes in a row, as a text has them in passing.
            rows.append(Row(". ".join([node.en, node.zh, *node.words]), (node.path,), "words"))
            threes = [node.words[i : i + 3] for i in range(0, len(node.words), 3)]
            rows += [Row(", ".join(three), (node.path,), "words", 0.5) for three in threes]
    return rows


def load_labelled(folder: Path, taxonomy: Taxonomy, table: Path = TABLE) -> list[Labelled]:
    """Every row that the table names, each text once (the first source has it); in order.

    ConfigError names the source whose file is missing, or whose label the table does not know.
    """
    tree = yaml.safe_load(table.read_text(encoding="utf-8"))
    rows: list[Labelled] = []
    seen: set[str] = set()
    for source in tree["sources"]:
        for path in _paths_of(source):
            if path not in taxonomy.nodes:
                raise ConfigError(f"{table}: {source['name']}: {path!r} is no path of the taxonomy")
        for file in source["files"]:
            if not (folder / file).is_file():
                raise ConfigError(f"{source['name']}: there is no {folder / file}")
            for entry in read_rows(folder / file):
                row = _labelled(entry, source, tree)
                if row and row.text not in seen:
                    seen.add(row.text)
                    rows.append(row)
    return rows


def capped(rows: Sequence[Labelled], cap: int) -> list[Labelled]:
    """At most `cap` of each source and value, those with the smallest hash, in the same order.

    Five times as many of a source with one value: the more values, the less of each is needed.
    """
    groups: dict[tuple[str, str], list[tuple[int, int]]] = {}
    for i, row in enumerate(rows):
        place = (xxhash.xxh64_intdigest(row.text.encode(), 1), i)
        groups.setdefault((row.source, row.value), []).append(place)
    values = Counter(source for source, _ in groups)
    kept = set()
    for (source, _), group in groups.items():
        kept |= {i for _, i in sorted(group)[: max(cap, 5 * cap // values[source])]}
    return [row for i, row in enumerate(rows) if i in kept]


def key_of(text: str) -> str:
    """What near copies of a question share: its first letters, digits and Chinese characters.

    Numbers of questions and marks for points in front (as exam papers have them) are left out.
    """
    text = re.sub(r"^\s*\d+\s*[.．、]\s*([（(]\s*\d+\s*分\s*[)）])?", "", text)
    return "".join(re.findall(r"[a-z0-9\u4e00-\u9fff]", text.lower()))[:KEY_CHARACTERS]


def read_rows(file: Path) -> Iterator[dict[str, Any]]:
    """Rows of a .jsonl (or .jsonl.gz), a .json list (or {"example": list}) or MMLU's zip of CSV."""
    if file.suffix == ".zip":
        yield from _mmlu(file)
        return
    data = file.read_bytes()
    text = (gzip.decompress(data) if file.suffix == ".gz" else data).decode("utf-8-sig")
    if ".jsonl" in file.name:
        yield from (json.loads(line) for line in text.split("\n") if line.strip())
        return
    tree = json.loads(text)
    for entry in tree["example"] if isinstance(tree, dict) else tree:
        yield entry | {"file": file.name}


def _mmlu(file: Path) -> Iterator[dict[str, Any]]:
    with zipfile.ZipFile(file) as folder:
        for name in sorted(folder.namelist()):
            found = re.fullmatch(r"data/(dev|val|test)/(\w+)_\1\.csv", name)
            if found:
                text = io.StringIO(folder.read(name).decode("utf-8"), newline="")
                for question, *options, _answer in csv.reader(text):
                    letters = zip("ABCD", options, strict=True)
                    choices = [f"{letter}. {option}" for letter, option in letters]
                    yield {"subject": found[2], "question": question, "options": choices}


def _labelled(
    entry: dict[str, Any], source: dict[str, Any], tree: dict[str, Any]
) -> Labelled | None:
    """The row of one entry; None when it has no text."""
    text = entry[source["text"]].strip()
    if not text:
        return None
    in_test = xxhash.xxh64_intdigest((key_of(text) or text).encode()) % 1000 < TEST_SHARE * 1000
    if "options" in source and entry[source["options"]]:
        text = "\n".join([text, *entry[source["options"]]])
    value = str(entry[source["by"]]) if "by" in source else ""
    if "by" in source and value not in source["paths"]:
        raise ConfigError(f"{source['name']}: {source['by']}={value!r} is not in the table")
    paths = _listed(source["paths"][value] if "by" in source else source["path"])
    licence = source.get("licence") or tree["licences"].get(entry[source["licence_field"]], "")
    row = Labelled(text, paths, paths, source["name"], source["family"], value, False, in_test)
    wide = _listed(source.get("open", {}).get(value, list(paths)))
    return replace(row, open_paths=wide, trainable=licence in tree["trainable"])


def _listed(paths: str | list[str]) -> tuple[str, ...]:
    return (paths,) if isinstance(paths, str) else tuple(paths)


def _paths_of(source: dict[str, Any]) -> list[str]:
    """Every path that the table gives for a source."""
    values = [*source.get("paths", {}).values(), *source.get("open", {}).values()]
    return [path for paths in [*values, source.get("path", [])] for path in _listed(paths)]
