"""One packed row, by hand; the folder of rows is in test_rows.py."""

import numpy as np
import pytest

from megatron_ring.data import rows
from megatron_ring.data.rows import make_row

DOCUMENTS = [
    ([5, 6, 7, 9], [False, False, True, True]),
    ([8, 9], [False, True]),
    ([4, 3, 9], [False, False, False]),
]


def test_row_by_hand(monkeypatch):
    """Three documents, the last unsupervised, in 14 tokens; pad id 9 is the end token too."""
    monkeypatch.setattr(rows, "PAD_SEGMENT", 3)
    row = make_row(DOCUMENTS, 14, pad_id=9, sources=[1, 0, 1])
    expected = {
        "tokens_S": [5, 6, 7, 9, 8, 9, 4, 3, 9, 9, 9, 9, 9, 9],
        "labels_S": [6, 7, 9, 0, 9, 0, 3, 9, 0, 0, 0, 0, 0, 0],
        "mask_S": [0, 1, 1, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        "positions_S": [0, 1, 2, 3, 0, 1, 0, 1, 2, 0, 1, 2, 0, 1],
        "padding_S": [0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1],
        "cu_seqlens": [0, 4, 6, 9, 12, 14],
        "sources": [1, 0, 1],
    }
    for name, values in expected.items():
        assert getattr(row, name).tolist() == values, name
    assert (row.num_documents, row.num_tokens, row.num_supervised) == (3, 9, 3)
    dtypes = [row.tokens_S, row.labels_S, row.positions_S, row.cu_seqlens, row.mask_S, row.sources]
    assert [str(array.dtype) for array in dtypes] == ["int32"] * 4 + ["bool", "int8"]


def test_full_row_has_no_padding_segment():
    row = make_row([(np.arange(6), np.ones(6, bool))], 6, pad_id=0)
    assert row.cu_seqlens.tolist() == [0, 6]
    assert not row.padding_S.any()
    assert row.num_supervised == 5  # nothing comes before the first token


def test_all_padding_row_is_cut_into_short_segments():
    row = make_row([], 300, pad_id=7)
    assert row.cu_seqlens.tolist() == [0, 128, 256, 300]
    assert (row.num_documents, row.num_tokens, row.num_supervised) == (0, 0, 0)
    assert row.padding_S.all() and (row.tokens_S == 7).all()
    assert row.positions_S.tolist() == [*range(128), *range(128), *range(44)]


@pytest.mark.parametrize(
    ("documents", "message"),
    [
        ([([1, 2, 3], [0, 0, 1])] * 4, "4 documents of 12 tokens in all do not fit a row of 10"),
        ([([1], [0]), ([1, 2], [1])], "document 1: 2 tokens but 1 targets"),
        ([([], [])], "document 0 is empty"),
    ],
)
def test_impossible_rows_are_refused(documents, message):
    with pytest.raises(ValueError) as error:
        make_row(documents, 10, pad_id=0)
    assert str(error.value) == message
