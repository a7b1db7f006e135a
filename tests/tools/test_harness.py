"""The command line beside lm-evaluation-harness: what it says of two runs that are not the same."""

from pathlib import Path

import pytest

from tests.curation import scripted
from tests.evaluation.evaluating import evaluate, tree
from tests.evaluation.test_harness import log, said
from tools import harness


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    """Exit status and what was printed."""
    status = harness.main(list(map(str, arguments)))
    return status, capsys.readouterr().out


def test_a_run_is_exported_and_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    out, folder = tmp_path / "out", tmp_path / "h"
    with scripted.serve(tmp_path, script="tests.evaluation.adding:adds") as server:
        evaluate(tree(tmp_path, server.url, [(1, 91), (2, 91), (3, 91)]))
    status, told = call(capsys, "export", out, "--output", folder)
    assert status == 0 and "ring_gsm8k: 3 items; ask them with\n    lm_eval --model " in told
    assert f"--include_path {folder} --tasks ring_gsm8k" in told
    log(folder, said(out) | {"0": "Sorry.", "1": "\\boxed{93.0}", "2": "It is \\boxed{94}"})
    status, told = call(capsys, "compare", out, folder)
    assert status == 0
    rows = [[c.strip() for c in line.split("│")[1:-1]] for line in told.split("\n") if "│" in line]
    assert rows == [
        ["evaluate.py: its answers, our rules", "0", "0.0", "0.0 to 56.1", "0"],
        ["lm_eval: its answers, our rules", "2", "66.7", "20.8 to 93.9", "2"],
        ["lm_eval: boxed", "2", "66.7", "20.8 to 93.9", "2"],
        ["lm_eval: flexible-extract", "1", "33.3", "6.1 to 79.2", "1"],
    ]
    assert "0 of 3 replies are the same text" in told
    assert (
        "1: right is 93; evaluate.py no_answer (nothing); another text, by our rules right (93.0); "
        "boxed 1 (93); flexible-extract 0 (93.0)" in told
    )
    assert "2 of 2 items" in told and "0: right is 92" not in told
    status, told = call(capsys, "compare", out, folder, "--task", "gsm8k", "-n", "1")
    assert "1: right is 93" in told and "2: right" not in told and "1 of 2 items" in told


def test_what_is_wrong_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, told = call(capsys, "export", tmp_path)
    wanted = "error: export needs --output FOLDER, for the files of the harness\n"
    assert (status, told) == (1, wanted)
    status, told = call(capsys, "compare", tmp_path)
    wanted = "error: give two folders, OUT and the one that `export` wrote\n"
    assert (status, told) == (1, wanted)
    status, told = call(capsys)
    assert status == 0 and "python tools/harness.py compare OUT FOLDER" in told
