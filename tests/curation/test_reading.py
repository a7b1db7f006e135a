"""Malformed input: named by file and line, counted, survived; what is around it stays."""

import codecs
import gzip
import json
from datetime import date
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from megatron_ring.config import ConfigError
from megatron_ring.config.curation import CurateConfig
from megatron_ring.curation import run
from tests.curation.runs import ids, lines, outcome, rejected, simple

GOOD = json.dumps({"prompt": "Gut, größer?", "response": "Ja."}, ensure_ascii=False).encode()


def curate(tmp_path, *paths, **keys):
    """The result of a run of two records a shard."""
    keys = {"records_per_shard": 2} | keys
    return run.run(simple(tmp_path / "out", *paths, **keys))


def write(path: Path, *rows: bytes) -> Path:
    path.write_bytes(b"\n".join(rows) + b"\n")
    return path


BAD = {
    "malformed_json": [
        (b'{"prompt": "cut', "Unterminated string"),
        (b'{"prompt": NaN, "response": "x"}', "NaN is no JSON"),
        (b"\x00\x00\x00", "Expecting value"),
        (b"[" * 100_000, "recursion"),
    ],
    "not_utf8": [
        ('{"prompt": "größer", "response": "x"}'.encode("latin-1"), "byte 14 is 0xf6, near"),
        ('{"prompt": "数学题", "response": "x"}'.encode("gb18030"), "byte 12 is 0xca, near"),
    ],
    "not_an_object": [(b"[1, 2]", "a JSON list: [1, 2]"), (b'"text"', "a JSON str: text")],
    "not_unicode": [(rb'{"prompt": "\ud83d", "response": "x"}', "half of a surrogate pair in")],
    "no_prompt": [
        (b'{"question": "Q", "response": "x"}', "its columns: question, response"),
        (b'{"prompt": null, "response": "x"}', "holds no text"),
    ],
}


@pytest.mark.parametrize(
    ("reason", "row", "evidence"),
    [(reason, *case) for reason, cases in BAD.items() for case in cases],
)
def test_a_bad_line_among_good_ones(reason, row, evidence, tmp_path):
    file = write(tmp_path / "a.jsonl", GOOD, GOOD, GOOD, row, GOOD)
    result = curate(tmp_path, file)
    assert ids(result.output, "a") == ["a/1", "a/2", "a/3", "a/5"]
    assert result.counts["read"].rejected == {reason: 1}
    (gone,) = rejected(result.output, "read")
    assert gone["id"] == "a/4"
    assert gone["evidence"].startswith(f"{file}:4: ")
    assert evidence in gone["evidence"]


def test_escaped_pairs_of_surrogates_are_text(tmp_path):
    row = rb'{"prompt": "\ud83d\ude00", "response": "x"}'
    result = curate(tmp_path, write(tmp_path / "a.jsonl", row))
    assert lines(result.output / "kept/a.jsonl")[0]["messages"][0]["content"] == "\U0001f600"


def test_ten_megabytes_are_too_large_unless_allowed(tmp_path):
    """Also as the last line, without an end, and over several pieces of a shard."""
    huge = json.dumps({"prompt": "x" * 10_000_000, "response": "y"}).encode()
    file = tmp_path / "a.jsonl"
    file.write_bytes(b"\n".join([GOOD, huge, GOOD, GOOD, huge]))
    result = curate(tmp_path, file)
    assert ids(result.output, "a") == ["a/1", "a/3", "a/4"]
    assert result.counts["read"].rejected == {"too_large": 2}
    first, second = rejected(result.output, "read")
    assert first["evidence"].startswith(
        f"{file}:2: {len(huge) + 1:,} bytes, max_record_bytes=4,000,000; begins '"
    )
    assert second["evidence"].startswith(f"{file}:5: {len(huge):,} bytes")
    assert sum(p.stat().st_size for p in (result.output / "rejected").rglob("*.jsonl")) < 5000
    result = curate(tmp_path, file, max_record_bytes=11_000_000)
    assert ids(result.output, "a") == ["a/1", "a/2", "a/3", "a/4", "a/5"]
    assert len(lines(result.output / "kept/a.jsonl")[1]["messages"][0]["content"]) == 10_000_000


def test_blank_lines_are_no_records_but_count_as_lines(tmp_path):
    file = write(tmp_path / "a.jsonl", b"", GOOD, b"  \r", b"", GOOD + b"\r", b"")
    result = curate(tmp_path, file)
    assert ids(result.output, "a") == ["a/2", "a/5"]
    assert result.counts["read"].read == 2


def test_byte_order_marks_and_utf16(tmp_path):
    text = GOOD.decode() + "\n" + '{"prompt": "b"\n' + GOOD.decode() + "\n"
    (tmp_path / "a.jsonl").write_bytes(codecs.BOM_UTF8 + text.encode())
    (tmp_path / "b.jsonl").write_bytes(text.encode("utf-16"))
    (tmp_path / "c.jsonl").write_bytes(codecs.BOM_UTF16_BE + text.encode("utf-16-be"))
    result = curate(tmp_path, *(tmp_path / f"{name}.jsonl" for name in "abc"))
    for name in "abc":
        kept = lines(result.output / f"kept/{name}.jsonl")
        assert [one["id"] for one in kept] == [f"{name}/1", f"{name}/3"]
        assert {one["messages"][0]["content"] for one in kept} == {"Gut, größer?"}
    assert result.counts["read"].rejected == {"malformed_json": 3}
    assert [one["id"] for one in rejected(result.output, "read")] == ["a/2", "b/2", "c/2"]


def test_compressed_files_and_one_that_is_cut_off(tmp_path):
    many = b"".join(b'{"prompt": "%d", "response": "x"}\n' % n for n in range(5000))
    whole = gzip.compress(many)
    (tmp_path / "a.jsonl.gz").write_bytes(whole)
    (tmp_path / "b.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    paths = tmp_path / "a.jsonl.gz", tmp_path / "b.jsonl.gz"
    result = curate(tmp_path, *paths, records_per_shard=1000)
    assert ids(result.output, "a") == [f"a/{n}" for n in range(1, 5001)]
    there = ids(result.output, "b")
    assert 1000 < len(there) < 4000
    assert there == [f"b/{n}" for n in range(1, len(there) + 1)]
    (gone,) = rejected(result.output, "read")
    assert gone["reason"] == "unreadable_file"
    assert gone["evidence"].startswith(f"{paths[1]}:{len(there) + 1}: the rest cannot be read: ")


def test_empty_files_are_named(tmp_path):
    for name in ("a.jsonl", "b.json", "c.parquet"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "d.jsonl").write_bytes(b"\n\n")
    write(tmp_path / "e.jsonl", GOOD)
    result = curate(tmp_path, *sorted(tmp_path.glob("*.*")))
    assert ids(result.output, "e") == ["e/1"]
    warnings = result.report["warnings"]
    for name in "abd":
        assert f"source {name}: nothing in it" in warnings
    assert f"empty file: {tmp_path}/a.jsonl" in warnings
    (gone,) = rejected(result.output, "read")
    assert gone["evidence"].startswith(f"{tmp_path}/c.parquet row 1: no Parquet: ")


def test_nothing_at_all(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b"")
    stages = [{"stage": "exact"}, {"stage": "minhash"}]
    result = curate(tmp_path, tmp_path / "a.jsonl", stages=stages)
    assert {label: one.read for label, one in result.counts.items()} == {
        "read": 0,
        "exact": 0,
        "minhash": 0,
    }


def test_arrays_and_arrays_that_are_broken(tmp_path):
    good = json.loads(GOOD)
    (tmp_path / "a.json").write_text(json.dumps([good, 7, good, good], indent=1))
    (tmp_path / "b.json").write_text('[{"prompt": "x"}, ')
    (tmp_path / "c.json").write_text(json.dumps(good) + "\n")  # one object a line
    result = curate(tmp_path, *sorted(tmp_path.glob("*.json")))
    assert ids(result.output, "a") == ["a/1", "a/3", "a/4"]
    assert ids(result.output, "c") == ["c/1"]
    told = [one["evidence"] for one in rejected(result.output, "read")]
    assert told[0] == f"{tmp_path}/a.json row 2: a JSON int: 7"
    assert told[1].startswith(f"{tmp_path}/b.json row 1: the whole file: ")


def test_parquet_with_a_missing_column_and_damage(tmp_path):
    rows = [{"prompt": f"p{n}", "response": "r"} for n in range(9)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet", row_group_size=3)
    missing = [{"question": f"p{n}", "response": "r"} for n in range(3)]
    pq.write_table(pa.Table.from_pylist(missing), tmp_path / "b.parquet")
    data = bytearray((tmp_path / "a.parquet").read_bytes())
    group = pq.ParquetFile(tmp_path / "a.parquet").metadata.row_group(1)
    start = group.column(0).dictionary_page_offset or group.column(0).data_page_offset
    for at in range(start, start + 20):  # headers of the pages of rows 4 to 6
        data[at] = 0xFF
    (tmp_path / "c.parquet").write_bytes(data)
    paths = [tmp_path / f"{name}.parquet" for name in "abc"]
    result = curate(tmp_path, *paths)
    assert ids(result.output, "a") == [f"a/{n}" for n in range(1, 10)]
    assert ids(result.output, "c") == [f"c/{n}" for n in (1, 2, 3, 7, 8, 9)]
    assert result.counts["read"].rejected == {"no_prompt": 3, "unreadable_file": 3}
    (told,) = [one for one in result.report["warnings"] if "source b" in one]
    assert told == "source b: none of 3 rows is a record: {'no_prompt': 3}"
    gone = [one["evidence"] for one in rejected(result.output, "read")]
    assert gone[0].startswith(f"{paths[1]} row 1: ") and "question" in gone[0]
    assert gone[3].startswith(f"{paths[2]} row 4: row group 1 of the file: ")


def test_parquet_values_that_json_has_not(tmp_path):
    row = {
        "prompt": "p",
        "response": "r",
        "day": date(2025, 1, 2),
        "cost": Decimal("1.50"),
        "score": float("nan"),
        "raw": b"abc",
    }
    path = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_pylist([row, row | {"raw": b"\xff"}]), path)
    config = simple(tmp_path / "out", path)
    extra = ["day", "cost", "score", "raw"]
    columns = config.sources[0].columns.model_copy(update={"extra": extra})
    source = config.sources[0].model_copy(update={"columns": columns})
    result = run.run(config.model_copy(update={"sources": [source]}))
    (kept,) = lines(result.output / "kept/a.jsonl")
    assert kept["extra"] == {"day": "2025-01-02", "cost": "1.50", "raw": "abc"}
    assert result.counts["read"].rejected == {"not_utf8": 1}


def test_messages_that_are_no_chat(tmp_path):
    turns = [
        [{"role": "user", "content": "x"}],
        [{"role": "user", "content": [{"type": "image"}]}],
        "text",
        [{"role": "narrator", "content": "x"}],
    ]
    file = tmp_path / "a.jsonl"
    file.write_text("".join(json.dumps({"messages": one}) + "\n" for one in turns))
    config = simple(tmp_path / "out", file)
    columns = config.sources[0].columns.model_copy(
        update={"prompt": None, "response": None, "messages": "messages"}
    )
    source = config.sources[0].model_copy(update={"columns": columns})
    result = run.run(config.model_copy(update={"sources": [source]}))
    assert ids(result.output, "a") == ["a/1"]
    assert [one["id"] for one in rejected(result.output, "read")] == ["a/2", "a/3", "a/4"]


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "json", "parquet"])
@pytest.mark.parametrize("limit", [1, 4, 5, 100])
def test_limits_and_shards_of_any_size_give_the_same_records(kind, limit, tmp_path):
    rows = [{"prompt": f"p{n}", "response": "r"} for n in range(11)]
    path = tmp_path / f"a.{kind}"
    text = "\n".join(json.dumps(row) for row in rows).encode()
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=4)
    else:
        data = json.dumps(rows).encode() if kind == "json" else b"\n\n" + text
        path.write_bytes(gzip.compress(data) if kind.endswith("gz") else data)
    found = []
    for size in (1, 3, 4, 50):
        config = simple(tmp_path / f"out{size}", path, records_per_shard=size)
        source = config.sources[0].model_copy(update={"limit": limit})
        result = run.run(config.model_copy(update={"sources": [source]}))
        found.append(outcome(result.output))
    assert all(one == found[0] for one in found)
    first = 3 if kind.startswith("jsonl") else 1
    assert ids(tmp_path / "out1", "a") == [f"a/{first + n}" for n in range(min(limit, 11))]


def test_a_source_that_is_not_there_and_two_of_a_name(tmp_path):
    with pytest.raises(ConfigError, match="path=.*nowhere.jsonl: there is no such file"):
        curate(tmp_path, tmp_path / "nowhere.jsonl")
    file = write(tmp_path / "a.jsonl", GOOD)
    with pytest.raises(ConfigError, match="two sources are named 'a'; set sources.1.name"):
        curate(tmp_path, file, file)
    sources = [{"name": name, "path": str(file)} for name in ("a/b", "a_b")]
    config = CurateConfig(sources=sources, stages=[], output=str(tmp_path / "out"))
    clash = "'a/b' and 'a_b' would both be written to kept/a_b; set sources.1.name"
    with pytest.raises(ConfigError, match=clash):
        run.run(config)
