"""Files of records: what is said where one cannot be written or read."""

import resource
import signal
from pathlib import Path

import pytest

from megatron_ring.curation.shards import dump, read_lines, write_lines


def test_a_full_disk_names_the_file_and_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "kept.jsonl"
    write_lines(path, [dump("old")])
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50, before[1]))
        with pytest.raises(OSError) as error:
            write_lines(path, [dump("new" * 100)], synced=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert str(error.value) == f"[Errno 27] File too large: '{path}'"
    assert list(tmp_path.iterdir()) == [path] and list(read_lines(path)) == ["old"]


def test_a_line_that_is_no_json_is_named(tmp_path: Path) -> None:
    path = tmp_path / "kept.jsonl"
    path.write_bytes(b'{"a": 1}\n{"a": ')
    lines = read_lines(path)
    assert next(lines) == {"a": 1}
    with pytest.raises(ValueError) as error:
        next(lines)
    assert str(error.value).startswith(f"{path} line 2 is no JSON: Expecting value: line 1 column")
