"""tools/check_sandbox.py and tools/measure_sandbox.py, on rows made by hand."""

import gzip
import json
from pathlib import Path

import pytest
import typer

from megatron_ring.curation import sandbox
from tests.curation.sandboxed import isolated
from tools import check_sandbox, measure_sandbox


@pytest.fixture
def data(tmp_path: Path) -> Path:
    row = {"task_id": 1, "test_setup_code": "", "code": "def f(x):\n    return x + 1"}
    rows = [{**row, "test_list": ["assert f(1) == 2", "assert f(2) == 3"]}]
    rows.append({**row, "task_id": 2, "test_list": ["assert f(1) == 2", "assert f(2) == 4, 'no'"]})
    rows.append({**rows[0], "task_id": 3, "test_setup_code": "import nothing_like_it"})
    (tmp_path / "mbpp").mkdir()
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "mbpp/mbpp.jsonl").write_text(text)
    row = {
        "task_id": "HumanEval/0",
        "prompt": "def f(x):\n",
        "canonical_solution": "    return 2\n",
    }
    row |= {"test": "def check(g):\n    assert g(1) == 2", "entry_point": "f"}
    (tmp_path / "humaneval").mkdir()
    with gzip.open(tmp_path / "humaneval/HumanEval.jsonl.gz", "wt") as file:
        file.write(json.dumps(row) + "\n")
    return tmp_path


@isolated
def test_verdicts_are_counted(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as end:
        measure_sandbox.main(data, workers=1, seconds=60.0)
    assert end.value.exit_code == 1  # 1 of 3 is below what MBPP has right
    first, *wrong, last = capsys.readouterr().out.splitlines()
    assert first.startswith("MBPP: 1 of 3 passed, {'passed': 1, 'failed': 2}, ")
    assert wrong == [
        "  2: failed: AssertionError: no",
        "  3: failed: ModuleNotFoundError: No module named 'nothing_like_it'",
    ]
    assert last.startswith("HumanEval: 1 of 1 passed, {'passed': 1}, ")


def test_what_is_missing_is_said(
    data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sandbox, "_proven", [])
    monkeypatch.setenv("PATH", str(data))
    for call in (
        lambda: check_sandbox.main(programs=1, workers=1),
        lambda: measure_sandbox.main(data, workers=1, seconds=60.0),
    ):
        with pytest.raises(typer.Exit) as end:
            call()
        assert end.value.exit_code == 1
        said = "not isolated: bubblewrap is not installed (no bwrap on PATH), and nothing runs"
        assert capsys.readouterr().out.startswith(said)


@isolated
def test_an_attack_that_gets_through_is_an_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = [("network", ""), ("fork bomb", "it printed '40\\n'")]
    monkeypatch.setattr(check_sandbox, "attack_all", lambda isolation: iter(found))
    with pytest.raises(typer.Exit) as end:
        check_sandbox.main(programs=2, workers=1)
    assert end.value.exit_code == 1
    first, *lines = capsys.readouterr().out.splitlines()
    assert first.startswith(f"isolated by {sandbox.proven().bubblewrap} ")
    assert lines[:2] == ["  network: contained", "  fork bomb: it printed '40\\n'"]
    assert lines[2].startswith("2 of 2 empty programs, 1 at a time: ")
    found.pop()
    check_sandbox.main(programs=1, workers=1)
