"""How often a labeller is right, where it errs, and whether its confidence is what it says."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import chain

import numpy as np

from megatron_ring.curation.label.model import LinearLabeller, Row, fit, mask_of, temperature_of
from megatron_ring.curation.label.rows import Labelled
from megatron_ring.curation.label.scores import Heads, Scorer, descend
from megatron_ring.curation.taxonomy import Taxonomy

KINDS = ("domain", "level", "topic")
Paths = Callable[[Labelled], tuple[str, ...]]


@dataclass(frozen=True)
class Choice:
    """One choice of a labeller, the choices above it taken as right."""

    kind: str  # domain, level or topic
    head: str  # chosen among its children
    gold: tuple[str, ...]  # children that are right
    said: str
    row: Labelled

    @property
    def right(self) -> bool:
        return self.said in self.gold


def choices(scorer: Scorer, rows: Iterable[Labelled], taxonomy: Taxonomy) -> list[Choice]:
    """What `scorer` says at every node that the rows' labels speak of."""
    made = []
    for row in rows:
        logits = scorer.logits(row.text)
        for head, children in scorer.heads.items():
            mask = mask_of(row.paths, head, children)
            if mask is not None:
                gold = tuple(child for child, right in zip(children, mask, strict=True) if right)
                said = children[int(np.argmax(logits[head]))]
                made.append(Choice(taxonomy.nodes[said].kind, head, gold, said, row))
    return made


def majority(train: Sequence[Row], test: Sequence[Choice], heads: Heads) -> list[Choice]:
    """The choices of `test` as the commonest child of each node in `train` would make them."""
    common: dict[str, str] = {}
    for head in {choice.head for choice in test}:
        masks = [mask_of(row.paths, head, heads[head]) for row in train]
        counts = np.sum([mask for mask in masks if mask is not None] or [[1]], axis=0)
        common[head] = heads[head][int(np.argmax(counts))]
    return [Choice(c.kind, c.head, c.gold, common[c.head], c.row) for c in test]


def accuracy(made: Sequence[Choice]) -> float:
    """Share that is right; nan of none."""
    return sum(choice.right for choice in made) / len(made) if made else float("nan")


def confusion(made: Sequence[Choice]) -> dict[str, Counter[str]]:
    """How often each child was said, by the one that was right (rows with several are left out)."""
    table: dict[str, Counter[str]] = defaultdict(Counter)
    for choice in made:
        if len(choice.gold) == 1:
            table[choice.gold[0]][choice.said] += 1
    return dict(table)


def ends(scorer: Scorer, rows: Iterable[Labelled]) -> list[tuple[float, bool]]:
    """Confidence in, and truth of, the whole way from the root as far as each row's label goes."""
    result = []
    for row in rows:
        depth = min(path.count("/") for path in row.paths) + 1
        steps = descend(scorer, row.text)[:depth]
        joint = float(np.prod([step.probability for step in steps]))
        said = steps[-1].path
        right = any(path == said or path.startswith(f"{said}/") for path in row.paths)
        result.append((joint, right))
    return result


def reliability(
    found: Sequence[tuple[float, bool]], num_bins: int = 10
) -> tuple[list[tuple[float, int, float, float]], float]:
    """For each bin of confidence: its lower end, rows, mean confidence, share right; and the
    expected calibration error (Naeini et al. 2015): their mean distance, weighted by rows."""
    bins: list[list[tuple[float, bool]]] = [[] for _ in range(num_bins)]
    for sure, right in found:
        bins[min(int(sure * num_bins), num_bins - 1)].append((sure, right))
    table, error = [], 0.0
    for i, held in enumerate(bins):
        if held:
            sure = sum(s for s, _ in held) / len(held)
            right = sum(r for _, r in held) / len(held)
            table.append((i / num_bins, len(held), sure, right))
            error += abs(sure - right) * len(held) / len(found)
    return table, error


def without(
    rows: Sequence[Labelled], seeds: Sequence[Row], heads: Heads, family: str
) -> LinearLabeller:
    """A labeller fitted as the shipped one is, but to the rows of every family but one."""
    return fit([*seeds, *(r.row(strict=False) for r in rows if r.family != family)], heads)


def calibration(
    train: Sequence[Labelled],
    seeds: Sequence[Row],
    heads: Heads,
    num_folds: int = 2,
    workers: int = 1,
) -> dict[str, float]:
    """Temperatures by node, from texts that the labeller which scores them has not seen.

    Part of the evidence are random folds, part families left out as a whole: data to come are
    neither quite like what was learned from nor quite unlike it. Our own texts are in the folds:
    of most topics of the sciences nothing else speaks.
    """
    rows = [*(row.row(False) for row in train), *(row for row in seeds if row.source == "seeds")]
    words = [row for row in seeds if row.source != "seeds"]
    family_of = [*(row.family for row in train), *[""] * (len(rows) - len(train))]
    families = sorted(set(family_of) - {""})
    groups = [families[i::num_folds] for i in range(num_folds)]
    parts = [[family in group for family in family_of] for group in groups]
    parts += [[i % num_folds == fold for i in range(len(rows))] for fold in range(num_folds)]
    held_out = partial(_held_out, rows, words, heads)
    masks: dict[str, list[np.ndarray]] = defaultdict(list)
    logits: dict[str, list[np.ndarray]] = defaultdict(list)
    with ProcessPoolExecutor(workers) as pool:
        for head, mask, scores in chain.from_iterable(pool.map(held_out, parts)):
            masks[head].append(mask)
            logits[head].append(scores)
    enough = [head for head in masks if _is_telling(masks[head])]
    return {head: temperature_of(logits[head], masks[head]) for head in enough}


def _held_out(
    rows: Sequence[Row], always: Sequence[Row], heads: Heads, held: Sequence[bool]
) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """Node, what is right and raw logits of every choice that the rows held out speak of."""
    scorer = fit([*always, *(r for r, out in zip(rows, held, strict=True) if not out)], heads)
    found = []
    for row in (row for row, out in zip(rows, held, strict=True) if out):
        scores = scorer.raw(row.text)
        for head, children in heads.items():
            mask = mask_of(row.paths, head, children)
            if mask is not None:
                found.append((head, mask, scores[head]))
    return found


def _is_telling(masks: Sequence[np.ndarray]) -> bool:
    """Whether rows say enough of a node: of half its children there are some that are sure, and
    no child has nine tenths of those.

    Of data with one right child (GSM8K is all word problems) one learns to be sure of that child.
    """
    sure = np.sum([mask for mask in masks if mask.sum() == 1] or [masks[0] & False], axis=0)
    return np.count_nonzero(sure) * 2 >= len(sure) and sure.max() < 0.9 * sure.sum()
