"""How labellers are measured: every figure on rows small enough to count by hand."""

import numpy as np
import pytest

from megatron_ring.curation.label.evaluation import (
    accuracy,
    calibration,
    choices,
    confusion,
    ends,
    majority,
    reliability,
    without,
)
from megatron_ring.curation.label.model import Row
from megatron_ring.curation.label.rows import Labelled
from megatron_ring.curation.label.scores import heads_of
from megatron_ring.curation.taxonomy import load_taxonomy

OWN = load_taxonomy()
HEADS = heads_of(OWN)


def row(text: str, *paths: str, family: str = "f") -> Labelled:
    return Labelled(text, paths, paths, "s", family, "", True, False)


ROWS = [
    row("a", "math/primary/algebra"),
    row("b", "math/high_school"),
    row("c", "physics"),
    row("d", "physics", "chemistry"),
]


class Always:
    """Says math, primary, algebra; with a chance of one half, then nearly one."""

    heads = HEADS

    def logits(self, text: str) -> dict[str, np.ndarray]:
        said = {"math", "math/primary", "math/primary/algebra"}
        result = {}
        for head, children in HEADS.items():
            result[head] = np.asarray([20.0 if path in said else 0.0 for path in children])
        result[""] = np.asarray([np.log(24.0) if path == "math" else 0.0 for path in HEADS[""]])
        return result


def test_choices_by_hand() -> None:
    made = choices(Always(), ROWS, OWN)
    assert [(c.kind, c.head, c.row.text, c.right) for c in made] == [
        ("domain", "", "a", True),
        ("level", "math", "a", True),
        ("topic", "math/primary", "a", True),
        ("domain", "", "b", True),
        ("level", "math", "b", False),
        ("domain", "", "c", False),
        ("domain", "", "d", False),
    ]
    assert accuracy([c for c in made if c.kind == "domain"]) == 0.5
    assert accuracy([]) != accuracy([])  # nan
    # d may be two things, and is in no line.
    assert confusion([c for c in made if c.kind == "domain"]) == {
        "math": {"math": 2},
        "physics": {"math": 1},
    }


def test_the_majority_is_that_of_the_training_rows() -> None:
    made = choices(Always(), ROWS, OWN)
    train = [
        Row("", (path,)) for path in ("physics", "physics", "math/primary", "math/high_school")
    ]
    train.append(Row("", ("math/high_school/algebra", "math/high_school/functions")))
    assert [(c.kind, c.said) for c in majority(train, made, HEADS)] == [
        ("domain", "math"),
        ("level", "math/high_school"),
        ("topic", "math/primary/number_and_operations"),  # of none the first
        ("domain", "math"),
        ("level", "math/high_school"),
        ("domain", "math"),
        ("domain", "math"),
    ]


def test_confidence_is_of_the_path_as_far_as_the_label_goes() -> None:
    found = ends(Always(), ROWS)
    assert [right for _, right in found] == [True, False, False, False]
    # 24 of 48 for the domain; level and topic are sure.
    assert [sure for sure, _ in found] == pytest.approx([0.5] * 4)


def test_reliability_by_hand() -> None:
    table, error = reliability([(0.05, False), (0.55, True), (0.59, False), (1.0, True)])
    assert table == [
        (0.0, 1, 0.05, 0.0),
        (0.5, 2, pytest.approx(0.57), 0.5),
        (0.9, 1, 1.0, 1.0),
    ]
    assert error == pytest.approx((0.05 + 2 * 0.07 + 0) / 4)


SEEDS = [Row("lens and mirror", ("physics/optics",), "words"), Row("acid", ("chemistry",), "seeds")]


def test_a_family_left_out_is_not_seen() -> None:
    rows = [row("quark soup", "chemistry", family="g"), row("lens acid", "physics/optics")]
    with_it = without(rows, SEEDS, HEADS, "f")
    without_it = without(rows, SEEDS, HEADS, "g")
    at = HEADS[""].index("chemistry")
    lead = [m.logits("quark soup")[""][at] - m.logits("")[""][at] for m in (with_it, without_it)]
    assert lead[0] > 0.5 and lead[1] == 0


def test_calibration_speaks_only_where_rows_tell() -> None:
    # One right child of levels, and topics that nobody labels: nothing is learned of them.
    rows = [row(f"sum {i}", "math/primary", family=f"f{i % 3}") for i in range(12)]
    assert calibration(rows, SEEDS, HEADS) == {}
    mixed = [
        row(f"{word} {i}", f"math/{level}", family=f"f{i % 3}")
        for i in range(12)
        for word, level in (("apple", "primary"), ("sine", "high_school"), ("ring", "university"))
    ]
    assert list(calibration(mixed, SEEDS, HEADS)) == ["math"]
