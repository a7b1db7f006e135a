"""Layouts that fit: all that are possible are tried, in the order that is promised."""

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


def test_every_possible_layout_is_tried():
    """Oracle: all layouts of small numbers, asked one by one. 2 key/value heads, 3 layers."""
    found = {
        (p.tp, p.pp, p.vpp, p.ep, p.recompute)
        for p in (c.parallel for c in layouts.possible(load(), 4, 64))
    }
    expected = set()
    for tp in range(1, 5):
        for pp in range(1, 5):
            for vpp in (1, 2):
                for ep in range(1, 9):
                    keys = {"tp": tp, "pp": pp, "vpp": vpp, "ep": ep}
                    candidate = load(*(f"parallel.{k}={v}" for k, v in keys.items()))
                    try:
                        parallel.check_layout(candidate, 4, 64)
                    except ValueError:
                        continue
                    expected |= {(tp, pp, vpp, ep, r) for r in ("none", "full")}
    assert found == expected
    assert len(found) > 10


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
