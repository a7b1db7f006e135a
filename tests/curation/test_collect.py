"""The open sets by name, on rows of their real schemas, and any other set by a column map."""

import gzip
import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from megatron_ring.config.base import ConfigError
from megatron_ring.config.curation.collect import Columns, SourceConfig
from megatron_ring.config.loading import build
from megatron_ring.curation.collect.adapt import complete
from megatron_ring.curation.collect.cells import pick, text
from megatron_ring.curation.collect.known import KNOWN
from megatron_ring.curation.collect.read import commit_of
from megatron_ring.curation.record import Record, Rejection
from tests.curation.runs import read_source

SETS = Path(__file__).parent / "sets"


def read(**keys: Any) -> list[Record | Rejection]:
    return list(read_source(SourceConfig.model_validate(keys)))


def of_set(name: str) -> list[Any]:
    return read(set=name, path=str(SETS / f"{name}.jsonl"))


def test_openr1_offers_its_generations() -> None:
    first, second, third = of_set("openr1_math")
    assert first["id"] == "openr1_math/1"
    assert first["messages"] == [{"role": "user", "content": "What is $3+4\\cdot 2$?"}]
    assert first["answer"] == "11" and first["domain"] == "math"
    assert first["licence"] == "apache-2.0" and len(first["revision"]) == 40
    assert first["card"] == {"model": "DeepSeek-R1"}
    assert first["extra"]["kind"] == "reasoning" and first["extra"]["uuid"] == "u-1"
    told = [{k: v for k, v in c.items() if k != "text"} for c in first["extra"]["candidates"]]
    assert told == [
        {"number": n, "correct": right, "finish": "stop", "complete": True}
        for n, right in enumerate([False, True, True])
    ]
    # One verifier that says so is enough; the second generation was cut off.
    right = [c["correct"] for c in second["extra"]["candidates"]]
    assert right == [True, False]
    assert second["extra"]["candidates"][1]["finish"] == "length"
    assert "finish" not in third["extra"]["candidates"][0]  # finish_reasons is null there


def test_numina_has_solutions_and_answers() -> None:
    first, proof = of_set("numina_cot")
    assert [turn["role"] for turn in first["messages"]] == ["user", "assistant"]
    assert first["answer"] == "16" and first["extra"]["source"] == "cn_k12"
    assert first["source"] == "numina_cot" and "card" not in first
    assert "answer" not in proof


def test_synthetic_1_has_scores_and_kinds_of_task() -> None:
    maths, code, open_question = of_set("synthetic_1")
    assert (maths["domain"], code["domain"]) == ("math", "code")
    assert "domain" not in open_question  # left to the taxonomy
    assert maths["extra"]["candidates"][0]["score"] == 1.0
    assert code["extra"]["candidates"][0]["score"] == 0.25
    assert "score" not in open_question["extra"]["candidates"][0]
    assert code["extra"]["gold_standard_solution"].startswith("n=int")


def test_scp_offers_two_models_answers() -> None:
    first, second = of_set("scp_116k")
    assert first["domain"] == "physics" and "domain" not in second
    named = [(c["model"], c["correct"]) for c in first["extra"]["candidates"]]
    assert named == [("o1-mini", True), ("QwQ-32B-preview", False)]
    named = [(c["number"], c["model"], c["correct"]) for c in second["extra"]["candidates"]]
    assert named == [(1, "QwQ-32B-preview", True)]


def test_stratos_thoughts_are_taken_apart_and_its_system_turn_left_out() -> None:
    first, code = of_set("bespoke_stratos")
    assert first["messages"] == [
        {
            "role": "user",
            "content": "Return your final response within \\boxed{}. What is 6 minus 9?",
        },
        {
            "role": "assistant",
            "content": "The answer is $\\boxed{-3}$.",
            "reasoning_content": "6 - 9 is below zero: -3.",
        },
    ]
    assert code["messages"][1]["content"].startswith("```python")


def test_general_thought_keeps_licence_and_history_of_each_row() -> None:
    first, second = of_set("general_thought")
    assert (first["licence"], second["licence"]) == ("Apache-2.0", "mit")
    assert first["card"] == {"model": "DeepSeek/DeepSeek-R1"} and first["answer"] == "Saturn"
    offered = first["extra"]["candidates"][0]
    assert offered["score"] == 1.0 and offered["model"] == "DeepSeek/DeepSeek-R1"
    text = "<think>\nJupiter has 95, Saturn 146.\n</think>\n\nSaturn has the most."
    assert offered["text"] == text
    assert [turn["content"] for turn in second["messages"]] == [
        "Name a planet.",
        "Saturn.",
        "And the largest one?",
    ]


def test_codeforces_repeats_a_problem_under_ids_of_its_own() -> None:
    first, second = of_set("codeforces_cots")
    assert [first["id"], second["id"]] == ["codeforces_cots/1", "codeforces_cots/2"]
    assert first["extra"]["id"] == "4/A" and first["domain"] == "code"
    assert second["extra"]["candidates"][0]["finish"] == "length"


@pytest.mark.parametrize("name", KNOWN)
def test_a_hub_set_reads_as_its_rows_do(name: str, tmp_path: Path) -> None:
    """Through Parquet and `datasets`, as the hub gives them, the records are the same."""
    lines = (SETS / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "train.parquet")
    datasets.disable_progress_bars()
    plain = SourceConfig.model_validate(
        KNOWN[name].model_dump(exclude_unset=True)
        | {"name": name, "hub": str(tmp_path), "subset": None, "revision": None}
    )
    pinned = {"revision": KNOWN[name].revision} if KNOWN[name].revision else {}
    found = [{**record, **pinned} for record in read_source(plain)]
    assert found == of_set(name)
    local = read(set=name, path=str(tmp_path / "train.parquet"))
    assert local == of_set(name)


def test_the_commit_is_read_from_addresses() -> None:
    sha = "0123456789abcdef" * 2 + "01234567"
    assert commit_of({f"hf://datasets/a/b@{sha}/data/x.parquet": {}}) == sha
    assert commit_of({"/tmp/x.parquet": {}}) is None and commit_of(None) is None


def test_a_map_joins_columns_and_looks_inside(tmp_path: Path) -> None:
    row = {
        "passage": None,
        "q": "Which is even?",
        "options": ["(A) 3", "(B) 4"],
        "other": {"solution": "Four is.", "tags": ["easy", "zh"]},
        "label": "B",
        "n": 7,
        "cc": "CC BY 4.0",
        "subject": "Maths",
    }
    file = tmp_path / "quiz.jsonl"
    file.write_text(json.dumps(row) + "\n", encoding="utf-8")
    columns = Columns(
        id="n",
        prompt="{passage}\n\n{q}\n{options}",
        response="other.solution",
        answer="label",
        domain="subject",
        topic="other.tags.1",
        licence="cc",
        extra=["other.tags"],
    )
    (record,) = read(
        path=str(file),
        columns=columns,
        constants={"level": "primary", "kind": "quiz", "date": "2020"},
        values={"domain": {"Maths": "math"}},
        revision="abc",
        licence="unknown",
    )
    assert record == {
        "id": "quiz/7",
        "messages": [
            {"role": "user", "content": "Which is even?\n(A) 3\n(B) 4"},
            {"role": "assistant", "content": "Four is."},
        ],
        "answer": "B",
        "source": "quiz",
        "split": "train",
        "revision": "abc",
        "licence": "CC BY 4.0",
        "card": {"date": "2020"},
        "domain": "math",
        "level": "primary",
        "topic": "zh",
        "extra": {"other.tags": ["easy", "zh"], "kind": "quiz"},
    }


def test_marks_of_a_set_are_taken_out_of_its_responses(tmp_path: Path) -> None:
    """As GSM8K has them: results of its calculator, and the answer behind hashes."""
    file = tmp_path / "sums.jsonl"
    row = {"q": "2*3+1?", "a": "2*3 = <<2*3=6>>6.\n6+1 = <<6+1=7>>7.\n#### 7"}
    file.write_text(json.dumps(row) + "\n")
    (record,) = read(
        path=str(file),
        columns={"prompt": "q", "response": "a", "answer": "a"},
        answer_in="hashes",
        replace={r"<<[^<>]*>>": "", r"\n#### (.*)": r"\nThe answer is \\boxed{\1}."},
    )
    said = "2*3 = 6.\n6+1 = 7.\nThe answer is \\boxed{7}."
    assert record["messages"][1]["content"] == said and record["answer"] == "7"


def test_places_by_hand() -> None:
    row = {"a": {"b": [1, {"c": "x"}]}, "a.b": "dotted", "n": 0}
    assert pick(row, "a.b") == "dotted"  # a column of that very name comes first
    assert pick({"a": {"b": [1, {"c": "x"}]}}, "a.b.1.c") == "x"
    assert pick(row, "a.z.q") is None and pick(row, "a.b.9") is None
    assert text(row, "n") == "0" and text(row, "z") is None
    assert text(row, "{z}\n\n\n\n{n}") == "0"


def test_several_files_arrays_and_objects_with_rows(tmp_path: Path) -> None:
    (tmp_path / "b.json").write_text('{"keywords": "x", "example": [{"p": "two"}]}')
    (tmp_path / "a.json").write_text('{"keywords": "x", "example": [{"p": "one"}, {"p": "1b"}]}')
    found = read(path=str(tmp_path / "*.json"), rows="example", name="x", columns={"prompt": "p"})
    assert [record["id"] for record in found] == ["x/a:1", "x/a:2", "x/b:1"]
    (tmp_path / "c.json").write_text('[{"p": "three"}]')
    (one,) = read(path=str(tmp_path / "c.json"), columns={"prompt": "p"})
    assert one["id"] == "c/1" and one["messages"][0]["content"] == "three"
    with gzip.open(tmp_path / "d.jsonl.gz", "wt") as file:
        file.write('{"p": "four"}\n{"p": "five"}\n')
    (four,) = read(path=str(tmp_path / "d.jsonl.gz"), columns={"prompt": "p"}, limit=1)
    assert four["id"] == "d/1"


def test_bad_rows_are_named_and_survived(tmp_path: Path) -> None:
    file = tmp_path / "mixed.jsonl"
    file.write_bytes(
        b'{"p": "good"}\n{"p": \n\n\xff{"p": 1}\n[1]\n{"q": "none"}\n\xef\xbb\xbf{"p": "bom"}\n'
    )
    found = read(path=str(file), columns={"prompt": "p"})
    assert [item["id"] for item in found if not isinstance(item, Rejection)] == [
        "mixed/1",
        "mixed/7",
    ]
    faults = [item for item in found if isinstance(item, Rejection)]
    assert [(f.reason, f.evidence) for f in faults] == [
        ("malformed_json", f'{file}:2: Expecting value: line 1 column 6 (char 5): {{"p":'),
        ("not_utf8", f"{file}:4: byte 0 is 0xff, near '\ufffd{{\"p\": 1}}'"),
        ("not_an_object", f"{file}:5: a JSON list: [1]"),
        ("no_prompt", f"{file}:6: prompt='p' holds no text (its columns: q)"),
    ]


@pytest.mark.parametrize(
    ("keys", "complaint"),
    [
        ({"name": "x"}, "source x: give one of path (local files) and hub (a `datasets` name); "),
        ({"path": "nowhere/*.jsonl"}, "path=nowhere/*.jsonl: there is no such file"),
        ({"set": "openr1"}, "unknown set 'openr1'; known: openr1_math, numina_cot, synthetic_1"),
        ({"path": "{tmp}/a.txt"}, "a.txt is none of .jsonl, .ndjson, .json, .parquet (.gz too)"),
        ({"path": "{tmp}/empty"}, "empty is a folder; name its files, as in path={tmp}/empty/*.js"),
        ({"hub": "{tmp}/empty"}, "cannot be loaded: "),
    ],
)
def test_sources_that_cannot_be_read(keys: dict, complaint: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    (tmp_path / "empty").mkdir()
    keys = {key: value.replace("{tmp}", str(tmp_path)) for key, value in keys.items()}
    with pytest.raises(ConfigError) as error:
        read(**keys)
    assert complaint.replace("{tmp}", str(tmp_path)) in str(error.value)


@pytest.mark.parametrize(
    ("name", "content", "rows", "complaint"),
    [
        ("bad.json", "[1,", None, "the whole file: Expecting value"),
        ("o.json", '{"a": 1}', "z", "no key rows='z' (its keys: a)"),
        ("o.json", '{"a": 1}', "a", "a JSON int, no array"),
        ("bad.parquet", "PAR", None, "no Parquet: "),
    ],
)
def test_files_that_hold_no_rows_are_one_fault(
    name: str, content: str, rows: str | None, complaint: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(content)
    (fault,) = read(path=str(tmp_path / name), rows=rows)
    assert isinstance(fault, Rejection) and complaint in fault.evidence


def test_keys_beside_a_set_win() -> None:
    source = complete(SourceConfig(set="numina_cot", split="test", licence="mine"))
    assert (source.name, source.split, source.licence) == ("numina_cot", "test", "mine")
    assert source.hub == "AI-MO/NuminaMath-CoT" and source.columns.prompt == "problem"
    with pytest.raises(ConfigError, match="unknown config key columns.prompts; did you mean"):
        build(SourceConfig, {"path": "a.jsonl", "columns": {"prompts": "p"}})
