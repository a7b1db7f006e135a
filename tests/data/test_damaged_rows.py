"""A row that cannot be read: the error names step, row, documents, source, folder and remedy."""

import shutil

import numpy as np
import pyarrow as pa
import pytest

from megatron_ring.data.rows import DataError, Rows
from tests.runs import lines, options, run


def with_plan(packed, folder, row, change):
    """A copy of a packed folder whose plan has something else in the place of a row's first."""
    shutil.copytree(packed, folder)
    plan = np.load(folder / "plan_documents.npy")
    starts = np.load(folder / "plan_row_starts.npy")
    plan[starts[row]] = change
    np.save(folder / "plan_documents.npy", plan)
    return folder


def test_a_document_that_is_not_there(packed, tmp_path):
    rows = Rows.open(with_plan(packed, tmp_path / "rows", 9, 10_000))
    assert len(rows.at_step(1, 4)) == 4
    with pytest.raises(DataError) as error:
        rows.at_step(2, 4)
    said = str(error.value)
    assert said.startswith(f"step 3: row 9 of {tmp_path / 'rows'} (documents [10000, ")
    assert "cannot be read: " in said
    assert ", of sources that cannot be read either)" in said
    assert "pack it again with tools/pack.py" in said


def test_tokens_that_no_tokenizer_gave(packed, tmp_path):
    """A flipped bit in the Arrow file is no error of Arrow's."""
    shutil.copytree(packed, tmp_path / "rows")
    good = Rows.open(tmp_path / "rows")
    documents, row = good.documents_of(9), good.row(9)
    tokens = row.tokens_S[: row.cu_seqlens[1]].astype("<i4").tobytes()
    (file,) = (tmp_path / "rows/documents").glob("*.arrow")
    data = bytearray(file.read_bytes())
    place = data.find(tokens)
    assert place > 0
    data[place + 2] ^= 0x40
    file.unlink()  # the mapping above keeps the old one
    file.write_bytes(data)
    with pytest.raises(DataError) as error:
        Rows.open(tmp_path / "rows").row(9)
    said = str(error.value)
    name = good.sources[0]
    assert said.startswith(f"row 9 of {tmp_path / 'rows'} (documents {documents}, of {name})")
    assert f"of a tokenizer of {good.tokenizer_size}" in said


def test_a_disk_that_fails(packed, monkeypatch):
    rows = Rows.open(packed)

    def fail(self, row):
        raise pa.ArrowIOError("Input/output error")

    monkeypatch.setattr(Rows, "_read", fail)
    with pytest.raises(DataError, match=r"step 1: row 0 of .*train.*Input/output error\. The fold"):
        rows.at_step(0, 4)


def test_the_run_ends_with_the_line(packed, tmp_path, capfd):
    """Row 9 is read by rank 1 of two: it says so, and no rank waits for ever."""
    folder = with_plan(packed, tmp_path / "rows", 9, 10_000)
    with pytest.raises(RuntimeError, match=r"rank [01]:"):
        run(2, options(folder, tmp_path / "run", "parallel.ep=2"), tmp_path / "ranks")
    texts = [file.read_text() for file in (tmp_path / "ranks").glob("error-1.txt")]
    assert "SystemExit: error: step 3: row 9 of " in texts[0]
    assert max(lines(tmp_path / "run")) == 2
