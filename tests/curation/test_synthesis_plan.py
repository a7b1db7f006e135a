"""Quotas and requests of synthesis against numbers worked out by hand."""

import random

import pytest

from megatron_ring.config import ConfigError
from megatron_ring.curation.distribution.shares import OWN_TARGETS, Targets, load_targets
from megatron_ring.curation.synthesis import plan
from megatron_ring.curation.synthesis.domain import Cell
from megatron_ring.curation.taxonomy import OTHERS, load_taxonomy

TAXONOMY = load_taxonomy()
TARGETS = load_targets(OWN_TARGETS, TAXONOMY)
NONE = Targets({})


def test_the_least_supplied_are_filled_first():
    # b is lowest and rises alone to 0.3 * 20 = 6; the 4 left lift a and b together to
    # (10 + 0 + 10) / 0.8 = 25 times their share, which c is above already.
    got = plan.fill({"a": 0.5, "b": 0.3, "c": 0.2}, {"a": 10, "b": 0, "c": 10}, 10)
    assert got == pytest.approx({"a": 2.5, "b": 7.5, "c": 0.0})


def test_filling_ends_where_no_other_way_is_more_even():
    """Against pouring a hundredth at a time into whatever is lowest."""
    rng = random.Random(3)
    for _ in range(20):
        weights = [rng.random() + 0.05 for _ in range(5)]
        shares = {str(k): w / sum(weights) for k, w in enumerate(weights)}
        supply = {key: rng.randrange(40) for key in shares}
        total = rng.randint(1, 60)
        poured = dict.fromkeys(shares, 0.0)
        for _ in range(total * 100):
            low = min(shares, key=lambda key: (supply[key] + poured[key]) / shares[key])
            poured[low] += 0.01
        got = plan.fill(shares, supply, total)
        assert got == pytest.approx(poured, abs=0.02)
        assert sum(got.values()) == pytest.approx(total)


def test_whole_numbers_add_up_and_leave_remainders_to_the_largest():
    assert plan.apportion({"a": 1, "b": 1, "c": 1}, 10) == {"a": 4, "b": 3, "c": 3}
    assert plan.apportion({"a": 2.5, "b": 7.5}, 10) == {"a": 3, "b": 7}  # equal: the first
    assert plan.apportion({"a": 1.2, "b": 1.9, "c": 6.9}, 10) == {"a": 1, "b": 2, "c": 7}
    # 3 * (0.1 + 0.2) is 0.9000000000000001, and a third of 3 is 1 all the same
    assert plan.apportion({"a": 0.1 + 0.2, "b": 0.3, "c": 0.3}, 3) == {"a": 1, "b": 1, "c": 1}


def test_shares_follow_the_targets_of_levels_and_are_even_over_topics():
    shares = plan.shares_below(TAXONOMY, {"math": 1.0}, TARGETS.shares)
    assert sum(shares.values()) == pytest.approx(1)
    # Targets of the levels: 3, 16, 68, 14, in all 101; junior high school has 4 topics but others.
    assert shares["math/junior_high/functions"] == pytest.approx(16 / 101 / 4)
    high = [child.id for child in TAXONOMY.node("math/high_school").children]
    assert shares["math/high_school/sequences"] == pytest.approx(68 / 101 / (len(high) - 1))
    assert not any(path.endswith(OTHERS) for path in shares)
    assert list(shares) == [path for path in TAXONOMY.nodes if path in shares]


def test_a_target_of_nothing_gets_nothing():
    wanted = {"math": {"primary": 0.25, "university": 0.75}}
    shares = plan.shares_below(TAXONOMY, {"math": 1.0}, wanted)
    assert {path.split("/")[1] for path in shares} == {"primary", "university"}
    assert sum(s for p, s in shares.items() if "/primary/" in p) == pytest.approx(0.25)


def test_paths_that_are_named_twice_add_up():
    weights = {"math/junior_high": 4.0, "math/junior_high/algebra": 4.0}
    shares = plan.shares_below(TAXONOMY, weights, {})
    assert shares["math/junior_high/algebra"] == pytest.approx((1 + 4) / 8)


def test_supply_without_a_topic_is_spread_by_the_shares():
    shares = {"math/junior_high/algebra": 0.3, "math/junior_high/geometry": 0.1}
    there = plan.spread_supply(
        shares, {"math/junior_high": 8, "math/junior_high/geometry": 5, "math/primary": 7}
    )
    assert there == pytest.approx(
        {**dict.fromkeys(shares), "math/junior_high/algebra": 6, "math/junior_high/geometry": 7}
    )


def test_quotas_go_where_supply_is_short():
    supply = {"physics/optics": 30, "physics/gravity": 2}
    targets = Targets({"physics": {"optics": 0.5, "gravity": 0.3, "magnetism": 0.2}})
    quotas = plan.make_quotas(TAXONOMY, ["physics"], {}, {}, targets, supply, 18)
    # 18 + 2 = 20 for shares of 0.3 and 0.2: 12 - 2 and 8; optics has more than 0.5 of 50.
    assert [(q.cell.path, q.wanted, q.supply) for q in quotas] == [
        ("physics/magnetism", 8, 0),
        ("physics/gravity", 10, 2),
    ]
    assert quotas[0].cell == Cell("physics/magnetism", "Physics: magnetism")
    assert quotas[1].share == pytest.approx(0.3)


def test_quotas_of_topics_that_are_given_do_not_look_at_supply():
    topics = {"math/high_school/functions": 3, "math/high_school/sequences": 1}
    supply = {"math/high_school/functions": 1000}
    quotas = plan.make_quotas(
        TAXONOMY, ["math"], {"easy": 1, "hard": 3}, topics, TARGETS, supply, 16
    )
    assert {q.cell.name: q.wanted for q in quotas} == {
        "math/high_school/functions:easy": 3,
        "math/high_school/functions:hard": 9,
        "math/high_school/sequences:easy": 1,
        "math/high_school/sequences:hard": 3,
    }
    assert quotas[0].cell.about == "High school: functions"


def test_roots_share_as_the_targets_know_them_all_or_evenly():
    assert plan._root_shares(["math", "code"], TARGETS) == pytest.approx(
        {"math": 0.842, "code": 0.0833}
    )
    assert plan._root_shares(["math", "physics"], TARGETS) == {"math": 1.0, "physics": 1.0}


def test_topics_that_are_elsewhere_or_nowhere_are_named():
    with pytest.raises(ConfigError, match=r"^topics.physics/optics is not below math, the domain"):
        plan.make_quotas(TAXONOMY, ["math"], {}, {"physics/optics": 1}, NONE, {}, 5)
    with pytest.raises(ConfigError, match=r"^topics: 'math/high' is no path.*no 'high' under math"):
        plan.make_quotas(TAXONOMY, ["math"], {}, {"math/high": 1}, NONE, {}, 5)
    with pytest.raises(ConfigError, match="is not below physics or chemistry"):
        plan.make_quotas(TAXONOMY, ["physics", "chemistry"], {}, {"math": 1}, NONE, {}, 5)


def test_requests_before_anything_was_seen_go_by_what_is_expected():
    assert plan.requests_for({"a": 10, "b": 0, "c": -2}, {}, {}, 0.5, None) == {"a": 20}
    assert plan.requests_for({"a": 3}, {}, {}, 2.0, None) == {"a": 2}


def test_requests_go_by_what_was_kept_so_far():
    # All cells: (15 + 8 * 0.5) / (20 + 8) = 0.6786; this one: (15 + 8 * 0.6786) / 28 = 0.7296
    assert plan.requests_for({"a": 5}, {"a": 20}, {"a": 15}, 0.5, None) == {"a": 7}
    # b was never asked for: the rate of all, 0.6786
    assert plan.requests_for({"b": 5}, {"a": 20}, {"a": 15}, 0.5, None) == {"b": 8}
    # Nothing kept of 40: never more than 8 times what was expected, 10 / 0.5 * 8
    assert plan.requests_for({"a": 10}, {"a": 40}, {}, 0.5, None) == {"a": 160}


def test_a_round_has_no_more_requests_than_allowed():
    assert plan.requests_for({"a": 10, "b": 20}, {}, {}, 0.5, 30) == {"a": 10, "b": 20}
    assert plan.requests_for({"a": 1, "b": 20}, {}, {}, 0.5, 5) == {"b": 5}
