"""The packed folder: built from files, opened, read, damaged."""

import json
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from megatron_ring.config import ConfigError, PackConfig
from megatron_ring.data.build import pack
from megatron_ring.data.chat import SampleError
from megatron_ring.data.folder_hash import FolderHash
from megatron_ring.data.rows import Rows


def chat(question, answer, **extra):
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": turns, **extra}


def write_lines(path: Path, records) -> str:
    lines = [r if isinstance(r, str) else json.dumps(r, ensure_ascii=False) for r in records]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


SUMS = [chat(f"{n}+{n}?", str(2 * n) * (1 + n % 7), id=f"sum-{n}") for n in range(40)]
WORDS = [chat(f"say {n}", "ab" * n) for n in range(1, 21)]


@pytest.fixture
def make(tmp_path, ling_folder):
    """A function: overrides of PackConfig -> Rows, packed from SUMS and WORDS."""

    def make(output="packed", **overrides) -> Rows:
        sums = write_lines(tmp_path / "sums.jsonl", SUMS)
        words = write_lines(tmp_path / "words.jsonl", WORDS)
        settings = {
            "tokenizer": str(ling_folder),
            "output": str(tmp_path / output),
            "sources": [{"path": sums}, {"path": words, "weight": 0.5}],
            "row_tokens": 256,
            "epochs": 2,
        }
        return pack(PackConfig(**(settings | overrides)))

    return make


def texts_of(rows, tokenizer, number):
    """(source name, text) of each document of a row, cut out of the row itself."""
    row = rows.row(number)
    ends = row.cu_seqlens[: row.num_documents + 1]
    documents = np.split(row.tokens_S, ends[1:])[: row.num_documents]
    names = [rows.sources[source] for source in row.sources]
    return list(zip(names, map(tokenizer.decode, documents), strict=True))


def test_every_sample_is_seen_as_often_as_planned(make, ling):
    """Two epochs: each sum twice, each word sample (weight 0.5) once, all of them whole."""
    rows = make()
    seen = [pair for number in range(rows.num_rows) for pair in texts_of(rows, ling, number)]

    def text(sample):
        question, answer = (turn["content"] for turn in sample["messages"])
        return f"<role>HUMAN</role>{question}<role>ASSISTANT</role>{answer}<|endoftext|>"

    expected = [("sums", text(s)) for s in SUMS] * 2 + [("words", text(s)) for s in WORDS]
    assert sorted(seen) == sorted(expected)


def test_row_is_what_its_documents_say(make):
    rows = make()
    for number in range(rows.num_rows):
        row = rows.row(number)
        documents = rows.documents[rows.documents_of(number)]
        starts = row.cu_seqlens[: row.num_documents]
        assert row.num_documents == len(documents["tokens"])
        for start, tokens, targets in zip(
            starts, documents["tokens"], documents["targets"], strict=True
        ):
            stop = start + len(tokens)
            assert row.tokens_S[start:stop].tolist() == tokens
            assert row.labels_S[start : stop - 1].tolist() == tokens[1:]
            assert row.mask_S[start:stop].tolist() == [*targets[1:], False]
        assert row.sources.tolist() == documents["source"]
        assert not row.mask_S[row.num_tokens :].any()


def test_every_token_is_learnt_where_all_is_wanted(make, ling):
    """But the first of each document, which nothing predicts; the tokens are the same."""
    answers, everything = make(), make("all", learn="all")
    for number in range(answers.num_rows):
        one, other = answers.row(number), everything.row(number)
        assert (one.tokens_S == other.tokens_S).all()
    told = everything.manifest
    assert told["num_supervised"] == told["num_tokens"] - told["num_placements"]
    assert answers.manifest["num_supervised"] < told["num_supervised"]
    with pytest.raises(ValueError, match="learn=all with kind=pairs: of pairs the answers are"):
        make("pairs", kind="pairs", learn="all")


def test_manifest_counts(make, ling):
    rows = make()
    all_rows = [rows.row(number) for number in range(rows.num_rows)]
    manifest = rows.manifest
    assert manifest["num_tokens"] == sum(row.num_tokens for row in all_rows)
    assert manifest["num_supervised"] == sum(row.num_supervised for row in all_rows)
    assert manifest["fill"] == pytest.approx(manifest["num_tokens"] / (rows.num_rows * 256))
    assert len(manifest["rows_in_epoch"]) == 2 and sum(manifest["rows_in_epoch"]) == rows.num_rows
    assert (rows.row_tokens, rows.sources, rows.tokenizer_size) == (256, ["sums", "words"], 261)
    assert manifest["tokenizer"]["max_id"] == ling.encode("</role>")[0]
    counts = [(s["documents"], s["placements"], s["dropped"]) for s in manifest["sources"]]
    assert counts == [(40, 80, 0), (20, 20, 0)]
    assert rows.documents[3]["id"] == "sum-3" and rows.documents[41]["id"] == "2"


def as_lists(rows):
    return [(row.tokens_S.tolist(), row.mask_S.tolist()) for row in rows]


@pytest.mark.parametrize("size", [2, 4])
def test_ranks_share_the_step_without_overlap(make, size):
    """Row i of the step goes to rank i % size, so the union does not depend on the ranks."""
    rows = make()
    for step in range(rows.num_steps(4)):
        whole = as_lists(rows.at_step(step, 4))
        ranks = [as_lists(rows.at_step(step, 4, rank, size)) for rank in range(size)]
        assert [ranks[i % size][i // size] for i in range(4)] == whole
        assert as_lists(rows.at_step(step, 4)) == whole


def test_last_step_is_filled_with_padding(make):
    rows = make()
    per_step = rows.num_rows - 1  # the last step has one row
    assert rows.num_steps(per_step) == 2
    last = rows.at_step(1, per_step)
    assert len(last) == per_step
    assert [row.num_tokens for row in last[1:]] == [0] * (per_step - 1)
    assert as_lists(last[:1]) == as_lists([rows.row(rows.num_rows - 1)])


def test_impossible_steps_and_rows(make):
    rows = make()
    steps, number = rows.num_steps(4), rows.num_rows
    refused = {
        (steps, 4): f"step {steps} is outside the plan of {steps} steps ({number} rows, 4 a step, "
        "step 0 first)",
        (0, 4, 0, 3): "rows_per_step=4 is not a multiple of 3 ranks",
        (0, 4, 2, 2): "rank 2 is outside 0..1",
    }
    for arguments, message in refused.items():
        with pytest.raises(ValueError) as error:
            rows.at_step(*arguments)
        assert str(error.value) == message
    with pytest.raises(ValueError) as error:
        rows.row(number)
    assert str(error.value) == f"row {number} is outside the plan of {number} rows (0 first)"


def test_same_input_and_seed_same_fingerprint_with_any_number_of_processes(make, tmp_path):
    many = write_lines(tmp_path / "many.jsonl", SUMS * 20)  # 13 batches for two processes
    base = make(sources=[{"path": many}])
    other = make("other", sources=[{"path": many}], workers=2)
    assert base.fingerprint == other.fingerprint
    numbers = range(base.num_rows)
    assert as_lists(map(base.row, numbers)) == as_lists(map(other.row, numbers))
    base.verify()


def test_fingerprint_changes_with_whatever_changes_a_row(make, tmp_path, make_tokenizer):
    untrained = [{"role": "user", "content": "1"}, {"role": "assistant", "content": "2"}]
    untrained[1]["train"] = False
    trained = [untrained[0], {**untrained[1], "train": True}]
    one = write_lines(tmp_path / "one.jsonl", [*SUMS, {"messages": trained}])
    two = write_lines(tmp_path / "two.jsonl", [*SUMS, {"messages": untrained}])
    template = tmp_path / "t.jinja"
    template.write_text("{% for m in messages %}{{ m.role + m.content }}{% endfor %}")
    variants = [
        {},
        {"seed": 1},
        {"epochs": 1},
        {"row_tokens": 512},
        {"sources": [{"path": one}]},
        {"sources": [{"path": two}]},
        {"sources": [{"path": one, "weight": 2}]},
        {"tokenizer": str(make_tokenizer(eos="<|im_end|>"))},
        {"chat_template": str(template)},
    ]
    prints = [make(f"v{i}", **change).fingerprint for i, change in enumerate(variants)]
    assert len(set(prints)) == len(prints)


def test_parquet_data_set_and_text_columns_give_the_same_rows(make, tmp_path):
    base = make(sources=[{"path": str(tmp_path / "sums.jsonl"), "name": "x"}])
    parquet = tmp_path / "sums.parquet"
    pq.write_table(pa.Table.from_pylist(SUMS), parquet)
    saved = tmp_path / "saved"
    datasets.Dataset.from_list(SUMS).save_to_disk(str(saved))
    plain = [
        {"id": s["id"], "q": s["messages"][0]["content"], "a": s["messages"][1]["content"]}
        for s in SUMS
    ]
    columns = {"prompt": "q", "response": "a"}
    array = tmp_path / "sums.json"
    array.write_text(json.dumps(SUMS, indent=1))
    sources = [
        {"path": str(array)},
        {"path": str(parquet)},
        {"path": str(saved)},
        {"path": write_lines(tmp_path / "plain.jsonl", plain), **columns},
    ]
    for i, source in enumerate(sources):
        rows = make(f"same{i}", sources=[{**source, "name": "x"}])
        assert rows.fingerprint == base.fingerprint, source
        assert rows.documents["id"] == base.documents["id"]


def test_overlong_samples_are_dropped_listed_and_counted(make, tmp_path):
    """Template and end token are 19 tokens here: 64 hold 45 letters of question and answer."""
    path = write_lines(tmp_path / "long.jsonl", [chat("q", "a" * n, id=n) for n in (44, 45, 90)])
    rows = make(sources=[{"path": path}], row_tokens=64, epochs=1)
    assert rows.documents["id"] == ["44"]
    assert len(rows.documents[0]["tokens"]) == 64
    rejected = [json.loads(line) for line in (rows.folder / "rejected.jsonl").open()]
    reasons = [f"{n} tokens are more than a row of 64 holds" for n in (65, 110)]
    assert [item["reason"] for item in rejected] == reasons
    assert rejected[0] == {
        "where": f"{path}:2",
        "source": "long",
        "number": 2,
        "id": "45",
        "reason": reasons[0],
        "length": 65,
    }
    assert rows.manifest["sources"][0]["dropped"] == 2
    assert "2 samples" in (rows.folder / "report.txt").read_text()
    with pytest.raises(SampleError) as error:
        make("none", sources=[{"path": path}], row_tokens=64, overlong="error")
    assert str(error.value) == f"{path}:2: {reasons[0]}; raise row_tokens, or set overlong=drop"


BAD_LINES = {
    '{"messages": [}': "not JSON: Expecting value: line 1 column 15 (char 14)",
    "[{}]": "a JSON list, not an object",
    "[": "not JSON: Expecting value: line 2 column 1 (char 2); one object a line; an array is read "
    "from a file whose name ends in .json",
    '{"text": "hi"}': "no 'messages' here (its keys: text); set sources.0.messages, or .prompt and "
    ".response for plain text",
    '{"messages": [{"role": "gpt", "content": "x"}]}': "turn 1: unknown role 'gpt'; did you mean "
    "'assistant'?",
    json.dumps(chat("hi", "")): "turn 2 (assistant) is empty: it has neither content nor "
    "tool_calls",
}


@pytest.mark.parametrize(("line", "reason"), BAD_LINES.items(), ids=range(len(BAD_LINES)))
def test_bad_line_names_file_line_and_reason(make, tmp_path, line, reason):
    path = write_lines(tmp_path / "bad.jsonl", [SUMS[0], "", line, SUMS[1]])
    with pytest.raises(SampleError) as error:
        make("bad", sources=[{"path": path}])
    assert str(error.value) == f"{path}:3: {reason}"
    assert [p.name for p in tmp_path.iterdir() if "bad" in p.name] == ["bad.jsonl"]
    rows = make("kept", sources=[{"path": path}], invalid="drop")
    (rejected,) = map(json.loads, (rows.folder / "rejected.jsonl").open())
    assert (rejected["reason"], rejected["where"]) == (reason, f"{path}:3")
    assert rows.documents["id"] == ["sum-0", "sum-1"]


@pytest.mark.slow  # two more processes to start
def test_bad_line_in_another_process(make, tmp_path):
    path = write_lines(tmp_path / "bad.jsonl", [*SUMS * 4, "{", *SUMS])
    with pytest.raises(SampleError, match=r"bad\.jsonl:161: not JSON: Expecting property name"):
        make("bad", sources=[{"path": path}], workers=2)
    assert [p.name for p in tmp_path.iterdir() if "bad" in p.name] == ["bad.jsonl"]


def test_line_that_is_no_utf8(make, tmp_path):
    path = tmp_path / "latin.jsonl"
    path.write_bytes(json.dumps(SUMS[0]).encode() + b'\n{"messages": "\xe9"}\n')
    with pytest.raises(SampleError, match=r"latin\.jsonl:2: not JSON: 'utf-8' codec can't decode"):
        make(sources=[{"path": str(path)}])


def test_bad_row_of_a_table(make, tmp_path):
    path = tmp_path / "bad.parquet"
    pq.write_table(pa.Table.from_pylist([SUMS[0], {"messages": [], "id": "x"}]), path)
    with pytest.raises(SampleError) as error:
        make(sources=[{"path": str(path)}])
    assert str(error.value) == f"{path} row 2: messages is an empty list, not a list of turns"


def test_sources_that_cannot_be(make, tmp_path):
    here = write_lines(tmp_path / "here.jsonl", SUMS)
    table = tmp_path / "t.parquet"
    pq.write_table(pa.table({"text": ["x"]}), table)
    (tmp_path / "no.parquet").write_text("no")
    long = write_lines(tmp_path / "long.jsonl", [chat("q", "a" * 900)])
    array, half = tmp_path / "array.json", tmp_path / "half.json"
    array.write_text(json.dumps([SUMS[0], "x"]))
    half.write_text("\n[{}, ")
    prompt = {"path": here, "prompt": "q"}
    refused = [
        ([{"path": "no.jsonl"}], "sources.0.path=no.jsonl: there is no such file"),
        ([{"path": here}] * 2, "two sources are named 'here'; set sources.1.name"),
        ([prompt], "sources.0.response is missing: prompt and response come together"),
        (
            [{"path": str(table)}],
            f"{table} has no column 'messages' (its columns: text); set sources.0.messages, or "
            ".prompt and .response for plain text",
        ),
        ([{"path": str(tmp_path / "no.parquet")}], "no.parquet is no Parquet"),
        ([{"path": str(array)}], "array.json row 2: a JSON str, not an object"),
        ([{"path": str(half)}], "half.json is no JSON array: Expecting"),
        ([{"path": here, "rejected": "bad"}], "sources.0.rejected is for pairs of answers; add"),
        ([{"path": here, "weight": 0.001}], "the plan is empty: 40 samples, 0 dropped, 2 epochs"),
        ([{"path": long}], "no sample is left: 1 dropped; the first: 920 tokens are more than"),
    ]
    for sources, message in refused:
        with pytest.raises(ValueError) as error:
            make("refused", sources=sources)
        assert message in str(error.value)
        assert not [p for p in tmp_path.iterdir() if p.name.startswith("refused")]


def test_existing_folder_is_replaced_only_when_told(make, tmp_path):
    first = make(epochs=1)
    with pytest.raises(ConfigError) as error:
        make(seed=9)
    assert str(error.value) == f"output={first.folder} exists; type overwrite=true to replace it"
    assert Rows.open(first.folder).fingerprint == first.fingerprint
    second = make(seed=9, overwrite=True)
    assert Rows.open(second.folder).fingerprint == second.fingerprint != first.fingerprint
    (tmp_path / "home").mkdir()
    with pytest.raises(ConfigError, match="home is no packed folder"):
        make("home", overwrite=True)
    assert {p.name for p in tmp_path.iterdir()} == {"home", "packed", "sums.jsonl", "words.jsonl"}


def test_damaged_folders_are_refused(make, tmp_path):
    with pytest.raises(ValueError) as error:
        Rows.open(tmp_path / "nowhere")
    assert str(error.value) == (
        f"{tmp_path / 'nowhere'} is not a packed folder: there is no "
        f"{tmp_path / 'nowhere' / 'manifest.json'}; make one with tools/pack.py"
    )
    folder = make().folder
    manifest = folder / "manifest.json"
    good = json.loads(manifest.read_text())

    def refused(**changes):
        manifest.write_text(json.dumps(good | changes))
        with pytest.raises(ValueError) as error:
            Rows.open(folder).verify()
        return str(error.value)

    assert refused(format=0) == (
        f"{manifest} has format 0, this program reads format 1; pack it again"
    )
    assert refused(num_documents=61) == (
        f"{folder} is damaged: manifest.json promises 61 documents, the files hold 60; "
        "pack it again"
    )
    assert "promises 3 rows, the files hold" in refused(num_rows=3)
    assert "has fingerprint abc, its contents" in refused(fingerprint="abc")
    (arrow,) = (folder / "documents").glob("*.arrow")
    arrow.write_bytes(arrow.read_bytes()[: arrow.stat().st_size // 2])
    assert f"{folder} is damaged: " in refused()
    arrow.unlink()
    assert f"{folder} is damaged: " in refused()
    manifest.write_text("{")
    with pytest.raises(ValueError, match="manifest.json is not JSON: .*; pack it again"):
        Rows.open(folder)


def test_fingerprint_of_chat_is_what_it_always_was(make):
    """Taken before there were pairs; the tokenizer's own hash may change with its library."""
    rows = make()
    hasher = FolderHash()
    for document in rows.documents:
        hasher.add(np.array(document["tokens"]), np.array(document["targets"]), document["source"])
    about = rows.manifest["tokenizer"] | {"fingerprint": "any"}
    plan = [np.load(rows.folder / f"plan_{part}.npy") for part in ("documents", "row_starts")]
    found = hasher.finish(rows.row_tokens, about, *plan)
    assert found == "b0928ffb1abe4142f03551e0489aaa62b3139bf66c2c04ad61fb191d68e50a7f"
    assert rows.kind == "chat"


def test_pictures_and_copies_are_there(make, ling):
    rows = make()
    assert (rows.folder / "lengths.png").read_bytes().startswith(b"\x89PNG")
    report = (rows.folder / "report.txt").read_text()
    assert rows.fingerprint in report and f"{rows.manifest['fill']:.2%}" in report
    assert (rows.folder / "tokenizer" / "tokenizer.json").exists()
