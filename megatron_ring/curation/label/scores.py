"""What every labeller has in common: scores of the nodes below a node, and the way down by them."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from megatron_ring.curation.taxonomy import OTHERS, Taxonomy

Heads = dict[str, tuple[str, ...]]  # path of a node ("" for the root): the children to choose from


def heads_of(taxonomy: Taxonomy) -> Heads:
    """One choice for the root and for every node with children; `others` is never chosen.

    A text is of `others` when nothing else is likely, which is no property that one could learn.
    """
    choices: Heads = {"": tuple(node.path for node in taxonomy.domains)}
    for node in taxonomy.nodes.values():
        if node.children:
            choices[node.path] = tuple(c.path for c in node.children if c.id != OTHERS)
    return choices


class Scorer(Protocol):
    """A labeller that works offline."""

    heads: Heads

    def logits(self, text: str) -> dict[str, np.ndarray]:
        """For each head, a calibrated logit (natural logarithm, up to a constant) of each child."""


@dataclass(frozen=True)
class Step:
    """One choice on the way down."""

    path: str
    probability: float  # given that the choices before it are right


def probabilities(logits: np.ndarray) -> np.ndarray:
    """Their softmax, in double precision."""
    shifted = np.exp(np.asarray(logits, np.float64) - np.max(logits))
    return shifted / shifted.sum()


def descend(scorer: Scorer, text: str, start: str = "") -> list[Step]:
    """The likeliest child of `start`, of that child, and so on to a leaf; the first of equals.

    Probabilities are rounded to four digits, so that another processor's last bit changes nothing.
    """
    steps: list[Step] = []
    logits = scorer.logits(text)
    while start in scorer.heads:
        chances = probabilities(logits[start])
        best = int(np.argmax(chances))
        start = scorer.heads[start][best]
        steps.append(Step(start, round(float(chances[best]), 4)))
    return steps
