"""Named numbers of a benchmark beside its score: of parts, of groups, and by facts of its items."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from megatron_ring.evaluation import statistics
from megatron_ring.evaluation.statistics import Estimate
from megatron_ring.evaluation.task import Average, Item

SCORE = "score"  # the name of the average that stands for the mean over items
FEW = 64  # values of a fact, up to which each has a number: MMLU has 57 subjects
SHOWN = 12  # numbers of a family that are printed one by one
Found = dict[str, list[float]]  # what each answer to an item is worth, by the item's id


@dataclass(frozen=True)
class Counted:
    """Items that a number is made of."""

    names: list[str]  # ids
    weights: list[float]  # how much each counts; they sum to 1
    groups: list[Hashable]  # to which each belongs


def score(
    items: Mapping[str, Item], scores: Found, averages: Mapping[str, Average]
) -> tuple[Estimate, dict[str, float]]:
    """The benchmark's score, and how much each item counts in it: {id: weight}, their sum is 1.

    Without an average of that name items count alike. ValueError where no item counts.
    """
    counted = count(averages.get(SCORE, Average()), [items[name] for name in scores])
    if not counted.names:
        raise ValueError("none of the items that were asked counts in the score; ask more of them")
    return _estimate(counted, scores), dict(zip(counted.names, counted.weights, strict=True))


def named(
    items: Mapping[str, Item], lines: Sequence[Mapping[str, Any]], averages: Mapping[str, Average]
) -> dict[str, dict[str, float]]:
    """{name: {value, low, high, of}}, `of` the number of items, from lines of a file of grades.

    First what `averages` name, then parts of grades that have no average of their name, then
    FACT/VALUE for each fact that differs and has FEW values. Numbers of no item are left out.
    """
    worth: dict[str, Found] = {"": {}}
    for line in lines:
        for part, value in {"": line["score"], **line.get("parts", {})}.items():
            worth.setdefault(part, {}).setdefault(line["id"], []).append(value)
    wanted = {name: average for name, average in averages.items() if name != SCORE}
    for part in worth:
        if part and part not in wanted:
            wanted[part] = Average(part=part)
    asked = [items[name] for name in worth[""]]
    for fact in dict.fromkeys(fact for item in asked for fact in item.facts):
        values = sorted({str(item.facts[fact]) for item in asked if fact in item.facts})
        if 1 < len(values) <= FEW:
            for value in values:
                wanted[f"{fact}/{value}"] = Average(fact=fact, groups=[([value], 1.0)])
    found = {}
    for name, average in wanted.items():
        scores = worth.get(average.part, {})
        counted = count(average, [items[one] for one in scores])
        if counted.names:
            found[name] = asdict(_estimate(counted, scores)) | {"of": len(counted.names)}
    return found


def count(average: Average, items: Sequence[Item]) -> Counted:
    """Which items count, and how much. Groups without an item leave their share to the others."""
    places: dict[str, tuple[Hashable, float]] = {}
    for number, (values, share) in enumerate(average.groups):
        places |= {value: (number, share) for value in values}
    members: dict[Hashable, list[Item]] = {}
    shares: dict[Hashable, float] = {}
    for item in items:
        value = str(item.facts.get(average.fact, "")) if average.fact else ""
        if average.groups and value not in places:
            continue
        group, share = places.get(value, (value, 1.0))
        members.setdefault(group, []).append(item)
        shares[group] = share
    counted = Counted([], [], [])
    for group, ones in members.items():
        times = [float(item.facts[average.weight]) if average.weight else 1.0 for item in ones]
        for item, number in zip(ones, times, strict=True):
            counted.names.append(item.id)
            counted.weights.append(shares[group] / sum(shares.values()) * number / sum(times))
            counted.groups.append(group)
    return counted


def told(title: str, accuracies: Mapping[str, Mapping[str, float]], every: bool) -> list[str]:
    """Lines for a console in per cent: a line a family, long families cut unless `every`."""
    families: dict[str, dict[str, float]] = {}
    for name, found in accuracies.items():
        family, slash, value = name.partition("/")
        label = value if slash else family
        families.setdefault(family if slash else "", {})[label] = 100 * found["value"]
    lines = []
    for family, values in families.items():
        listed = [f"{label} {value:.1f}" for label, value in values.items()]
        if len(listed) > SHOWN and not every:
            low, high = min(values, key=values.get), max(values, key=values.get)  # type: ignore[arg-type]
            listed = [
                f"{len(values)} from {low} {values[low]:.1f} to {high} {values[high]:.1f}",
            ]
        lines.append(f"{title}{family and ' by '}{family}: {', '.join(listed)}")
    return lines


def _estimate(counted: Counted, scores: Found) -> Estimate:
    rows = [scores[name] for name in counted.names]
    return statistics.avg_at_k(rows, counted.weights, counted.groups)
