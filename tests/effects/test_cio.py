"""CIO against least squares, against what its variants must converge to, and against hand sums."""

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.dummy import DummyRegressor
from sklearn.ensemble import RandomForestRegressor
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LinearRegression
from sklearn.neighbors import KNeighborsRegressor

from megatron_ring.effects import simulate
from megatron_ring.effects.baselines import NaivePooling, RCTOnly
from megatron_ring.effects.cio import CIO
from megatron_ring.effects.learners import ridge

HISTORIES = pytest.mark.parametrize("history", simulate.HISTORIES)
LEAST_SQUARES = LinearRegression()
MEAN = DummyRegressor()
CONFOUNDED = 0.7  # added to historical outcomes of both arms in `linear`


def plain(**more: object) -> CIO:
    """CIO of least squares throughout, whatever else is asked for."""
    made = dict(outcome=LEAST_SQUARES, bias=LEAST_SQUARES, heterogeneity=LEAST_SQUARES, e=0.5)
    return CIO(**{**made, "final": "t", "borrow": False, **more})


def linear(
    history: str, trial: int, past: int, e: float = 0.5, noise: float = 1.0, seed: int = 0
) -> dict[str, np.ndarray]:
    """Y = x0 + T (2 + x0) + noise; history adds CONFOUNDED (1 + x1) to treated, 0.7 to controls."""
    random = np.random.default_rng(seed)
    n = trial + past
    x, s = random.normal(size=(n, 2)), (np.arange(n) < trial).astype(int)
    t = (random.uniform(size=n) < np.where(s == 1, e, 0.6)).astype(int)
    y = x[:, 0] + t * (2 + x[:, 0]) + noise * random.normal(size=n)
    y += (1 - s) * CONFOUNDED * (1 + t * x[:, 1])
    keep = (s == 1) | simulate.kept(history, t)
    return {"Y": y[keep], "T": t[keep], "X": x[keep], "S": s[keep]}


def truth(x: np.ndarray) -> np.ndarray:
    return 2 + x[:, 0]


def slope_and_level(learned: np.ndarray, x: np.ndarray) -> tuple[float, float]:
    """Least squares of the learned effect on the true one, and the mean learned effect."""
    slope = np.polyfit(truth(x), learned, 1)[0]
    return float(slope), float(learned.mean())


@HISTORIES
@pytest.mark.parametrize("step", ["t", "x"])
def test_with_least_squares_throughout_history_changes_nothing(history: str, step: str) -> None:
    """Its residuals are orthogonal to X, so that the pool's normal equations are the trial's."""
    rows = linear(history, 60, 400)
    x = np.random.default_rng(1).normal(size=(50, 2))
    joint = plain(bias_step=step).fit(**rows).effect(x)
    alone = RCTOnly("t", LEAST_SQUARES, e=0.5).fit(**rows).effect(x)
    assert np.abs(joint - alone).max() < 1e-10
    assert np.abs(NaivePooling(LEAST_SQUARES).fit(**rows).effect(x) - alone).max() > 0.1


@HISTORIES
@pytest.mark.parametrize("borrow", [False, True])
@pytest.mark.parametrize("final", ["t", "x", "dr"])
def test_each_arm_against_itself_finds_the_effect(history: str, borrow: bool, final: str) -> None:
    rows = linear(history, 4000, 20000)
    x = np.random.default_rng(1).normal(size=(500, 2))
    slope, level = slope_and_level(plain(final=final, borrow=borrow).fit(**rows).effect(x), x)
    assert slope == pytest.approx(1, abs=0.06)
    assert level == pytest.approx(truth(x).mean(), abs=0.1)


@HISTORIES
def test_all_randomized_rows_as_control_attenuate_the_effect(history: str) -> None:
    """The limits of the formula as relayed: 1 - w (1 - e) of treated, 1 - w e of controls."""
    e, trial, past = 0.4, 8000, 24000
    rows = linear(history, trial, past, e=e)
    share = {t: np.mean(rows["S"][rows["T"] == t] == 0) for t in (0, 1)}
    x = np.random.default_rng(1).normal(size=(500, 2))
    relayed = plain(pseudo_control="all", bias_step="t", e=e).fit(**rows).effect(x)
    factor, shift = {
        "complete": (1 - share[1] * (1 - e), -share[0] * CONFOUNDED),
        "treated_only": (1 - share[1] * (1 - e), 0),
        "control_only": (1 - share[0] * e, 0),
    }[history]
    slope, level = slope_and_level(relayed, x)
    assert slope == pytest.approx(factor, abs=0.06)
    assert level == pytest.approx(factor * truth(x).mean() + shift, abs=0.1)
    assert factor < 0.75


def test_doubly_robust_mode_is_right_on_average_whatever_the_history() -> None:
    """History is noise around nonsense: the mean over draws stays within its error of the truth."""
    found = []
    for seed in range(60):
        rows = linear("complete", 60, 100, seed=seed)
        past, random = rows["S"] == 0, np.random.default_rng(seed)
        wild = 20 * random.normal(size=past.sum()) + 30 * rows["T"][past]
        rows["Y"][past] = wild - 15 * rows["X"][past, 1] ** 2
        robust = plain(final="dr", bias=MEAN, folds=3).fit(**rows)
        found.append(robust.effect(np.zeros((1, 2)))[0])
        pooled = NaivePooling(LEAST_SQUARES).fit(**rows).effect(np.zeros((1, 2)))[0]
        assert pooled > 6
    error = np.std(found, ddof=1) / np.sqrt(len(found))
    assert error < 0.4
    assert np.mean(found) == pytest.approx(2, abs=3 * error)


def test_a_missing_arm_is_borrowed_exactly_where_the_effect_is_simple() -> None:
    """Outcomes without noise, a baseline that only a table of neighbours knows, effect of 3."""
    places = np.repeat(np.arange(20.0), 4)[:, None]
    baseline = np.random.default_rng(0).normal(size=20)[places[:, 0].astype(int)]
    coin = np.tile([0, 1], 6)
    x = np.vstack([places, places[:12]])
    t, s = np.r_[np.zeros(80, dtype=int), coin], np.r_[np.zeros(80), np.ones(12)]
    y = np.r_[baseline + 5, baseline[:12] + 3 * coin]
    table = KNeighborsRegressor(n_neighbors=1)
    made = dict(outcome=table, bias=MEAN, heterogeneity=MEAN, final="t", e=0.5)
    borrowed = CIO(**made).fit(y, t, X=x, S=s)
    assert borrowed.completeness_ == "control_only"
    assert borrowed.bias_function(x[:3], arm=0) == pytest.approx([5, 5, 5])
    assert borrowed.corrected_outcome_ == pytest.approx(y - 5 * (s == 0))
    assert borrowed.effect(places) == pytest.approx(np.full(80, 3))
    alone = CIO(**made, borrow=False).fit(y, t, X=x, S=s)
    assert np.abs(alone.effect(places) - 3).max() > 0.5


@pytest.mark.parametrize(
    ("kept", "name"),
    [((0, 1), "complete"), ((1,), "treated_only"), ((0,), "control_only"), ((), "none")],
)
def test_completeness_is_what_the_history_has(kept: tuple[int, ...], name: str) -> None:
    rows = linear("complete", 60, 200)
    keep = (rows["S"] == 1) | np.isin(rows["T"], kept)
    cut = {key: value[keep] for key, value in rows.items()}
    fitted = plain(final="dr").fit(**cut)
    assert fitted.completeness_ == name
    with pytest.raises(ValueError, match="there is no bias function of that arm"):
        fitted.bias_function(rows["X"], arm=1 if 1 not in kept else 2)
    # `arms` drops rows to the same end.
    if kept:
        chosen = plain(final="dr", arms=kept).fit(**rows)
        assert chosen.completeness_ == name
        assert np.array_equal(chosen.effect(rows["X"]), fitted.effect(rows["X"]))


@pytest.mark.parametrize("final", ["t", "x", "dr", "auto"])
def test_without_history_it_is_rct_only(final: str) -> None:
    rows = linear("complete", 60, 0)
    fitted = plain(final=final).fit(**rows)
    kind = "dr" if final == "auto" else final
    alone = RCTOnly(kind, LEAST_SQUARES, LEAST_SQUARES, e=0.5).fit(**rows)
    assert (fitted.completeness_, fitted.chosen_) == ("none", "rct")
    assert np.array_equal(fitted.effect(rows["X"]), alone.effect(rows["X"]))
    assert np.array_equal(fitted.corrected_outcome_, rows["Y"])
    assert "there is no history" in fitted.diagnostics()["flags"][0]


def test_a_fallback_is_rct_only_to_the_last_digit() -> None:
    rows = linear("complete", 60, 200)
    fitted = plain(final="auto", margin=1e9).fit(**rows)
    alone = RCTOnly("dr", LEAST_SQUARES, LEAST_SQUARES, e=0.5).fit(**rows)
    assert fitted.chosen_ == "rct"
    assert np.array_equal(fitted.effect(rows["X"]), alone.effect(rows["X"]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"S": 0}, "S is 0 in every row: no randomized rows, .* correlational only"),
        ({"T": 1}, "0 randomized rows with T=0; 3 are needed in each arm .* randomize 3 more"),
        ({"T": 2}, "T holds 2; it must be 0 or 1"),
        ({"Y": np.nan}, "Y has 260 values that are no numbers"),
        ({"X": np.nan}, "X has 520 values that are no numbers"),
        ({"X": None}, r"X has the shape \(260,\); it is rows x features"),
        ({"X": "far"}, "X holds what is no number"),
        ({"T": "1.0"}, "T holds 1.0; it must be 0 or 1"),
        ({"S": None}, "S holds .*; it must be 0 or 1"),
        ({"groups": np.arange(260) % 60}, "60 of the groups have rows with S=1 and with S=0"),
        ({"groups": [None, *"a" * 259]}, "groups lacks the label of 1 rows"),
        ({"groups": np.r_[np.nan, np.ones(259)]}, "groups lacks the label of 1 rows"),
        ({"sample_weight": 1 - linear("complete", 60, 200)["T"]}, "0 randomized rows with T=1"),
        ({"sample_weight": 0}, "sample_weight must not be negative, nor 0 everywhere"),
        ({"bias_features": [0, 5]}, r"bias_features=\[0, 5\]: \[5\] is no column of X"),
        ({"bias_features": []}, "nothing is no column of X; its 2 are 0 to 1"),
        ({"groups": np.arange(3)}, "groups has 3 rows and Y 260"),
    ],
)
def test_rows_that_tell_nothing_are_refused(change: dict[str, object], message: str) -> None:
    rows: dict[str, object] = {**linear("complete", 60, 200)}
    for name, value in change.items():
        if name in ("S", "T", "Y", "X", "sample_weight"):
            shape = np.shape(rows[name]) if name in rows else (260,)
            value = rows["Y"] if value is None else np.broadcast_to(value, shape)
        rows[name] = value
    with pytest.raises(ValueError, match=message):
        plain().fit(**rows)


def test_before_a_fit_nothing_is_told() -> None:
    x = np.zeros((1, 2))
    for ask in (lambda e: e.effect(x), lambda e: e.effect_interval(x), CIO.diagnostics):
        with pytest.raises(NotFittedError, match="This CIO instance is not fitted yet"):
            ask(plain())


def test_a_topic_without_weight_is_left_out() -> None:
    rows = linear("complete", 60, 200)
    topic = np.where(np.arange(260) % 2, "even", "odd")
    fitted = plain(final="x", bootstraps=2).fit(**rows, sample_weight=(topic == "odd") * 1.0)
    assert [one.topic for one in fitted.summarize(topic)] == ["odd"]


def test_more_bootstraps_are_done_when_asked_for() -> None:
    fitted = plain(final="x", bootstraps=2).fit(**linear("complete", 60, 200))
    fitted.summarize(["all"] * 260)
    fitted.set_params(bootstraps=3).summarize(["all"] * 260)
    assert len(fitted.replicates_) == 3


@pytest.mark.parametrize("arms", [1, "both", (2,)])
def test_arms_that_are_none(arms: object) -> None:
    with pytest.raises(ValueError, match="write 'auto' or a tuple of those"):
        plain(final="x", arms=arms).fit(**linear("complete", 60, 200))


def test_runs_are_counted_and_not_their_rows() -> None:
    """Two treated runs of 30 rows each are two."""
    rows = linear("complete", 120, 200)
    rows["T"][:120] = np.repeat([1, 1, 0, 0], 30)
    groups = np.r_[np.repeat(np.arange(4), 30), 100 + np.arange(200)]
    with pytest.raises(ValueError, match="2 randomized runs with T=0; 3 are needed in each arm"):
        plain().fit(**rows, groups=groups)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"final": "best"}, "final='best'; it is one of t, x, forest, dr, auto"),
        ({"bias_step": "y"}, "bias_step='y'; it is one of t, x, dr, forest"),
        ({"pseudo_control": "both"}, "pseudo_control='both'; it is one of arm, all"),
        ({"arms": "both"}, r"arms='both': the history has rows of \(0, 1\)"),
        ({"arms": (2,)}, r"arms=\(2,\): the history has rows of \(0, 1\)"),
        ({"e": 1.5}, "e=1.5: the coin's chance of T=1 must be between 0 and 1"),
        ({"folds": 1, "final": "dr"}, "folds=1: cross-fitting needs at least 2"),
    ],
)
def test_parameters_are_checked(parameters: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plain(**parameters).fit(**linear("complete", 60, 200))


def test_intervals_and_weights_need_learners_that_take_weights() -> None:
    rows = linear("complete", 60, 200)
    fitted = CIO(KNeighborsRegressor(), final="t", bootstraps=2).fit(**rows)
    with pytest.raises(ValueError, match="KNeighborsRegressor takes no sample_weight"):
        fitted.effect_interval(rows["X"])
    with pytest.raises(ValueError, match="bootstraps=1: intervals need 2"):
        plain(bootstraps=1).fit(**rows).effect_interval(rows["X"])
    with pytest.raises(ValueError, match="alpha=90 must be between 0 and 1"):
        plain(bootstraps=2).fit(**rows).effect_interval(rows["X"], alpha=90)
    with pytest.raises(ValueError, match="X has 1 columns; it was fitted with 2"):
        plain().fit(**rows).effect(rows["X"][:, :1])


def test_a_clone_learns_the_same() -> None:
    rows = linear("complete", 60, 200)
    one = CIO(ridge(), final="x", bootstraps=3, random_state=4)
    other = clone(one).set_params(margin=2.0)
    assert (other.get_params()["random_state"], other.margin) == (4, 2.0)
    x = rows["X"][:5]
    ends = [m.fit(**rows).effect_interval(x) for m in (one, other)]
    assert np.array_equal(ends[0], ends[1])
    assert (ends[0][0] < one.effect(x)).all() and (one.effect(x) < ends[0][1]).all()


def test_a_forest_may_be_any_of_the_learners() -> None:
    """Not fitted yet, it has no length, so no truth value either."""
    few = RandomForestRegressor(2, random_state=0)
    rows = linear("complete", 60, 200)
    fitted = CIO(few, few, few, final="dr").fit(**rows)
    kinds = {type(getattr(fitted.correction_.recipe, name)) for name in ("outcome", "bias")}
    assert kinds == {type(fitted.correction_.recipe.heterogeneity)} == {RandomForestRegressor}


def test_a_weight_of_two_is_a_row_twice() -> None:
    rows = linear("complete", 60, 200)
    weight = np.where(np.arange(260) % 3 == 0, 2.0, 1.0)
    twice = {key: np.repeat(value, weight.astype(int), axis=0) for key, value in rows.items()}
    weighted = plain(bias=MEAN).fit(**rows, sample_weight=weight)
    assert weighted.effect(rows["X"]) == pytest.approx(
        plain(bias=MEAN).fit(**twice).effect(rows["X"]), abs=1e-9
    )


def test_bias_functions_see_their_features_alone() -> None:
    rows = linear("complete", 400, 2000)
    fitted, x = plain().fit(**rows, bias_features=[1]), rows["X"]
    here = fitted.bias_function(x, arm=1)
    assert np.array_equal(fitted.bias_function(x + [5, 0], arm=1), here)
    assert fitted.bias_function(x + [0, 5], arm=1) - here == pytest.approx(5 * 0.7, abs=1)


def test_topics_are_means_over_randomized_rows() -> None:
    """Six runs of the same four items: the counts and the mean by hand."""
    items = np.array([[0.0], [1.0], [2.0], [3.0]])
    x = np.tile(items, (6, 1))
    run = np.repeat(np.arange(6), 4)
    t = run % 2
    y = x[:, 0] * t
    topic = np.tile(["low", "low", "high", "high"], 6)
    fitted = RCTOnly("t", LEAST_SQUARES, bootstraps=5).fit(y, t, X=x, S=np.ones(24), groups=run)
    high, low = fitted.summarize(topic)
    assert (high.topic, high.items, high.runs) == ("high", 2, 6)
    assert (high.effect, low.effect) == (pytest.approx(2.5), pytest.approx(0.5))
    assert high.low <= high.effect <= high.high
    with pytest.raises(ValueError, match="by has 3 labels and the fit 24 rows"):
        fitted.summarize(["a", "b", "c"])


def test_diagnostics_count_and_warn() -> None:
    rows = linear("treated_only", 60, 400, noise=0.1)
    rows["Y"][rows["S"] == 0] += 20
    rows["X"][rows["S"] == 0, 1] += 9
    found = plain(final="x", borrow=True).fit(**rows).diagnostics()
    treated = int(rows["T"][:60].sum())
    assert found["rows"]["randomized"] == {0: 60 - treated, 1: treated}
    assert found["rows"]["historical"] == {0: 0, 1: len(rows["Y"]) - 60}
    assert set(found["held_out"]) == {"rct", "x"}
    assert found["held_out"]["x"]["slope"] == pytest.approx(1, abs=0.1)
    flags = " ".join(found["flags"])
    assert "the history has no control rows: that arm's outcomes are borrowed" in flags
    assert "history of arm 1 is off by +" in flags
    assert "of historical rows lie beyond the randomized ones in a feature" in flags
    few = np.r_[np.arange(60) // 10 * 2 + rows["T"][:60], 100 + np.arange(len(rows["Y"]) - 60)]
    flags = plain(final="x").fit(**rows, groups=few).diagnostics()["flags"]
    assert any("6 randomized runs in the smaller arm" in flag for flag in flags)


@pytest.mark.parametrize(("step", "final"), [("dr", "t"), ("forest", "t"), ("x", "forest")])
def test_learners_of_econml_take_off_the_bias_too(step: str, final: str) -> None:
    rows = linear("complete", 400, 1600)
    x = np.random.default_rng(1).normal(size=(200, 2))
    fitted = plain(bias_step=step, final=final).fit(**rows, bias_features=[1])
    naive = NaivePooling(LEAST_SQUARES).fit(**rows)
    wrong = [np.sqrt(np.mean((m.effect(x) - truth(x)) ** 2)) for m in (fitted, naive)]
    assert wrong[0] < 0.4 < wrong[1]
