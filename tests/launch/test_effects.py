"""The road of effects: its plans' commands, one tiny run, and what a failed run says."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WHERE = {"VENV": str(Path(sys.executable).parents[1]), "PYTHONPATH": str(ROOT)}


def road(output: Path, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | WHERE | {"OUTPUT": str(output), **more}
    command = [ROOT / "launch/effects.sh", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_a_run_that_fails_is_told_with_the_end_of_its_log(tmp_path: Path) -> None:
    ended = road(tmp_path, "run", "some-000", "1", "1", "0", "optim.steps=2")
    assert ended.returncode == 255  # xargs stops
    assert f"some-000 failed; the end of {tmp_path}/logs/some-000.log:" in ended.stdout
    assert "some-000: rows of general arithmetic" in ended.stdout
    assert not list((tmp_path / "done").iterdir())


@pytest.mark.slow
def test_from_nothing_to_one_run_and_its_scores(tmp_path: Path) -> None:
    """The base model is of 250 steps; the rest is small."""
    ended = road(tmp_path, TRY="1", SIZES="--items 2")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "ablation-000: done, 1 runs so far" in ended.stdout
    lines = (tmp_path / "scores/ablation-000.jsonl").read_text().splitlines()
    assert len(lines) == 8
    plans = {
        name: (tmp_path / f"plans/{name}/commands.txt").read_text().splitlines()
        for name in ("ablation", "truth", "history")
    }
    assert {name: len(lines) for name, lines in plans.items()} == {
        "ablation": 12,
        "truth": 24,
        "history": 32,
    }
    words = [shlex.split(line) for lines in plans.values() for line in lines]
    assert len({word[2] for word in words}) == 68
    assert all(word[:2] == ["launch/effects.sh", "run"] for word in words)
