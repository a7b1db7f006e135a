"""Domains of the taxonomy: a column of the samples, carried into rows; nothing is learnt of it."""

import pytest

from megatron_ring.config import ConfigError, PackConfig
from megatron_ring.data import build
from megatron_ring.data.rows import Rows
from tests.data.test_rows import SUMS, chat, write_lines

DOMAINS = ["math/primary", None, "code"]


def packed(tmp_path, ling_folder, records, name, **source):
    path = write_lines(tmp_path / f"{name}.jsonl", records)
    return build.pack(
        PackConfig(
            tokenizer=str(ling_folder),
            output=str(tmp_path / name),
            sources=[{"path": path, **source}],
            row_tokens=256,
        )
    )


def test_documents_keep_their_domain(tmp_path, ling_folder):
    """Whatever row they fall into; without one it is -1, and the names come as they are met."""
    records = [record | {"domain": DOMAINS[i % 3]} for i, record in enumerate(SUMS)]
    rows = packed(tmp_path, ling_folder, records, "sums")
    assert rows.domains == ["math/primary", "code"]
    seen = 0
    for number in range(rows.num_rows):
        row = rows.row(number)
        for document, domain in zip(rows.documents_of(number), row.domains, strict=True):
            expected = DOMAINS[document % 3]
            assert domain == (-1 if expected is None else rows.domains.index(expected))
            seen += 1
    assert seen == len(SUMS)
    assert rows.empty_row().domains.tolist() == []


def test_domains_change_no_fingerprint(tmp_path, ling_folder):
    """A run may go on after its data was labelled anew: what it learns is the same."""
    plain = packed(tmp_path, ling_folder, SUMS, "plain")
    labelled = packed(tmp_path, ling_folder, [r | {"domain": "x"} for r in SUMS], "labelled")
    switched_off = packed(
        tmp_path, ling_folder, [r | {"domain": "x"} for r in SUMS], "off", domain=None
    )
    assert plain.fingerprint == labelled.fingerprint == switched_off.fingerprint
    assert (plain.domains, labelled.domains, switched_off.domains) == ([], ["x"], [])
    Rows.open(labelled.folder).verify()


def test_a_column_of_many_values_is_no_domain(tmp_path, ling_folder):
    records = [chat(f"say {n}", "ab", domain=f"row {n}") for n in range(101)]
    with pytest.raises(ConfigError) as error:
        packed(tmp_path, ling_folder, records, "many")
    assert str(error.value) == (
        "more than 100 domains, the last 'row 100': sources.0.domain names a column of few "
        "values, or is null"
    )
