"""Distributions: counts and shortages by hand, what is read, what the pictures are drawn from."""

import json
import math
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from megatron_ring.config.base import ConfigError
from megatron_ring.curation.distribution.charts import differences, panels
from megatron_ring.curation.distribution.shares import (
    OWN_TARGETS,
    Targets,
    count,
    load_targets,
    read_labels,
    shortages,
    targets_of,
)
from megatron_ring.curation.taxonomy import load_taxonomy

OWN = load_taxonomy()
RECORDS = [
    {"domain": "math", "level": "primary", "topic": "algebra"},
    {"domain": "math", "level": "primary", "topic": "algebra"},
    {"domain": "math", "level": "primary", "topic": "others"},
    {"domain": "math", "level": "high_school"},
    {"domain": "math", "level": "unknown"},
    {"domain": "physics", "topic": "optics"},
    {"domain": "medicine"},
    {"domain": "unknown"},
    {"domain": "astrology"},
    {},
]
FOUND = count(RECORDS, OWN)


def test_counts_by_hand() -> None:
    assert FOUND.counts == {
        "all": {"math": 5, "physics": 1, "medicine": 1, "unknown": 3},
        "math": {"primary": 3, "high_school": 1, "unknown": 1},
        "math/primary": {"algebra": 2, "others": 1},
        "math/high_school": {"unknown": 1},
        "physics": {"optics": 1},
    }
    assert FOUND.views() == ["all", "math", "math/primary", "math/high_school", "physics"]
    assert FOUND.shares("math") == {"primary": 0.6, "high_school": 0.2, "unknown": 0.2}
    groups = {"STEM": ("physics", "medicine")}
    assert FOUND.shares("all", groups) == {"math": 0.5, "unknown": 0.3, "STEM": 0.2}


def test_each_view_adds_up_and_order_does_not_matter() -> None:
    for view in FOUND.views():
        assert math.isclose(sum(FOUND.shares(view).values()), 1)
        if view != "all":
            parent, _, id = view.rpartition("/")
            assert FOUND.total(view) == FOUND.counts[parent or "all"][id]
    assert count(reversed(RECORDS), OWN).counts == FOUND.counts


def test_adding_what_is_missing_meets_the_share() -> None:
    targets = Targets({"all": {"math": 0.6, "code": 0.2, "physics": 0.05}, "math": {"primary": 1}})
    first, second, third = shortages(FOUND, targets)
    assert (first.view, first.id, first.missing) == ("math", "primary", math.inf)
    # 5 of 10 records of wanted 60 %: (6 - 5) / 0.4; none of 10 of wanted 20 %: 2 / 0.8.
    assert (second.id, second.count, second.share) == ("code", 0, 0.0)
    assert (third.id, third.count, third.share, third.target) == ("math", 5, 0.5, 0.6)
    assert math.isclose(second.missing, 2.5) and math.isclose(third.missing, 2.5)
    more = [*RECORDS * 2, *[{"domain": "math"}] * 5]  # twice as many, so that it is whole
    assert count(more, OWN).shares("all")["math"] == 0.6
    assert shortages(count([], OWN), targets) == []


def test_another_set_as_target() -> None:
    other = count([{"domain": "code"}, {"domain": "math"}, {}], OWN)
    assert targets_of(other).shares == {
        "all": {"code": 1 / 3, "math": 1 / 3},
        "code": {},
        "math": {},
    }
    assert [s.id for s in shortages(FOUND, targets_of(other))] == ["code"]
    assert shortages(FOUND, targets_of(FOUND)) == []


def test_own_targets_are_those_of_the_report() -> None:
    targets = load_targets(OWN_TARGETS, OWN)
    assert targets.shares["all"] == pytest.approx({"math": 0.842, "code": 0.0833, "STEM": 0.061})
    # 3 + 16 + 68 + 14 = 101
    assert targets.shares["math"]["high_school"] == 68 / 101
    assert not {"math", "code", "unknown"} & set(targets.groups["STEM"])


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("groups: {}", "wants `shares` and, for several domains in one, `groups`"),
        ("shares: {}\nmore: 1", "wants `shares`"),
        ("shares: {all: {maths: 1}}", "shares.all: no 'maths'; there: marxism, "),
        ("shares: {maths: {primary: 1}}", "shares.maths: no such path; all is the view"),
        ("shares: {math: {primary: 101}}", r"shares.math.primary=101 is not 0 to 100"),
        ("shares: {math: {primary: '3'}}", r"shares.math.primary='3' is not 0 to 100"),
        ("shares: {all: {math: 60, code: 50}}", "shares.all add up to 110 %, more than 100"),
        ("shares: {}\ngroups: {S: [maths]}", "groups.S: 'maths' is no domain"),
        ("shares: [", "cannot read the targets"),
    ],
)
def test_what_is_wrong_in_targets_is_named(tmp_path: Path, text: str, complaint: str) -> None:
    (tmp_path / "t.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=complaint):
        load_targets(tmp_path / "t.yaml", OWN)


def test_files_and_folders_are_read_alike(tmp_path: Path) -> None:
    lines = [json.dumps({"id": str(i), **record}) for i, record in enumerate(RECORDS)]
    one = tmp_path / "one.jsonl"
    one.write_text("\n".join(lines) + "\n\n", encoding="utf-8-sig")
    folder = tmp_path / "folder"
    (folder / "deep").mkdir(parents=True)
    (folder / "a.jsonl").write_text("\n".join(lines[:4]), encoding="utf-8")
    (folder / "notes.txt").write_text("not data", encoding="utf-8")
    keys = ("id", "domain", "level", "topic")
    rest = pa.table({key: [json.loads(line).get(key) for line in lines[4:]] for key in keys})
    parquet.write_table(rest, folder / "deep" / "b.parquet")
    for path in (one, folder):
        assert count(read_labels(path), OWN).counts == FOUND.counts
    plain = tmp_path / "plain.parquet"
    parquet.write_table(pa.table({"id": ["a", "b"]}), plain)
    assert count(read_labels(plain), OWN).counts == {"all": {"unknown": 2}}


def test_of_a_run_what_it_kept_is_read(tmp_path: Path) -> None:
    for part in ("kept", "work", "mix"):
        (tmp_path / part).mkdir()
        (tmp_path / part / "a.jsonl").write_text('{"domain": "math"}\n')
    assert count(read_labels(tmp_path), OWN).total("all") == 1


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"domain": "math"}\n{"domain": \n', encoding="utf-8")
    with pytest.raises(ValueError, match=r"a.jsonl:2: not JSON"):
        list(read_labels(tmp_path / "a.jsonl"))
    (tmp_path / "b.jsonl").write_text("[1]\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"b.jsonl:1: not a record but '\[1\]'"):
        list(read_labels(tmp_path / "b.jsonl"))
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "empty", tmp_path / "nowhere.jsonl"):
        with pytest.raises(ConfigError, match="there is no .jsonl or .parquet file"):
            list(read_labels(path))


def test_differences_by_hand() -> None:
    other = count([{"domain": "math", "level": "primary"}, {"domain": "code"}], OWN)
    # math's levels: 60, 20, 20 % against 100 %; its primary topics are unknown there.
    assert differences(FOUND, other)[:3] == [
        ("math/primary", "unknown", 0.0, 1.0),
        ("math/primary", "algebra", 2 / 3, 0.0),
        ("all", "code", 0.0, 0.5),
    ]
    assert ("math", "primary", 0.6, 1.0) in differences(FOUND, other)
    assert differences(FOUND, FOUND) == []


def test_panels_show_each_share_once() -> None:
    made = panels([("a", FOUND)], load_targets(OWN_TARGETS, OWN))
    titles = [panel.title for panel in made]
    assert titles == [
        "Groups of domains",
        "Domains",
        "Mathematics: levels",
        "Mathematics, primary school: topics",
        "Mathematics, high school: topics",
        "Physics: topics",
    ]
    for panel in made:
        assert math.isclose(sum(panel.percents[0]), 100)
        assert len(panel.labels) == len(panel.percents[0]) == len(panel.targets)
    groups, domains, levels = made[:3]
    assert groups.labels == ("Mathematics", "Code", "STEM", "Unknown")
    assert groups.percents == ((50.0, 0.0, 20.0, 30.0),)
    assert groups.targets[3] is None
    assert groups.targets[:3] == pytest.approx((84.2, 8.33, 6.1))
    assert domains.labels[0] == "Mathematics" and domains.labels[-1] == "Unknown"
    # In their own order, with what is wanted of those that are not there.
    assert levels.labels[:2] == ("Primary school", "Junior high school")
    assert levels.percents[0] == (60.0, 0.0, 20.0, 0.0, 20.0)


def test_small_shares_are_put_together() -> None:
    ids = [node.id for node in OWN.nodes["math/university"].children]
    records = [{"domain": "math", "level": "university", "topic": id} for id in ids]
    panel = panels([("a", count([*records, *records[:3]], OWN))], Targets({}))[-1]
    assert len(panel.labels) == 14 and panel.labels[-1] == "13 others"
    # 26 topics, three of them twice; of 29 records the 13 last have one each.
    assert math.isclose(panel.percents[0][-1], 100 * 13 / 29)
    assert math.isclose(sum(panel.percents[0]), 100)
