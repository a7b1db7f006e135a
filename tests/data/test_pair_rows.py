"""The packed folder of pairs: built, opened, shown, damaged."""

import json
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from megatron_ring.config import ConfigError, PackConfig
from megatron_ring.data.build import pack
from megatron_ring.data.chat import SampleError
from megatron_ring.data.rows import Rows, make_row
from tools import pack as pack_tool
from tools import show_rows


def pair(n, **extra):
    """Distinct answers, longer with n % 9; the rejected one lacks the closing tag."""
    words = f"{n} and {n} " + "is so " * (n % 9)
    chosen, rejected = f"<think>{words}</think>{2 * n}", f"<think>{words}{2 * n}"
    return {"prompt": f"{n}+{n}?", "chosen": chosen, "rejected": rejected, **extra}


STRUCTURE = [pair(n, id=f"s-{n}") for n in range(40)]
GENERAL = [
    {"prompt": f"say {n}", "chosen": "ab" * n, "rejected": "b" * n, "id": f"g-{n}"}
    for n in range(1, 21)
]


def write_lines(path: Path, records) -> str:
    path.write_text("\n".join(json.dumps(record) for record in records) + "\n")
    return str(path)


@pytest.fixture
def settings(tmp_path, ling_folder):
    return {
        "kind": "pairs",
        "tokenizer": str(ling_folder),
        "output": str(tmp_path / "packed"),
        "sources": [
            {"path": write_lines(tmp_path / "structure.jsonl", STRUCTURE)},
            {"path": write_lines(tmp_path / "general.jsonl", GENERAL), "weight": 0.5},
        ],
        "row_tokens": 512,
        "epochs": 2,
    }


@pytest.fixture
def make(settings, tmp_path):
    """A function: overrides of PackConfig -> Rows, packed from STRUCTURE and GENERAL."""

    def make(output="packed", **overrides) -> Rows:
        return pack(PackConfig(**(settings | {"output": str(tmp_path / output)} | overrides)))

    return make


def answers(rows, tokenizer, number):
    """Of each document of a row: its source, prompt, what is learnt, and what is structure."""
    row = rows.row(number)
    found = []
    for n in range(row.num_documents):
        start, stop = row.cu_seqlens[n : n + 2]
        here = slice(start, stop - 1)
        learnt = row.labels_S[here][row.mask_S[here]]
        marked = row.labels_S[here][row.format_S[here]]
        given = row.tokens_S[start : start + 1 + np.flatnonzero(row.mask_S[here])[0]]
        texts = (tokenizer.decode(part) for part in (given, learnt, marked))
        found.append((rows.sources[row.sources[n]], *texts))
    return found


def expected_of(name, record):
    """What `answers` gives for the two documents of a record, written out by hand."""
    head = f"<role>HUMAN</role>{record['prompt']}<role>ASSISTANT</role>"
    chosen, rejected = (f"{record[side]}<|endoftext|>" for side in ("chosen", "rejected"))
    marked = ["", ""]
    if name == "structure":
        first, said = record["prompt"].split("+")[0], record["chosen"].split("</think>")[1]
        # The space before the answer is what the place of the closing tag begins with.
        marked = [f"<think>{first} </think>{said}", f"<think>{first} {said}"]
    return ((name, head, chosen, marked[0]), (name, head, rejected, marked[1]))


def test_every_pair_is_seen_as_often_as_planned_and_never_apart(make, ling):
    """Two epochs: each structural pair twice, each general one (weight 0.5) once."""
    rows = make()
    seen = []
    for number in range(rows.num_rows):
        found = answers(rows, ling, number)
        row = rows.row(number)
        assert len(found) == row.num_documents == 2 * row.num_pairs
        seen += zip(found[0::2], found[1::2], strict=True)
        documents = rows.documents_of(number)
        assert [d + 1 for d in documents[0::2]] == documents[1::2]
        assert all(d % 2 == 0 for d in documents[0::2])
    expected = [expected_of("structure", record) for record in STRUCTURE] * 2
    expected += [expected_of("general", record) for record in GENERAL]
    assert sorted(seen) == sorted(expected)


def test_manifest_counts(make):
    rows = make()
    manifest = rows.manifest
    assert (rows.kind, manifest["kind"], manifest["num_pairs"]) == ("pairs", "pairs", 60)
    assert (manifest["num_documents"], len(rows.documents)) == (120, 120)
    structure, general = manifest["sources"]
    counts = ("pairs", "documents", "placements", "dropped", "without_targets", "without_format")
    assert [structure[key] for key in counts] == [40, 80, 160, 0, 0, 0]
    assert [general[key] for key in counts] == [20, 40, 40, 0, 0, 20]
    assert (structure["supervised_chosen"], structure["supervised_rejected"]) == tuple(
        sum(len(record[side]) + 1 for record in STRUCTURE) for side in ("chosen", "rejected")
    )
    marked = [text for record in STRUCTURE for *_, text in expected_of("structure", record)]
    assert structure["format_tokens"] == sum(map(len, marked))
    assert general["format_tokens"] == 0
    assert manifest["num_supervised"] == sum(
        rows.row(n).num_supervised for n in range(rows.num_rows)
    )
    assert rows.lengths.tolist() == [len(tokens) for tokens in rows.documents["tokens"]]
    assert rows.documents["id"][:4] == ["s-0", "s-0", "s-1", "s-1"]


def as_bytes(rows):
    files = ["plan_documents.npy", "plan_row_starts.npy", "manifest.json", "report.txt"]
    arrow = (rows.folder / "documents").glob("*.arrow")
    return [(rows.folder / file).read_bytes() for file in files] + [f.read_bytes() for f in arrow]


def test_same_bytes_with_any_number_of_processes(make, tmp_path):
    many = [{"path": write_lines(tmp_path / "many.jsonl", STRUCTURE * 5)}]  # four batches
    one, two = make("one", sources=many), make("two", sources=many, workers=2)
    assert as_bytes(one) == as_bytes(two)
    one.verify()


def test_tables_and_arrays_give_the_same_rows(make, tmp_path):
    base = make(sources=[{"path": str(tmp_path / "structure.jsonl"), "name": "x"}])
    parquet, saved, array = (tmp_path / name for name in ("t.parquet", "saved", "t.json"))
    pq.write_table(pa.Table.from_pylist(STRUCTURE), parquet)
    datasets.Dataset.from_list(STRUCTURE).save_to_disk(str(saved))
    array.write_text(json.dumps(STRUCTURE))
    as_turns = [
        {
            "id": record["id"],
            **{
                side: [
                    {"role": "user", "content": record["prompt"]},
                    {"role": "assistant", "content": record[side]},
                ]
                for side in ("chosen", "rejected")
            },
        }
        for record in STRUCTURE
    ]
    turns = tmp_path / "turns.parquet"
    pq.write_table(pa.Table.from_pylist(as_turns), turns)
    for number, path in enumerate((parquet, saved, array, turns)):
        rows = make(f"same{number}", sources=[{"path": str(path), "name": "x"}])
        assert rows.fingerprint == base.fingerprint, path


def test_spans_of_a_column_and_none(make, tmp_path):
    spans = {"chosen": [[0, 7]], "rejected": [[0, 1], [2, 3]]}
    path = tmp_path / "spans.parquet"
    pq.write_table(pa.Table.from_pylist([pair(n, spans=spans) for n in range(4)]), path)
    source = {"path": str(path), "name": "x"}
    rows = [
        make(f"{key}", sources=[source | {"format_spans": key}]) for key in ("spans", "think", None)
    ]
    counts = [r.manifest["sources"][0]["format_tokens"] for r in rows]
    # <think> and two letters; both places of four pairs; nothing
    assert counts == [
        4 * 9,
        sum(len("<think>0 </think>0") + len("<think>0 0") for _ in range(4)),
        0,
    ]
    assert len({r.fingerprint for r in rows}) == 3


def test_pairs_longer_than_a_row_are_dropped_listed_and_counted(make, tmp_path):
    """Template and end token are 19 tokens an answer, the question one: 40 and both answers."""
    records = [
        {"prompt": "q", "chosen": "a" * n, "rejected": "b" * 10, "id": n} for n in (14, 15, 70)
    ]
    path = write_lines(tmp_path / "long.jsonl", records)
    rows = make(sources=[{"path": path}], row_tokens=64, epochs=1)
    assert rows.documents["id"] == ["14", "14"] and rows.row(0).num_tokens == 64
    rejected = [json.loads(line) for line in (rows.folder / "rejected.jsonl").open()]
    reasons = [
        f"{n + 30} tokens (chosen {n}, rejected 30) are more than a row of 64 holds"
        for n in (35, 90)
    ]
    assert [(item["reason"], item["length"]) for item in rejected] == list(
        zip(reasons, (65, 120), strict=True)
    )
    with pytest.raises(SampleError) as error:
        make("none", sources=[{"path": path}], row_tokens=64, overlong="error")
    assert str(error.value) == f"{path}:2: {reasons[0]}; raise row_tokens, or set overlong=drop"


def test_what_is_no_pair_stops_the_run_or_is_listed(make, tmp_path):
    path = write_lines(tmp_path / "bad.jsonl", [pair(1), pair(2) | {"rejected": ""}])
    with pytest.raises(SampleError) as error:
        make("bad", sources=[{"path": path}])
    assert str(error.value) == f"{path}:2: rejected is empty"
    rows = make("kept", sources=[{"path": path}], invalid="drop")
    (rejected,) = map(json.loads, (rows.folder / "rejected.jsonl").open())
    assert (rejected["reason"], rejected["where"]) == ("rejected is empty", f"{path}:2")


def test_columns_and_kinds_that_cannot_be(make, tmp_path):
    table = tmp_path / "t.parquet"
    pq.write_table(pa.table({"chosen": ["x"], "rejected": ["y"]}), table)
    lines = write_lines(tmp_path / "t.jsonl", STRUCTURE)
    refused = [
        (
            {"sources": [{"path": str(table), "rejected": "bad"}]},
            f"{table} has no column 'bad' (its columns: chosen, rejected); set sources.0.rejected",
        ),
        ({"sources": [{"path": str(table)}]}, "no prompt here (its keys: chosen, rejected); set"),
        (
            {"sources": [{"path": str(table)}], "kind": "chat"},
            "set sources.0.messages, or .prompt and .response for plain text; pairs of answers are "
            "packed with kind=pairs",
        ),
        (
            {"sources": [{"path": lines}], "kind": "chat"},
            "; pairs of answers are packed with kind=pairs",
        ),
        (
            {"sources": [{"path": str(table), "format_spans": None}], "kind": "chat"},
            "sources.0.format_spans is for pairs of answers; add kind=pairs",
        ),
        ({"sources": [{"path": lines, "weight": 0.001}]}, "the plan is empty: 40 samples, 0 drop"),
    ]
    for changes, message in refused:
        with pytest.raises((ConfigError, SampleError)) as error:
            make("refused", **changes)
        assert message in str(error.value)


def test_empty_rows_and_reference_scores(make):
    rows = make()
    assert rows.row(0).reference is None and rows.empty_row().num_pairs == 0
    scores = np.arange(240.0).reshape(120, 2)
    scored = rows.with_reference(scores, "model")
    for number in range(rows.num_rows):
        row, documents = scored.row(number), rows.documents_of(number)
        assert row.reference.tolist() == [[2.0 * d, 2.0 * d + 1] for d in documents]
        assert row.tokens_S.tolist() == rows.row(number).tokens_S.tolist()
    assert scored.empty_row().reference.shape == (0, 2)
    last = scored.at_step(0, rows.num_rows + 1)[-1]
    assert (last.num_tokens, last.reference.shape) == (0, (0, 2))
    prints = {rows.fingerprint, scored.fingerprint, rows.with_reference(scores, "b").fingerprint}
    assert len(prints) == 3 and rows.row(0).reference is None
    scored.verify()
    with pytest.raises(ValueError) as error:
        rows.with_reference(scores[:-1], "model")
    assert str(error.value) == (
        f"{rows.folder} has 120 documents, but the reference scores are of shape [119, 2], not "
        "[documents, 2]; score it again"
    )


def test_damaged_marks_are_noticed(make):
    rows = make()
    rows.verify()
    documents = [dict(document) for document in rows.documents]
    documents[7]["format"][-1] ^= True
    del rows
    folder = Path(make("other").folder)
    features = datasets.load_from_disk(str(folder / "documents")).features
    changed = datasets.Dataset.from_list(documents, features=features)
    changed.save_to_disk(str(folder.parent / "changed"))
    (folder / "documents").rename(folder.parent / "aside")
    (folder.parent / "changed").rename(folder / "documents")
    with pytest.raises(ValueError, match="is damaged: manifest.json has fingerprint"):
        Rows.open(folder).verify()


def test_row_with_formats_by_hand():
    """A format token counts where it is a label to learn, at the place before it."""
    documents = [([5, 6, 7, 9], [0, 0, 1, 1]), ([8, 9], [0, 1])]
    formats = [np.array([1, 1, 0, 1], bool), np.array([0, 1], bool)]
    row = make_row(documents, 8, pad_id=0, formats=formats)
    assert row.mask_S.tolist() == [0, 1, 1, 0, 1, 0, 0, 0]
    assert row.format_S.tolist() == [0, 0, 1, 0, 1, 0, 0, 0]
    assert (row.num_pairs, str(row.format_S.dtype)) == (1, "bool")
    with pytest.raises(ValueError) as error:
        make_row(documents, 8, pad_id=0, formats=formats[:1])
    assert str(error.value) == "documents of [4, 2] tokens but formats of [4]"
    with pytest.raises(ValueError, match=r"documents of \[4, 2\] tokens but formats of \[4, 1\]"):
        make_row(documents, 8, pad_id=0, formats=[formats[0], formats[1][:1]])


@pytest.fixture
def arguments(settings, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "110")
    lines = write_lines(tmp_path / "two.jsonl", [pair(0), pair(1)])
    keys = {**settings, "sources": [{"path": lines}], "row_tokens": 184, "epochs": 1}
    return [f"{key}={json.dumps(value)}" for key, value in keys.items()]


def test_tools_show_pairs(arguments, tmp_path, capsys):
    """Pair 0: prompts of 18 + 4 tokens, answers of 24 and 16, end tokens; pair 1: 6 more each."""
    assert pack_tool.main(arguments) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "two 1 2 0 184 28 20" in printed
    assert "pairs 2; answers of 28 (chosen) and 20 tokens (rejected) on average" in printed
    assert "of the answers' tokens lie in format spans; 0 pairs have an answer without" in printed
    result = CliRunner().invoke(show_rows.app, [str(tmp_path / "packed"), "--plain"])
    head, *texts = result.output.splitlines()
    assert head.startswith("row 0 of 1: 2 pairs, 184 of 184 tokens (100.0%), 96 learnt")
    first, second = (texts[i : i + 4] for i in (0, 4))
    for n, shown in zip((1, 0), (first, second), strict=True):
        tail = "is so " * n
        asked = f"<role>HUMAN</role>{n}+{n}?<role>ASSISTANT</role>"
        assert shown[0].startswith(f"── pair {1 - n}, chosen: two {n + 1}: ")
        begun = f"{asked}[[{{{{<think>{n}}}}} and {n} {tail}".removesuffix(" ")
        assert shown[1] == f"{begun}{{{{ </think>{2 * n}}}}}<|endoftext|>]]"
        assert shown[2].startswith(f"── pair {1 - n}, rejected: two {n + 1}: ")
        assert shown[3] == f"{begun}{{{{ {2 * n}}}}}<|endoftext|>]]"
    coloured = CliRunner().invoke(show_rows.app, [str(tmp_path / "packed")]).output
    assert "\x1b[1;4;32m<think>0\x1b[0m\x1b[1;32m and 0\x1b[0m" in coloured


def test_dry_run_shows_both_answers(arguments, tmp_path, capsys):
    assert pack_tool.main([*arguments, "--dry-run"]) == 0
    printed = capsys.readouterr().out
    asked = "<role>HUMAN</role>0+0?<role>ASSISTANT</role>"
    assert f"chosen: {asked}<think>0 and 0 </think>0<|endoftext|>" in printed
    assert f"rejected: {asked}<think>0 and 0 0<|endoftext|>" in printed
    assert "47 tokens, 53% learnt (green), 18 in format spans (underlined)" in printed
    assert not (tmp_path / "packed").exists()


def test_help_teaches_pairs(capsys):
    assert pack_tool.main(["--help"]) == 0
    printed = capsys.readouterr().out
    assert "python tools/pack.py kind=pairs tokenizer=Ling-lite output=pairs" in printed
    assert "sources.N.rejected [rejected]  pairs: column holding the worse answer" in printed
