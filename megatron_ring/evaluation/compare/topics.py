"""Scores and tag errors by what items are about: their own facts, or the taxonomy of the data."""

from collections.abc import Callable, Iterator
from typing import Any

from megatron_ring.config.curation.label import LabelConfig
from megatron_ring.curation.label.stage import Label
from megatron_ring.curation.taxonomy import OTHERS, UNKNOWN, load_taxonomy
from megatron_ring.evaluation.compare import scores, tags
from megatron_ring.evaluation.compare.cells import Frame, Row
from megatron_ring.evaluation.compare.reading import any_of, tasks_of
from megatron_ring.evaluation.compare.scores import Keys
from megatron_ring.evaluation.maths import CHOOSE, SOLVE

MOST_VALUES = 100  # of a fact: with more of them it is a number or a name, and no topic
# What benchmarks add to a question: it would make law look like mathematics.
ADVICE = [text.format(question="\0", options="\0").rpartition("\0")[2] for text in (SOLVE, CHOOSE)]


def by_facts(frame: Frame) -> Iterator[dict[str, Any]]:
    """A table for each fact of each benchmark that has two values at least."""
    for task in tasks_of(frame.columns):
        bench = any_of(frame.columns, task)
        for fact in dict.fromkeys(fact for item in bench.items.values() for fact in item.facts):
            groups: dict[Any, list[str]] = {}
            for key, item in bench.items.items():
                if fact in item.facts:
                    groups.setdefault(item.facts[fact], []).append(key)
            if 2 <= len(groups) <= MOST_VALUES:
                ordered = sorted(groups, key=lambda value: (isinstance(value, str), value))
                chosen = {str(value): {task: groups[value]} for value in ordered}
                yield _table(frame, f"{bench.title}, by {fact}", chosen)


def by_taxonomy(
    frame: Frame, begin: Callable[[int], None], step: Callable[[], None]
) -> Iterator[dict[str, Any]]:
    """Two tables, of domains and of whole paths: items of all benchmarks that all columns have.

    Labelled by the shipped rules and model, from prompts alone.
    """
    label, tree = Label(LabelConfig()), load_taxonomy()
    domains: dict[str, Keys] = {}
    paths: dict[str, Keys] = {}
    shared = tags.shared_items(frame.columns)
    begin(sum(len(keys) for keys in shared.values()))
    for task, keys in shared.items():
        items = any_of(frame.columns, task).items
        for key in keys:
            record = {"messages": [{"role": "user", "content": bare(items[key].text)}]}
            found = label.apply(record)
            domain = found["domain"]
            path = "/".join(found[kind] for kind in ("domain", "level", "topic") if kind in found)
            domains.setdefault(domain, {}).setdefault(task, []).append(key)
            if domain != UNKNOWN:
                paths.setdefault(path, {}).setdefault(task, []).append(key)
            step()
    known = {path: number for number, path in enumerate(tree.nodes)}
    for title, groups in (("domain", domains), ("topic", paths)):
        last = len(known)  # unknown and others stand behind what they are the rest of
        ordered = sorted(groups, key=lambda path: (known.get(_parent(path), last), path))
        named = {_name(path): groups[path] for path in ordered}
        if named:  # no prompt may be clear enough for a topic
            yield _table(frame, f"All benchmarks, by {title} of the taxonomy", named)


def bare(prompt: str) -> str:
    """A prompt without what its benchmark adds to each question."""
    for advice in ADVICE:
        prompt = prompt.removesuffix(advice)
    return prompt


def _parent(path: str) -> str:
    """Itself, or what it is the rest of."""
    return path.removesuffix(f"/{OTHERS}").removesuffix(f"/{UNKNOWN}")


def _name(path: str) -> str:
    """In English words; of what is no node, the path."""
    tree = load_taxonomy()
    ids = path.split("/")
    names = []
    for depth, own in enumerate(ids, 1):
        node = tree.nodes.get("/".join(ids[:depth]))
        names.append(node.en if node is not None else own)
    return " / ".join(names)


def _table(frame: Frame, title: str, groups: dict[str, Keys]) -> dict[str, Any]:
    """Scores, and rates of any tag error, a row a group."""
    made: dict[str, Any] = {"title": title, "scores": [], "errors": []}
    for name, chosen in groups.items():
        of = f"{sum(map(len, chosen.values())):,} items"
        made["scores"].append(Row(name, name, of, scores.pooled(frame, chosen), kind="group"))
        made["errors"].append(Row(name, name, of, tags.any_error(frame, chosen), kind="group"))
    return made
