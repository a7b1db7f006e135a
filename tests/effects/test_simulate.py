"""Designs: the trial tells the effect, the history does not; numbers at a point by hand."""

import numpy as np
import pytest

from megatron_ring.effects import simulate


@pytest.mark.parametrize("design", list(simulate.DESIGNS))
def test_the_coin_tells_the_effect_and_history_does_not(design: str) -> None:
    made = simulate.draw(design, "complete", 0, randomized=40_000, historical=40_000, test=10)
    apart = {}
    for s in (1, 0):
        y, t = made.y[made.s == s], made.t[made.s == s]
        apart[s] = y[t == 1].mean() - y[t == 0].mean()
    assert apart[1] == pytest.approx(2, abs=0.1)
    assert abs(apart[0] - 2) > 1


@pytest.mark.parametrize(
    ("history", "arms"), [("complete", {0, 1}), ("treated_only", {1}), ("control_only", {0})]
)
def test_histories_lack_what_they_say(history: str, arms: set[int]) -> None:
    made = simulate.draw("hidden", history, 3, randomized=50, historical=400, e=0.3)
    whole = simulate.draw("hidden", "complete", 3, randomized=50, historical=400, e=0.3)
    assert set(made.t[made.s == 0]) == arms
    keep = (whole.s == 1) | np.isin(whole.t, list(arms))
    assert np.array_equal(made.y, whole.y[keep])
    assert (made.s.sum(), len(whole.y), made.e) == (50, 450, 0.3)


def test_functions_at_a_point_by_hand() -> None:
    x = np.array([[np.pi / 2, 2.0, 1.0, 3.0, 0.5]])
    assert simulate.baseline(x) == pytest.approx(2 + 4 - 3 + 0.5)
    assert simulate.effect(x) == pytest.approx(2 + np.pi / 2 - 0.5 + 0.7 * np.pi + 0.5 * 8)
    treated, control = np.ones(1), np.zeros(1)
    added = {name: design.added for name, design in simulate.DESIGNS.items()}
    assert added["paper"](x, treated) == pytest.approx(3 * (0.5 + np.pi / 4 - 1.5))
    assert added["wiggly"](x, treated) == pytest.approx(3 / 2 * (0 + 2 + 8))
    assert added["wiggly"](x, control) == -added["wiggly"](x, treated)
    assert added["paper"](x, control) == 0
    assert added["shift"](x, control) == pytest.approx(1 + np.pi / 2 - 2)
    assert added["hidden"](x, treated) == 0


def test_other_names_are_refused() -> None:
    with pytest.raises(ValueError, match="design='star'; it is one of hidden, paper, shift"):
        simulate.draw("star", "complete", 0)
    with pytest.raises(ValueError, match="history='none'; it is one of complete, treated_only"):
        simulate.draw("paper", "none", 0)
