"""Rows of known subject: the table is complete, formats are read, copies stay on one side."""

import gzip
import json
import zipfile
from pathlib import Path

import pytest
import yaml

from megatron_ring.config.base import ConfigError
from megatron_ring.curation.label.rows import (
    TABLE,
    Labelled,
    capped,
    key_of,
    load_labelled,
    load_seeds,
    read_rows,
)
from megatron_ring.curation.taxonomy import OTHERS, load_taxonomy

OWN = load_taxonomy()
MAPPING = {
    "trainable": ["MIT"],
    "licences": {"The MIT License": "MIT"},
    "sources": [
        {
            "name": "a",
            "family": "f",
            "licence": "MIT",
            "files": ["a.jsonl"],
            "text": "q",
            "path": "code",
        },
        {
            "name": "b",
            "family": "f",
            "licence_field": "l",
            "files": ["b.json"],
            "text": "q",
            "options": "o",
            "by": "s",
            "paths": {"x": "math/university/algebra", "y": ["physics", "chemistry"]},
            "open": {"x": ["math/junior_high", "math/university"]},
        },
    ],
}
A = [{"q": "one"}, {"q": " "}, {"q": "two"}, {"q": "one"}]
B = [
    {"q": "three", "o": ["(A)1", "(B)2"], "s": "x", "l": "The MIT License"},
    {"q": "four", "o": None, "s": "y", "l": "other"},
    {"q": "two", "o": None, "s": "y", "l": "other"},
]


def folder(path: Path, b: list[dict[str, object]] = B) -> Path:
    (path / "a.jsonl").write_text("\n".join(map(json.dumps, A)), encoding="utf-8")
    (path / "b.json").write_text(json.dumps(b), encoding="utf-8")
    return path


def mapping(path: Path, tree: dict[str, object] = MAPPING) -> Path:
    file = path / "table.yaml"
    file.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return file


def test_the_table_names_paths_that_exist_and_all_subjects_of_mmlu() -> None:
    tree = yaml.safe_load(TABLE.read_text(encoding="utf-8"))
    for source in tree["sources"]:
        values = [*source.get("paths", {}).values(), *source.get("open", {}).values()]
        for paths in [*values, source.get("path", [])]:
            for path in [paths] if isinstance(paths, str) else paths:
                assert OWN.node(path).id != OTHERS, (source["name"], path)
        assert set(source.get("open", {})) <= set(source.get("paths", {}))
    by_name = {source["name"]: source for source in tree["sources"]}
    assert len(by_name) == len(tree["sources"]) == 22
    assert len(by_name["mmlu"]["paths"]) == 57
    assert len(by_name["theoremqa"]["paths"]) == 39
    assert len(by_name["college_math"]["paths"]) == len(by_name["math_test5000"]["paths"]) == 7


def test_our_own_texts_speak_of_every_leaf() -> None:
    rows = load_seeds(OWN)
    spoken = {path for row in rows for path in row.paths}
    assert spoken == {node.path for node in OWN.leaves() if node.id != OTHERS}
    texts = [row.text for row in rows if row.source == "seeds"]
    assert len(set(texts)) == len(texts)


def test_seeds_of_unknown_paths_are_named(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text("math/prime: [x]", encoding="utf-8")
    with pytest.raises(ConfigError, match="s.yaml: 'math/prime' is no path of the taxonomy"):
        load_seeds(OWN, tmp_path / "s.yaml")


def test_rows_by_hand(tmp_path: Path) -> None:
    rows = load_labelled(folder(tmp_path), OWN, mapping(tmp_path))
    # Empty texts and texts that an earlier source had are left out.
    assert [row.text for row in rows] == ["one", "two", "three\n(A)1\n(B)2", "four"]
    assert [row.trainable for row in rows] == [True, True, True, False]
    assert [row.value for row in rows] == ["", "", "x", "y"]
    assert rows[2].paths == ("math/university/algebra",)
    assert rows[2].open_paths == ("math/junior_high", "math/university")
    assert rows[3].paths == rows[3].open_paths == ("physics", "chemistry")
    assert rows[2].row(strict=True).paths == rows[2].paths
    assert rows[2].row(strict=False).paths == rows[2].open_paths


def test_what_does_not_fit_the_table_is_named(tmp_path: Path) -> None:
    table = mapping(tmp_path)
    with pytest.raises(ConfigError, match="a: there is no .*a.jsonl"):
        load_labelled(tmp_path, OWN, table)
    with pytest.raises(ConfigError, match="b: s='z' is not in the table"):
        load_labelled(folder(tmp_path, [B[0] | {"s": "z"}]), OWN, table)
    wrong = MAPPING | {"sources": [MAPPING["sources"][0] | {"path": "codes"}]}
    with pytest.raises(ConfigError, match="a: 'codes' is no path of the taxonomy"):
        load_labelled(tmp_path, OWN, mapping(tmp_path, wrong))


def test_near_copies_share_a_key_and_so_a_side() -> None:
    exam = "12. （5 分) 已知集合 $A=\\{x \\mid x>1\\}$, 则"
    copy = "已知集合$A = \\{x\\mid x > 1\\}$，则（  ）"
    assert key_of(exam) == key_of(copy) == "已知集合axmidx1则"
    assert key_of("3、 What IS  it?") == key_of("what is it") == "whatisit"
    assert key_of("x" * 200) == "x" * 60
    assert key_of("3.5 litres") == "5litres"  # what looks like a number of a question goes


def test_every_format_is_read(tmp_path: Path) -> None:
    entries = [{"q": "a"}, {"q": "é"}]
    lines = "\n".join(map(json.dumps, entries)) + "\n"
    (tmp_path / "a.jsonl").write_text(lines, encoding="utf-8")
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    (tmp_path / "c.json").write_text(json.dumps({"example": entries}), encoding="utf-8")
    (tmp_path / "d.json").write_text(json.dumps(entries), encoding="utf-8")
    for name in ("a.jsonl", "b.jsonl.gz", "c.json", "d.json"):
        assert [row["q"] for row in read_rows(tmp_path / name)] == ["a", "é"]
    with zipfile.ZipFile(tmp_path / "m.zip", "w") as archive:
        archive.writestr("data/test/law_test.csv", '"Is it, so?",yes,no,"both\n",none,A\n')
        archive.writestr("data/readme.txt", "not data")
    assert list(read_rows(tmp_path / "m.zip")) == [
        {
            "subject": "law",
            "question": "Is it, so?",
            "options": ["A. yes", "B. no", "C. both\n", "D. none"],
        }
    ]


def test_caps_keep_the_same_rows_in_any_order() -> None:
    rows = [
        Labelled(f"{source}{i}", ("code",), ("code",), source, "f", value, True, False)
        for source, value in (("a", ""), ("b", "x"), ("b", "y"))
        for i in range(20)
    ]
    kept = capped(rows, 3)
    # Five times as many of a source with one value, 5/2 with two, never less than the cap.
    assert [sum(r.source == "a" for r in kept), sum(r.value == "x" for r in kept)] == [15, 7]
    assert [row for row in rows if row in kept] == kept
    assert set(capped(rows[::-1], 3)) == set(kept)
    assert capped(rows, 20) == rows
