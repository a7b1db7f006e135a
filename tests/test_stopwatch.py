"""Parts of a step, timed."""

import time

import pytest

from megatron_ring import stopwatch


def test_parts_and_the_rest_are_all_the_time(monkeypatch):
    """By a clock that is set by hand: 2 + 1 s of one part, 5 s of another, 4 s outside."""
    now = [100.0]
    monkeypatch.setattr(stopwatch.time, "monotonic", lambda: now[0])
    clock = stopwatch.Stopwatch()
    for part, inside, outside in (("data", 2, 1), ("step", 5, 3), ("data", 1, 0)):
        with clock(part):
            now[0] += inside
        now[0] += outside
    assert clock.read() == {"data": 3, "step": 5, "other": 4}
    now[0] += 7
    assert clock.read() == {"other": 7}  # read means forgotten


def test_a_part_that_fails_is_no_time_of_anybody():
    clock = stopwatch.Stopwatch()
    with pytest.raises(ValueError), clock("data"):
        raise ValueError
    with clock("step"):
        time.sleep(0.02)
    seconds = clock.read()
    assert "data" not in seconds and seconds["step"] >= 0.02
