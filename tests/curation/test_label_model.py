"""The offline labeller: features and gradients by hand, fits that must succeed, its files."""

import math
from pathlib import Path

import numpy as np
import pytest
import xxhash

from megatron_ring.config.base import ConfigError
from megatron_ring.curation.label import model
from megatron_ring.curation.label.features import (
    BUCKETS,
    MAX_CHARACTERS,
    features,
    ngrams,
    weighted,
)
from megatron_ring.curation.label.model import (
    OWN_FILE,
    Row,
    fit,
    load_labeller,
    mask_of,
    temperature_of,
)
from megatron_ring.curation.label.scores import descend, heads_of, probabilities
from megatron_ring.curation.taxonomy import load_taxonomy

HEADS = {"": ("sea", "land"), "sea": ("sea/fish", "sea/ship", "sea/salt")}
ROWS = [
    Row("a herring and a cod swim", ("sea/fish",)),
    Row("the cod and the trout swim", ("sea/fish",)),
    Row("a sail, a mast and a keel", ("sea/ship",)),
    Row("the keel and the sail of a boat", ("sea/ship",)),
    Row("salty brine", ("sea/salt",)),
    Row("brine dries to salt", ("sea/salt",)),
    Row("hill and valley, a dusty road", ("land",)),
    Row("the road over the hill", ("land",)),
]


def test_ngrams_by_hand() -> None:
    assert list(ngrams("Solve x^2")) == [
        "l<sol",
        "lsolv",
        "lolve",
        "llve>",
        "wsolve",
        "wx",
        "psolve x",
        "w^",
        "px ^",
        "w0",
        "p^ 0",
    ]
    assert list(ngrams("求极限\\lim")) == [
        "h求",
        "h极",
        "h限",
        "h求极",
        "h极限",
        "h求极限",
        "w\\lim",
    ]
    # Numbers by their length, never by what they are.
    assert [g for g in ngrams("3 48 1848 18480 0.25") if g[0] == "w"] == [
        "w0",
        "w00",
        "w0000",
        "w0000",
        "w0.0",
    ]


def test_features_by_hand() -> None:
    buckets, weights = features("x x")
    counts = {
        xxhash.xxh32_intdigest(b"wx") % BUCKETS: 2,
        xxhash.xxh32_intdigest(b"px x") % BUCKETS: 1,
    }
    assert buckets.tolist() == sorted(counts)
    assert weights.tolist() == pytest.approx([1 + math.log(counts[b]) for b in sorted(counts)])
    _, values = weighted("x x", np.full(BUCKETS, 3.0, np.float32))
    assert np.linalg.norm(values) == pytest.approx(1)
    assert features("")[0].size == weighted("", np.ones(BUCKETS))[1].size == 0
    long = "x " * MAX_CHARACTERS
    assert features(long)[0].tolist() == features(long + "other words")[0].tolist()


@pytest.mark.parametrize(
    ("paths", "head", "mask"),
    [
        (("sea/fish",), "", [True, False]),
        (("sea",), "", [True, False]),
        (("sea/fish", "land"), "", None),  # all are possible: nothing is said
        (("sea/fish",), "sea", [True, False, False]),
        (("sea/fish", "sea/salt"), "sea", [True, False, True]),
        (("sea",), "sea", None),
        (("land",), "sea", None),
        (("sea/fish", "land"), "sea", None),
        (("sea/fish", "sea/others"), "sea", None),  # a child that is never chosen
        (("seaside/fish",), "sea", None),  # no prefix of ids
    ],
)
def test_what_rows_say_of_a_choice(
    paths: tuple[str, ...], head: str, mask: list[bool] | None
) -> None:
    found = mask_of(paths, head, HEADS[head])
    assert (found is None) if mask is None else found.tolist() == mask


def test_gradient_is_that_of_the_cross_entropy() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(3, 4))
    goal = rng.dirichlet(np.ones(4), size=3)

    def loss(values: np.ndarray) -> float:
        return -float((goal * np.log([probabilities(row) for row in values])).sum())

    numeric = np.zeros_like(logits)
    for at in np.ndindex(*logits.shape):
        step = np.zeros_like(logits)
        step[at] = 1e-5
        numeric[at] = (loss(logits + step) - loss(logits - step)) / 2e-5
    assert model._gradient(logits, goal) == pytest.approx(numeric, abs=1e-8)


def test_learns_what_can_be_told_apart() -> None:
    labeller = fit(ROWS, HEADS)
    for row in ROWS:
        assert descend(labeller, row.text)[-1].path == row.paths[0]
    # New sentences of known words.
    assert [step.path for step in descend(labeller, "trout and herring")] == ["sea", "sea/fish"]
    assert [step.path for step in descend(labeller, "a dusty hill")] == ["land"]
    assert [step.path for step in descend(labeller, "sail", "sea")] == ["sea/ship"]


def test_open_rows_go_where_sure_rows_point_to() -> None:
    # Each of these may be salt; were that enough, all would become salt, by which none is wrong.
    loose = [
        Row("cod, trout, herring in nets", ("sea/fish", "sea/salt")),
        Row("many herring in nets", ("sea/fish", "sea/salt")),
        Row("mast and sail in ropes", ("sea/ship", "sea/salt")),
        Row("the keel in ropes", ("sea/ship", "sea/salt")),
    ]
    labeller = fit([*ROWS, *loose], HEADS)
    assert descend(labeller, "nets", "sea")[0].path == "sea/fish"
    assert descend(labeller, "ropes", "sea")[0].path == "sea/ship"


def test_same_rows_same_labeller_and_same_bytes(tmp_path: Path) -> None:
    one, other = fit(ROWS, HEADS, about="x"), fit(ROWS, HEADS, about="x")
    for name in HEADS:
        assert (one.fitted[name].weights == other.fitted[name].weights).all()
    one.save(tmp_path / "one.npz", keep=0.5)
    other.save(tmp_path / "other.npz", keep=0.5)
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "other.npz").read_bytes()
    assert (fit(ROWS, HEADS, seed=1).fitted[""].weights != one.fitted[""].weights).any()


def test_saved_labellers_say_nearly_the_same(tmp_path: Path) -> None:
    labeller = fit(ROWS, HEADS, about={"rows": 8}).calibrated({"sea": 2.0})
    labeller.save(tmp_path / "m.npz", keep=1.0)
    again = load_labeller(tmp_path / "m.npz", HEADS)
    assert again.about == {"rows": 8} and again.fitted["sea"].temperature == 2.0
    for row in ROWS:
        for name, values in labeller.logits(row.text).items():
            assert again.logits(row.text)[name] == pytest.approx(values, abs=0.03)


def test_calibration_divides_logits_only() -> None:
    labeller = fit(ROWS, HEADS)
    cooler = labeller.calibrated({"": 0.5})
    assert cooler.logits("cod")[""] == pytest.approx(2 * labeller.logits("cod")[""])
    assert cooler.logits("cod")["sea"] == pytest.approx(labeller.logits("cod")["sea"])


def test_temperature_is_found_again() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(scale=3, size=(4000, 5))
    truth = [rng.choice(5, p=probabilities(row / 2)) for row in logits]
    assert temperature_of(list(logits), list(np.eye(5, dtype=bool)[truth])) == pytest.approx(2, 0.1)


def test_files_that_do_not_fit_are_named(tmp_path: Path) -> None:
    file = tmp_path / "m.npz"
    fit(ROWS, HEADS).save(file, keep=1.0)
    with pytest.raises(ConfigError, match=r"for another taxonomy \(they differ in sky\); fit one"):
        load_labeller(file, {"": ("sea", "land", "sky"), "sea": HEADS["sea"]})
    with pytest.raises(ConfigError, match="they differ in their order"):
        load_labeller(file, {"": ("land", "sea"), "sea": HEADS["sea"]})
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ConfigError, match="cannot read the labeller .*m.npz"):
        load_labeller(file, HEADS)
    np.savez(tmp_path / "other.npz", x=np.zeros(1))
    with pytest.raises(ConfigError, match="cannot read the labeller .*other.npz"):
        load_labeller(tmp_path / "other.npz", HEADS)
    with pytest.raises(ConfigError, match="cannot read the labeller .*nowhere.npz"):
        load_labeller(tmp_path / "nowhere.npz", HEADS)


@pytest.mark.parametrize(
    ("text", "path"),
    [
        (
            "Sam had 31 stamps and gave 9 to each of his two brothers. How many are left?",
            "math/primary",
        ),
        ("Factorize $x^2 - 11x + 24$ into two linear factors.", "math"),
        (
            "Find the probability that two cards drawn from a deck are both kings.",
            "math/high_school",
        ),
        ("已知函数 f(x)=x^3-3x，求 f(x) 的单调区间和极值。", "math/high_school"),
        ("Solve the differential equation $y'' - 3y' + 2y = e^{3x}$.", "math/university"),
        ("Write a python function to reverse the words of a sentence.", "code/generation"),
        ("一小球从光滑斜面顶端由静止释放，求到达底端时的速度。", "physics"),
        ("下列物质的溶液能使酚酞变红的是", "chemistry"),
        ("下列关于线粒体和叶绿体的叙述，正确的是", "biology"),
        ("A 60-year-old man has had a cough and a fever for two weeks. Diagnosis?", "medicine"),
        (
            "Which clause of the constitution did the court apply to the state's statute?",
            "politics_law",
        ),
    ],
)
def test_the_labeller_that_is_shipped(text: str, path: str) -> None:
    assert OWN_FILE.stat().st_size < 1_000_000
    labeller = load_labeller(OWN_FILE, heads_of(load_taxonomy()))
    assert f"{descend(labeller, text)[-1].path}/".startswith(f"{path}/")
