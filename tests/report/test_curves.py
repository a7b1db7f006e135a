"""Thinning keeps what the eye looks for; means are means; numbers are short and valid JSON."""

import json
import math

import numpy as np
import pytest

from megatron_ring.report import curves


@pytest.mark.parametrize("count", [2_001, 2_002, 4_999, 100_000, 123_457])
@pytest.mark.parametrize("holes", [0, 7])
def test_each_stretch_keeps_its_least_and_greatest_value(count: int, holes: int) -> None:
    rng = np.random.default_rng(count)
    values = rng.normal(size=count)
    values[rng.choice(count, holes, replace=False)] = np.nan
    kept = curves.thin(values)
    assert len(kept) <= curves.POINTS
    assert (kept[0], kept[-1]) == (0, count - 1)
    assert (np.diff(kept) > 0).all()
    buckets = (curves.POINTS - 2) // (3 if holes else 2)
    width = math.ceil(count / buckets)
    chosen = set(kept.tolist())
    for start in range(0, count, width):  # slowly, one by one
        bucket = range(start, min(start + width, count))
        finite = [i for i in bucket if math.isfinite(values[i])]
        assert min(finite, key=lambda i: values[i]) in chosen
        assert max(finite, key=lambda i: values[i]) in chosen
        strange = [i for i in bucket if not math.isfinite(values[i])]
        assert not strange or strange[0] in chosen


def test_a_single_spike_of_a_hundred_thousand_values_stays() -> None:
    values = np.ones(100_000)
    values[77_777], values[12_345] = 9.0, -3.0
    kept = values[curves.thin(values)]
    assert (kept.max(), kept.min()) == (9.0, -3.0)


def test_short_curves_stay_whole() -> None:
    assert curves.thin(np.arange(2_000.0)).tolist() == list(range(2_000))
    assert curves.thin(np.array([])).tolist() == []


@pytest.mark.parametrize("window", [1, 2, 3, 4, 7])
def test_means_against_a_loop(window: int) -> None:
    values = np.random.default_rng(window).normal(size=50)
    values[[3, 4, 20]] = np.nan, np.inf, -np.inf
    found = curves.smooth(values, window)
    for i in range(50):
        around = values[max(i - (window - 1) // 2, 0) : i + window // 2 + 1]
        around = around[np.isfinite(around)]
        if len(around):
            assert found[i] == pytest.approx(around.mean(), abs=1e-12)
        else:
            assert math.isnan(found[i])


def test_what_is_not_finite_is_counted_and_null() -> None:
    values = [1.0, math.nan, 3.0, math.inf, 5.0]
    made = curves.prepare([1, 2, 3, 4, 5], values, smoothed=True)
    assert made.values == [1, None, 3, None, 5]
    assert (made.not_finite, made.num_not_finite) == ([2, 4], 2)
    assert (made.window, made.smooth_steps) == (0, [])  # too short
    json.dumps(made, allow_nan=False)


def test_the_mean_is_of_all_values_not_of_the_kept_ones() -> None:
    values = [float(i % 2) for i in range(100_000)]
    values[500:600] = [8.0] * 100
    made = curves.prepare(list(range(100_000)), values, smoothed=True)
    assert made.window == 2_001
    assert made.smooth_values[-1] == pytest.approx(0.5, abs=1e-3)
    assert len(made.smooth_steps) == curves.SMOOTH_POINTS
    assert made.smooth_raw[3] == values[made.smooth_steps[3]]


def test_short_numbers() -> None:
    values = np.array([1.23456789, 4e-5 / 3, -0.0, 131072.0, np.nan, -np.inf, 2.0])
    assert curves.short(values) == [1.2346, 1.3333e-05, 0, 131070, None, None, 2]
    assert curves.short(np.array([123456789012.0]), 12) == [123456789012]
