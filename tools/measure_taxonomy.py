"""How well records are labelled offline, on data sets that say what their rows are about.

    python tools/measure_taxonomy.py DATA > taxonomy.md

Prints Markdown. Rows are split by a hash of their question, so that copies of one question stand on
one side; labellers are fitted on one side and tested on the other. "Source left out": of each row,
the labeller saw nothing of its family of sources; what is left are other sources and our own texts.
The mapping of labels is megatron_ring/curation/rows.yaml.
"""

import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from megatron_ring.config import ConfigError
from megatron_ring.config.curation.label import LabelConfig
from megatron_ring.curation.label import embedding
from megatron_ring.curation.label.evaluation import (
    KINDS,
    Choice,
    accuracy,
    choices,
    confusion,
    ends,
    majority,
    reliability,
    without,
)
from megatron_ring.curation.label.model import OWN_FILE, LinearLabeller, fit, load_labeller
from megatron_ring.curation.label.rows import TABLE, Labelled, capped, load_labelled, load_seeds
from megatron_ring.curation.label.rules import find_rule
from megatron_ring.curation.label.scores import heads_of
from megatron_ring.curation.label.stage import Label
from megatron_ring.curation.record import Record
from megatron_ring.curation.taxonomy import OTHERS, UNKNOWN, Taxonomy, load_taxonomy

Made = dict[str, list[Choice]]  # choices by the name of who made them


def main(
    data: Annotated[Path, typer.Argument(help="folder of the labelled data sets")],
    labeller: Annotated[Path, typer.Option(help="the .npz to measure")] = OWN_FILE,
    embedding_model: Annotated[
        Path | None, typer.Option(help="folder of a sentence-transformers model to stand beside")
    ] = None,
    mapping: Annotated[Path, typer.Option(help="YAML of what the labels of DATA mean")] = TABLE,
    cap: Annotated[int, typer.Option(help="rows of one source and label, at most")] = 400,
    workers: Annotated[int, typer.Option(help="processes that fit")] = 1,
) -> None:
    """Measure the offline labellers on DATA."""
    taxonomy = load_taxonomy()
    heads = heads_of(taxonomy)
    seeds = load_seeds(taxonomy)
    rows = capped(load_labelled(data, taxonomy, mapping), cap)
    train = [row for row in rows if not row.in_test]
    test = [row for row in rows if row.in_test]
    strict = fit([*seeds, *(row.row(strict=True) for row in train)], heads)
    families = sorted({row.family for row in test})
    # A fit takes half a minute; with a third of the rows, a third of it.
    fewer = capped(train, cap // 3)
    with ProcessPoolExecutor(workers) as pool:
        fits = pool.map(partial(without, fewer, seeds, heads), families)
        apart = dict(zip(families, fits, strict=True))
    shipped = load_labeller(labeller, heads)
    made: Made = {"shipped": choices(shipped, test, taxonomy)}
    made["all, as labelled"] = choices(strict, test, taxonomy)
    made["source left out"], left_out_ends = [], []
    for family, scorer in apart.items():
        of_it = [row for row in test if row.family == family]
        made["source left out"] += choices(scorer, of_it, taxonomy)
        left_out_ends += ends(scorer.calibrated(temperatures(shipped)), of_it)
    made["own texts only"] = choices(fit(seeds, heads), test, taxonomy)
    if embedding_model:
        encode = embedding.load_encoder(embedding_model)
        nearest = embedding.NearestLabeller(heads, seeds, encode)
        made["embeddings"] = choices(nearest, test, taxonomy)
    rows_strict = [row.row(strict=True) for row in train]
    made["majority"] = majority(rows_strict, made["shipped"], heads)
    print_sources(rows)
    print_accuracies(made)
    print_by_source(made)
    print_confusions(made["shipped"], taxonomy)
    print_reliability("shipped labeller, sources it knows", ends(shipped, test))
    print_reliability("source left out", left_out_ends)
    print_rules(test)
    print_stage(test, taxonomy, labeller)


def temperatures(labeller: LinearLabeller) -> dict[str, float]:
    """Those of a fitted labeller, by node."""
    return {name: head.temperature for name, head in labeller.fitted.items()}


def table(header: Sequence[str], lines: Iterable[Sequence[object]]) -> None:
    """Print a Markdown table; floats as per cent with one decimal, nan as nothing."""

    def shown(cell: object) -> str:
        if isinstance(cell, float):
            return "" if cell != cell else f"{100 * cell:.1f}"
        return str(cell)

    print("| " + " | ".join(header) + " |")
    print("|" + "---|" * len(header))
    for line in lines:
        print("| " + " | ".join(map(shown, line)) + " |")
    print()


def print_sources(rows: Sequence[Labelled]) -> None:
    print("## Rows\n")
    names = dict.fromkeys(row.source for row in rows)
    lines = []
    for name in names:
        own = [row for row in rows if row.source == name]
        domains = sorted({path.split("/")[0] for row in own for path in row.paths})
        shipped = sum(row.trainable and not row.in_test for row in own)
        tested = sum(row.in_test for row in own)
        said = ", ".join(domains) if len(domains) < 4 else f"{len(domains)} domains"
        lines.append((name, own[0].family, said, len(own) - tested, shipped, tested))
    table(["source", "family", "domains", "train", "of these shipped", "test"], lines)


def print_accuracies(made: Made) -> None:
    print("## Accuracy, %\n")
    print("Level: of mathematics. Topic: given the right domain and level.\n")
    lines = []
    for kind in KINDS:
        count = sum(choice.kind == kind for choice in made["shipped"])
        of_kind = [accuracy([c for c in m if c.kind == kind]) for m in made.values()]
        lines.append((kind, count, *of_kind))
    largest = Counter(c.row.source for c in made["shipped"]).most_common(1)[0][0]
    rest = {
        name: [c for c in m if c.kind == "domain" and c.row.source != largest]
        for name, m in made.items()
    }
    count = len(rest["shipped"])
    lines.append((f"domain, without {largest}", count, *(accuracy(m) for m in rest.values())))
    # Where a book's level is not the level of what it asks: left out.
    clear = {
        name: [c for c in m if c.kind == "level" and c.row.paths == c.row.open_paths]
        for name, m in made.items()
    }
    count = len(clear["shipped"])
    lines.append(("level, clear rows", count, *(accuracy(m) for m in clear.values())))
    for head in sorted({c.head for c in made["shipped"] if c.kind == "topic"}):
        of_head = {name: [c for c in m if c.head == head] for name, m in made.items()}
        count = len(of_head["shipped"])
        lines.append((f"topic of {head}", count, *(accuracy(m) for m in of_head.values())))
    table(["choice", "rows", *made], lines)


def print_by_source(made: Made) -> None:
    print("## Accuracy by source, %: domain / level / topic\n")
    names = dict.fromkeys(choice.row.source for choice in made["shipped"])
    lines = []
    for name in names:
        cells = []
        for m in made.values():
            own = [choice for choice in m if choice.row.source == name]
            shares = [accuracy([c for c in own if c.kind == kind]) for kind in KINDS]
            cells.append(" / ".join("–" if s != s else f"{100 * s:.0f}" for s in shares))
        count = sum(c.row.source == name and c.kind == "domain" for c in made["shipped"])
        lines.append((name, count, *cells))
    table(["source", "rows", *made], lines)


def print_confusions(made: Sequence[Choice], taxonomy: Taxonomy) -> None:
    print("## Confusions of the shipped labeller\n")
    print("Lines: what is right; columns: what was said; without rows of several right labels.\n")
    for head, title in (("", "Domains"), ("math", "Levels")):
        found = confusion([choice for choice in made if choice.head == head])
        right = [path for path in (n.path for n in taxonomy.nodes.values()) if path in found]
        said = [*right, *sorted({s for c in found.values() for s in c} - set(right))]
        short = [path.rpartition("/")[2] for path in said]
        print(f"### {title}\n")
        lines = [
            (
                path.rpartition("/")[2],
                *(found[path][other] or "" for other in said),
                found[path][path] / found[path].total(),
            )
            for path in right
        ]
        table(["", *short, "right, %"], lines)
    print("### Topics most often taken for others\n")
    errors: Counter[tuple[str, str]] = Counter()
    totals: Counter[str] = Counter()
    for choice in made:
        if choice.kind == "topic":
            gold = " or ".join(path.rpartition("/")[2] for path in choice.gold)
            totals[f"{choice.head}: {gold}"] += 1
            if not choice.right:
                errors[f"{choice.head}: {gold}", choice.said.rpartition("/")[2]] += 1
    lines = [(gold, said, n, totals[gold]) for (gold, said), n in errors.most_common(15)]
    table(["right", "said", "rows", "of"], lines)


def print_reliability(title: str, found: Sequence[tuple[float, bool]]) -> None:
    lines, error = reliability(found)
    print(f"## Confidence in the whole path: {title}\n")
    print(f"Expected calibration error {100 * error:.1f} points, {len(found)} rows.\n")
    spans = [(f"{low:.1f} to {low + 0.1:.1f}", n, sure, right) for low, n, sure, right in lines]
    table(["confidence", "rows", "mean confidence, %", "right, %"], spans)


def ratio(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "–"


def print_rules(test: Sequence[Labelled]) -> None:
    print("## Rules\n")
    fired: Counter[str] = Counter()
    domains: Counter[str] = Counter()
    paths: Counter[str] = Counter()
    for row in test:
        rule = find_rule(row.text)
        if rule:
            fired[rule.name] += 1
            domains[rule.name] += any(path.split("/")[0] == "code" for path in row.paths)
            # Rows known only as code are right with any task.
            fits = [path for path in row.paths if f"{rule.path}/".startswith(f"{path}/")]
            paths[rule.name] += bool(fits)
    lines = [(name, n, domains[name] / n, paths[name] / n) for name, n in fired.most_common()]
    table(["rule", "fired", "is code, %", "path fits, %"], lines)


def print_stage(test: Sequence[Labelled], taxonomy: Taxonomy, labeller: Path) -> None:
    print("## The whole stage, by threshold: how much it claims, and how much of that is right\n")
    lines = []
    for threshold in (0.0, 0.3, 0.5, 0.7, 0.9):
        stage = Label(
            LabelConfig(threshold=threshold, topic_threshold=threshold, labeller=labeller)
        )
        claimed: Counter[str] = Counter()
        right: Counter[str] = Counter()
        known: Counter[str] = Counter()
        for row in test:
            turn = {"role": "user", "content": row.text}
            said = stage.apply(Record(id="", messages=[turn]))
            for kind in KINDS:
                gold = {taxonomy.labels(path).get(kind) for path in row.paths}
                if None in gold:
                    continue
                known[kind] += 1
                claims = said.get(kind) not in (None, UNKNOWN, OTHERS)
                claimed[kind] += claims
                right[kind] += claims and said[kind] in gold
        cells = [f"{ratio(claimed[k], known[k])} / {ratio(right[k], claimed[k])}" for k in KINDS]
        lines.append((threshold, *cells))
    lines = [(f"{threshold:.1f}", *cells) for threshold, *cells in lines]
    table(["threshold", *(f"{kind}: claimed / right" for kind in KINDS)], lines)


if __name__ == "__main__":
    try:
        typer.run(main)
    except (ConfigError, ValueError) as error:
        sys.exit(f"error: {error}")
