"""How many new problems of each kind, and how many requests to get them. Pure arithmetic."""

import math
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from megatron_ring.config.base import ConfigError
from megatron_ring.curation.distribution.shares import ALL, Targets
from megatron_ring.curation.synthesis.domain import Cell
from megatron_ring.curation.taxonomy import OTHERS, Node, Taxonomy

K = TypeVar("K")

PRIOR = 8.0  # requests that what is expected weighs as much as, against those that were seen
MOST = 8.0  # a cell is asked for no more often than this, times what was expected


@dataclass(frozen=True)
class Quota:
    """A cell, how much of it there is, and how many new problems are wanted."""

    cell: Cell
    share: float  # of the domain that is aimed at, from 0 to 1
    supply: float  # records there are; a part of one whose topic or difficulty is not told
    wanted: int


def make_quotas(
    taxonomy: Taxonomy,
    roots: Iterable[str],
    difficulties: Mapping[str, float],
    topics: Mapping[str, float],
    targets: Targets,
    supply: Mapping[str, int],
    total: int,
) -> list[Quota]:
    """Of each cell that any are wanted of, in the order of the taxonomy; `total` in all.

    With `topics` the new problems alone have these shares. Without, old and new ones together come
    as near to the targets as `total` new ones allow. `supply`: records by path.
    """
    roots = list(roots)
    wanted = topics or _root_shares(roots, targets)
    shares = shares_below(taxonomy, wanted, {} if topics else targets.shares)
    for path in topics:
        if not any(f"{path}/".startswith(f"{root}/") for root in roots):
            raise ConfigError(f"topics.{path} is not below {' or '.join(roots)}, the domain's own")
    there = spread_supply(shares, supply)
    each = {p: total * s for p, s in shares.items()} if topics else fill(shares, there, total)
    hard = {name: w / sum(difficulties.values()) for name, w in difficulties.items()} or {"": 1.0}
    split = {(path, name): each[path] * part for path in shares for name, part in hard.items()}
    return [
        Quota(
            Cell(path, about(taxonomy, path), name),
            shares[path] * hard[name],
            there[path] * hard[name],
            count,
        )
        for (path, name), count in apportion(split, total).items()
        if count
    ]


def without(quotas: Sequence[Quota], names: Container[str]) -> list[Quota]:
    """Those whose cells are not named; what is wanted in all stays, in proportion."""
    left = [quota for quota in quotas if quota.cell.name not in names]
    if not left:
        return []
    total = sum(quota.wanted for quota in quotas)
    wanted = apportion({index: float(one.wanted) for index, one in enumerate(left)}, total)
    return [replace(one, wanted=wanted[index]) for index, one in enumerate(left)]


def _root_shares(roots: list[str], targets: Targets) -> dict[str, float]:
    """As the targets have the domains, or even where they do not know all of them."""
    known = targets.shares.get(ALL, {})
    return {root: known[root] if set(roots) <= set(known) else 1.0 for root in roots}


def shares_below(
    taxonomy: Taxonomy, weights: Mapping[str, float], targets: Mapping[str, Mapping[str, float]]
) -> dict[str, float]:
    """Shares of topics, 1 in all, in the order of the taxonomy.

    A node's weight goes to what is below it by the targets of its view, else evenly; not to
    `others`. ConfigError for a path that is not known.
    """
    shares: dict[str, float] = {}

    def spread(node: Node, weight: float) -> None:
        below = [child for child in node.children if child.id != OTHERS]
        if not below:
            shares[node.path] = shares.get(node.path, 0.0) + weight
            return
        wanted = targets.get(node.path, {})
        parts = [wanted.get(child.id, 0.0) for child in below]
        parts = parts if sum(parts) else [1.0] * len(below)
        for child, part in zip(below, parts, strict=True):
            if part:
                spread(child, weight * part / sum(parts))

    for path, weight in weights.items():
        try:
            node = taxonomy.node(path)
        except ValueError as error:
            raise ConfigError(f"topics: {error}") from None
        spread(node, weight / sum(weights.values()))
    return {path: shares[path] for path in taxonomy.nodes if path in shares}


def spread_supply(shares: Mapping[str, float], supply: Mapping[str, int]) -> dict[str, float]:
    """Records by topic; those that only a level or domain is known of are spread by the shares."""
    there = dict.fromkeys(shares, 0.0)
    for path, count in supply.items():
        below = [topic for topic in shares if f"{topic}/".startswith(f"{path}/")]
        weight = sum(shares[topic] for topic in below)
        for topic in below:
            there[topic] += count * shares[topic] / weight
    return there


def fill(
    shares: Mapping[str, float], supply: Mapping[str, float], total: float
) -> dict[str, float]:
    """How much to add of each, `total` in all, so that the least supplied are served first.

    As water fills vessels: all that get any end at the same supply for their share.
    """
    order = sorted(shares, key=lambda key: supply[key] / shares[key])
    weight = have = level = 0.0
    for index, key in enumerate(order):
        weight, have = weight + shares[key], have + supply[key]
        level = (total + have) / weight
        if index + 1 < len(order) and level <= supply[order[index + 1]] / shares[order[index + 1]]:
            break
    return {key: max(0.0, level * shares[key] - supply[key]) for key in shares}


def apportion(parts: Mapping[K, float], total: int) -> dict[K, int]:
    """Whole numbers in the proportion of `parts`, `total` in all; what is left over goes to the
    largest remainders, of equal ones to the first."""
    scale = total / sum(parts.values())
    exact = {key: part * scale for key, part in parts.items()}
    # A billionth: 2.9999999999999996 is 3.
    whole = {key: math.floor(value + 1e-9) for key, value in exact.items()}
    left = sorted(exact, key=lambda key: round(whole[key] - exact[key], 9))
    for key in left[: total - sum(whole.values())]:
        whole[key] += 1
    return whole


def requests_for(
    missing: Mapping[str, int],
    requests: Mapping[str, int],
    kept: Mapping[str, int],
    expected: float,
    most: int | None,
) -> dict[str, int]:
    """Requests of the next round by cell, `most` in all.

    As many as give what is missing at the rate seen so far. Few requests say little of a cell:
    then the rate of all cells counts, and before the first round the expected one.
    """
    seen = sum(requests.values())
    overall = (sum(kept.values()) + PRIOR * expected) / (seen + PRIOR)
    counts = {}
    for name, number in missing.items():
        if number > 0:
            own = kept.get(name, 0), requests.get(name, 0)
            rate = (own[0] + PRIOR * overall) / (own[1] + PRIOR)
            counts[name] = math.ceil(number / max(rate, expected / MOST) - 1e-9)
    if most is None or sum(counts.values()) <= most:
        return counts
    return {name: count for name, count in apportion(counts, most).items() if count}


def about(taxonomy: Taxonomy, path: str) -> str:
    """A path in words for a model: "High school: functions", "Physics: optics"."""
    ids = path.split("/")
    names = [taxonomy.nodes["/".join(ids[: depth + 1])].en for depth in range(len(ids))][-2:]
    return ": ".join([names[0], *(name[:1].lower() + name[1:] for name in names[1:])])
