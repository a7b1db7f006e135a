"""Seeds of a request, and records that are read as they were written."""

import json
from collections import Counter

import pytest

from megatron_ring.config.curation.collect import SourceConfig
from megatron_ring.curation.collect.adapt import to_record
from megatron_ring.curation.collect.read import Row
from megatron_ring.curation.reading import cut_source, read_piece
from megatron_ring.curation.record import Rejection
from megatron_ring.curation.shards import write_parquet
from megatron_ring.curation.synthesis.domain import Cell
from megatron_ring.curation.synthesis.material import Seeds


def seed(name, difficulty=None):
    extra = {"extra": {"difficulty": difficulty}} if difficulty else {}
    return {"id": name, "messages": [{"role": "user", "content": name}], **extra}


def drawn(seeds, path, count, difficulty="", key="k"):
    return [one["id"] for one in seeds.draw(Cell(path, "", difficulty), count, key)]


def test_seeds_are_of_the_topic_then_of_what_is_near():
    seeds = Seeds()
    seeds.add(seed("hard", "hard"), "math/high_school/functions")
    seeds.add(seed("easy", "easy"), "math/high_school/functions")
    seeds.add(seed("level"), "math/high_school/sequences")
    seeds.add(seed("domain"), "math/university/topology")
    seeds.add(seed("other"), "physics/optics")
    at = "math/high_school/functions"
    for key in map(str, range(20)):
        assert drawn(seeds, at, 1, "hard", key) == ["hard"]
        assert drawn(seeds, at, 2, "hard", key) == ["hard", "easy"]
        assert drawn(seeds, at, 3, "hard", key) == ["hard", "easy", "level"]
        assert drawn(seeds, at, 9, "easy", key) == ["easy", "hard", "level", "domain"]
        assert drawn(seeds, "math/primary/algebra", 9, "", key)[4:] == []
    assert drawn(seeds, at, 0) == [] and drawn(seeds, "code/generation", 3) == []
    assert seeds.count == 5


def test_draws_differ_by_key_alone_and_are_even():
    seeds = Seeds()
    for number in range(8):
        seeds.add(seed(str(number)), "physics/optics")
    first = drawn(seeds, "physics/optics", 3, key="a")
    assert first == drawn(seeds, "physics/optics", 3, key="a") and len(set(first)) == 3
    counts = Counter(
        id for key in range(400) for id in drawn(seeds, "physics/optics", 2, key=str(key))
    )
    assert all(70 < counts[str(number)] < 130 for number in range(8))  # 100 each


RECORD = {
    "id": "synthetic/1/math/x:hard/0",
    "messages": [
        {"role": "user", "content": "How?"},
        {"role": "assistant", "content": "So.", "reasoning_content": "Hm."},
    ],
    "answer": "7",
    "source": "synthetic",
    "seed_ids": ["own/1"],
    "card": {"model": "m", "temperature": 1.0},
    "domain": "math",
    "extra": {"difficulty": "hard", "candidates": [{"number": 0, "text": "So."}]},
}


def read(source, data):
    return to_record(source, Row("f", 1, "f:1", data))


def test_a_record_is_read_as_it_is():
    source = SourceConfig(name="synthetic", path="f", form="record")
    assert read(source, RECORD) == {**RECORD, "split": "train"}


def test_what_a_source_says_of_all_its_records_is_added():
    constants = {"kind": "reasoning", "domain": "physics", "model": "n"}
    source = SourceConfig(
        name="new", path="f", form="record", constants=constants, licence="MIT", revision="r1"
    )
    got = read(source, RECORD)
    assert got["id"] == "new/synthetic/1/math/x:hard/0" and got["source"] == "new"
    assert (got["domain"], got["licence"], got["revision"]) == ("physics", "MIT", "r1")
    assert got["card"] == {"model": "n", "temperature": 1.0}
    assert got["extra"] == {**RECORD["extra"], "kind": "reasoning"}
    assert read(source, {"messages": RECORD["messages"]})["id"] == "new/1"


def test_a_record_comes_back_from_parquet(tmp_path):
    path = tmp_path / "f.parquet"
    write_parquet(path, [json.dumps(RECORD).encode()])
    source = SourceConfig(name="synthetic", path=str(path), form="record")
    (piece,) = cut_source(source, 0, 10, 10**6)
    (row,) = read_piece(source, piece, 10**6)
    assert to_record(source, row) == {**RECORD, "split": "train"}


@pytest.mark.parametrize("key", ["card", "extra"])
def test_what_is_no_object_is_told(key):
    source = SourceConfig(name="synthetic", path="f", form="record")
    got = read(source, {**RECORD, key: [3]})
    assert got == Rejection("no_record", f"f:1: {key} is '[3]', no object")
