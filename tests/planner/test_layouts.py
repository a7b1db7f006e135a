"""Layouts that fit: all that are possible are tried, in the order that is promised."""

from itertools import product

import pytest

from megatron_ring import config as configuration
from megatron_ring import parallel
from megatron_ring.config import Config, ParallelConfig
from megatron_ring.planner import layouts, memory
from megatron_ring.planner.memory import Workload
from tests.model.layouts import GOLDEN


def load(*overrides):
    tiny = f"model.hf_config={GOLDEN / 'ling_lite_tiny'}"
    return configuration.load(Config, [], [tiny, "data.rows_per_step=8", *overrides])


@pytest.mark.parametrize(("long", "contexts"), [(16384, [1]), (16, [1, 2, 4])])
def test_every_possible_layout_is_tried(long, contexts, monkeypatch):
    """Oracle: all layouts of small numbers, asked one by one. 2 key/value heads, 3 layers, rows of
    64 tokens; short ones are neither split over context ranks nor offloaded."""
    monkeypatch.setattr(layouts, "LONG", long)
    found = [
        (p.tp, p.cp, p.pp, p.vpp, p.ep, p.recompute, p.offload)
        for p in (c.parallel for c in layouts.possible(load(), 4, 64))
    ]
    keeping = [("none", False), ("full", False), ("full", True)][: 2 if long > 64 else 3]
    expected = set()
    for tp, cp, pp, vpp, ep in product(range(1, 5), contexts, range(1, 5), (1, 2), range(1, 9)):
        keys = {"tp": tp, "cp": cp, "pp": pp, "vpp": vpp, "ep": ep}
        candidate = load(*(f"parallel.{k}={v}" for k, v in keys.items()))
        try:
            parallel.check_layout(candidate, 4, 64)
        except ValueError:
            continue
        expected |= {(tp, cp, pp, vpp, ep, *keep) for keep in keeping}
    assert set(found) == expected
    assert len(found) == len(expected) > 10


def test_time_lost_by_hand():
    """Two stages and four rows: a quarter; chunks of half a stage: an eighth; a second forward."""
    assert layouts.waste(ParallelConfig(pp=2), rows=4) == 1.25
    assert layouts.waste(ParallelConfig(pp=2, vpp=2), rows=4) == 1.125
    assert layouts.waste(ParallelConfig(recompute="full"), rows=4) == pytest.approx(4 / 3)


def test_what_fits_is_below_the_limit_and_in_order():
    config, work = load(), Workload(64)
    everything = layouts.fitting(config, 4, work, limit=10**12)
    peaks = sorted(choice.peak for choice in everything)
    limit = peaks[len(peaks) // 2]
    some = layouts.fitting(config, 4, work, limit)
    assert [c for c in everything if c.peak <= limit] == some
    assert 0 < len(some) < len(everything)
    lost = [round(choice.waste, 3) for choice in everything]
    assert lost == sorted(lost)
    for choice in some[:3]:
        whole = memory.needs(config.model_copy(update={"parallel": choice.parallel}), 4, work)
        assert choice.peak == max(need.total for need in whole)
