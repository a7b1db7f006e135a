"""The taxonomy of training data: what may be written into a record's domain, level and topic.

First the classes of the Chinese Library Classification, five of its subjects refined by topic, and
mathematics by school level before that (Ring-Lite-Distill report, 2.1 and Table 1). The tree itself
is taxonomy.yaml beside this file; a user's own file of the same shape will do.
"""

import csv
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from megatron_ring.config.base import ConfigError

OWN_FILE = Path(__file__).with_name("taxonomy.yaml")
UNKNOWN = "unknown"  # what a label says when nothing is sure enough; no id of any taxonomy
OTHERS = "others"  # the topic of what fits no other; of every list of topics the last
NODE_KEYS = {"id", "en", "zh", "words", "gbt", "clc", "into", "levels", "topics"}
PLAIN_ID = re.compile(r"[a-z][a-z0-9_]*")


@dataclass(frozen=True)
class Node:
    """One place of the tree: a domain, a level or a topic."""

    path: str  # ids from the domain down, "/" between: math/high_school/functions
    en: str
    zh: str
    words: tuple[str, ...] = ()  # what a text about it is likely to say; English and Chinese
    clc: str = ""  # letter, or letter and number, of the Chinese Library Classification
    gbt: str = ""  # code in GB/T 13745
    children: tuple["Node", ...] = ()
    kind: str = "domain"  # domain, level or topic

    @property
    def id(self) -> str:
        return self.path.rpartition("/")[2]


@dataclass(frozen=True)
class Taxonomy:
    """All domains, in the order of the file: classes first, refined ones in their class's place."""

    domains: tuple[Node, ...]
    nodes: dict[str, Node]  # every node by its path

    def node(self, path: str) -> Node:
        """The node at `path`; ValueError names the first id that is not there and what is."""
        if path in self.nodes:
            return self.nodes[path]
        at, choices = "", self.domains
        for name in path.split("/"):
            below = {child.id: child for child in choices}
            if name not in below:
                where = f"under {at}" if at else "among the domains"
                known = ", ".join(below) or "nothing"
                raise ValueError(
                    f"{path!r} is no path of the taxonomy: no {name!r} {where}; there: {known}"
                )
            at, choices = below[name].path, below[name].children
        raise AssertionError(f"{path} was walked to its end but is not in `nodes`")

    def leaves(self) -> list[Node]:
        """Nodes without children, in order: what a complete label names."""
        return [node for node in self.nodes.values() if not node.children]

    def labels(self, path: str) -> dict[str, str]:
        """A record's domain, level and topic as `path` gives them; absent where it does not."""
        self.node(path)
        ids = path.split("/")
        parts = ["/".join(ids[: depth + 1]) for depth in range(len(ids))]
        return {self.nodes[part].kind: self.nodes[part].id for part in parts}

    def path_of(self, labels: dict[str, Any]) -> str:
        """The longest known path that a record's domain, level and topic spell; "" for none."""
        path = ""
        for kind in ("domain", "level", "topic"):
            if kind not in labels:
                continue
            longer = f"{path}/{labels[kind]}" if path else str(labels[kind])
            if longer not in self.nodes or self.nodes[longer].kind != kind:
                break
            path = longer
        return path


@cache
def load_taxonomy(file: Path = OWN_FILE) -> Taxonomy:
    """The taxonomy of a YAML file; ConfigError names the node and key that are not right."""
    try:
        tree = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"cannot read the taxonomy {file}: {error}") from None
    if not isinstance(tree, dict) or set(tree) != {"version", "classes", "domains"}:
        found = ", ".join(map(str, tree)) if isinstance(tree, dict) else repr(tree)[:40]
        raise ConfigError(f"{file}: wants the keys version, classes, domains; found: {found}")
    if tree["version"] != 1:
        raise ConfigError(f"{file}: version={tree['version']!r}; this code reads version 1")
    domains = _domains(_list(tree, "classes", str(file)), _list(tree, "domains", str(file)), file)
    nodes = {node.path: node for domain in domains for node in _walk(domain)}
    return Taxonomy(domains, nodes)


def load_bisac(file: Path, taxonomy: Taxonomy) -> dict[str, str]:
    """BISAC codes by path, from a licensee's CSV of topic_id (a path), bisac_code.

    A topic may have several rows, joined by spaces; ConfigError names a line that is not right.
    """
    codes: dict[str, str] = {}
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            rows = list(csv.reader(lines))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"cannot read {file}: {error}") from None
    if not rows or rows[0] != ["topic_id", "bisac_code"]:
        raise ConfigError(
            f"{file}:1: wants the columns topic_id,bisac_code; found {','.join(rows[0])!r}"
            if rows
            else f"{file} is empty; its first line is topic_id,bisac_code"
        )
    for number, row in enumerate(rows[1:], 2):
        if len(row) != 2 or not all(row):
            raise ConfigError(
                f"{file}:{number}: wants topic_id,bisac_code; found {','.join(row)!r}"
            )
        path, code = row
        if path not in taxonomy.nodes:
            raise ConfigError(f"{file}:{number}: {_no_such(path, taxonomy)}")
        if code in codes.get(path, "").split():
            raise ConfigError(f"{file}:{number}: {path},{code} stands there twice")
        codes[path] = f"{codes[path]} {code}" if path in codes else code
    return codes


def _no_such(path: str, taxonomy: Taxonomy) -> str:
    """Why `path` is not known, in a sentence."""
    try:
        taxonomy.node(path)
    except ValueError as error:
        return str(error)
    raise AssertionError(f"{path} is known")


def _walk(node: Node) -> Iterator[Node]:
    yield node
    for child in node.children:
        yield from _walk(child)


def _domains(classes: list[Any], refined: list[Any], file: Path) -> tuple[Node, ...]:
    """The domains of labels: each class, or what it goes `into`, then parts of classes (code)."""
    by_id = {node.id: node for node in _nodes(refined, "", "domain", f"{file}: domains")}
    order: list[Node] = []
    for index, entry in enumerate(classes):
        at = f"{file}: classes[{index}]"
        into = entry.get("into", []) if isinstance(entry, dict) else []
        if missing := [name for name in into if name not in by_id]:
            raise ConfigError(f"{at}: into names {missing[0]!r}, which is not in `domains`")
        order += [by_id[name] for name in into] or _nodes([entry], "", "domain", at)
    order += [node for node in by_id.values() if node not in order]
    _unique([entry["clc"] for entry in classes if "clc" in entry], f"{file}: classes: clc")
    _unique([node.id for node in order], f"{file}: domains")
    return tuple(order)


def _nodes(entries: list[Any], parent: str, kind: str, at: str) -> list[Node]:
    nodes = [_node(entry, parent, kind, f"{at}[{i}]") for i, entry in enumerate(entries)]
    _unique([node.id for node in nodes], at)
    return nodes


def _node(entry: Any, parent: str, kind: str, at: str) -> Node:
    """One node with all below it; ConfigError when a key is missing, unknown or of a wrong kind."""
    if not isinstance(entry, dict):
        raise ConfigError(f"{at}: wants a table with id, en, zh; found {entry!r:.60}")
    if unknown := sorted(set(entry) - NODE_KEYS):
        raise ConfigError(
            f"{at}: unknown key {unknown[0]!r}; known: {', '.join(sorted(NODE_KEYS))}"
        )
    for key in ("id", "en", "zh"):
        if not isinstance(entry.get(key), str) or not entry[key]:
            raise ConfigError(f"{at}: {key}={entry.get(key)!r}; every node has id, en and zh")
    name = entry["id"]
    at = f"{at} ({name})"
    if not PLAIN_ID.fullmatch(name) or name == UNKNOWN:
        raise ConfigError(f"{at}: id={name!r}; an id is of a-z, 0-9 and _, and not {UNKNOWN!r}")
    if "levels" in entry and (kind != "domain" or "topics" in entry):
        raise ConfigError(f"{at}: levels stand in a domain, which then has no topics of its own")
    if "topics" in entry and kind == "topic":
        raise ConfigError(f"{at}: a topic has no topics below it")
    path = f"{parent}/{name}" if parent else name
    below = "level" if "levels" in entry else "topic"
    key = f"{below}s"
    children = _nodes(_list(entry, key, at), path, below, f"{at}.{key}") if key in entry else []
    if children and below == "topic" and children[-1].id != OTHERS:
        raise ConfigError(f"{at}: the last of its topics is {children[-1].id!r}, not {OTHERS!r}")
    words = _list(entry, "words", at) if "words" in entry else []
    if wrong := [word for word in words if not isinstance(word, str)]:
        raise ConfigError(f"{at}: words holds {wrong[0]!r}, which is no text; put it into quotes")
    clc, gbt = str(entry.get("clc", "")), str(entry.get("gbt", ""))
    return Node(path, entry["en"], entry["zh"], tuple(words), clc, gbt, tuple(children), kind)


def _list(table: dict[str, Any], key: str, at: str) -> list[Any]:
    if not isinstance(table[key], list) or not table[key]:
        raise ConfigError(f"{at}: {key} wants a list of at least one; found {table[key]!r:.60}")
    return table[key]


def _unique(names: list[str], at: str) -> None:
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"{at}: {name!r} stands there {names.count(name)} times")
