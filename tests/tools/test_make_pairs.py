"""tools/make_pairs.py as it is called: what it writes, shows, counts, and how it refuses."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from tools import make_pairs

ROOT = Path(__file__).parents[2]


def call(*arguments: object) -> Result:
    return CliRunner().invoke(make_pairs.app, list(map(str, arguments)))


def said(*arguments: object, status: int = 0) -> str:
    result = call(*arguments)
    assert result.exit_code == status, result.output
    return result.output


def answer(number: int) -> str:
    return f"<think>\nIt is the sum of both.\n</think>\n{number}"


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def chats(tmp_path: Path) -> Path:
    """Twelve sums with their right answers, and a greeting."""

    def turns(question: str, reply: str) -> list[dict]:
        return [{"role": "user", "content": question}, {"role": "assistant", "content": reply}]

    rows = [
        {"id": f"s{n}", "messages": turns(f"{n} + 1", answer(n + 1)), "answer": str(n + 1)}
        for n in range(12)
    ]
    return write(tmp_path / "chats.jsonl", [*rows, {"messages": turns("Hello!", "Hi!")}])


@pytest.fixture
def samples(tmp_path: Path) -> Path:
    """What sample.py says to six of these: the answer to three is right once, to one always."""
    rows = []
    for n in range(6):
        rows.append({"prompt": f"{n} + 1", "answer": answer(n + 1 if n < 4 else 77)})
        rows.append({"prompt": f"{n} + 1", "answer": answer(n + 1 if n == 0 else 99)})
    return write(tmp_path / "said.jsonl", rows)


def test_general(chats: Path, samples: Path, tmp_path: Path) -> None:
    told = said("general", samples, tmp_path / "out", "--of", chats, "--seed", 3, "--take", 4)
    rows = {
        line.split("│")[1].strip(): line.split("│")[2:5]
        for line in told.splitlines()
        if "│" in line
    }
    assert [int(cell) for cell in rows["wrong"]] == [2, 5, 4]
    assert "6 records read, 4 used; left out: " in told
    assert "1 nothing_to_reject" in told and "1 over_quota" in told
    assert f"python tools/pack.py {tmp_path}/out/pack.yaml tokenizer=TOKENIZER" in told
    pairs = lines(tmp_path / "out" / "general.jsonl")
    for pair in pairs:
        number = int(pair["id"].removeprefix("s"))
        assert pair["chosen"] == answer(number + 1)
        assert pair["rejected"] in (answer(77), answer(99))
    told = said("general", samples, tmp_path / "out", "--of", chats, "reference=never", "seed=3")
    assert len(lines(tmp_path / "out" / "general.jsonl")) == 3
    assert json.loads((tmp_path / "out" / "report.json").read_text())["seed"] == 3


def test_structure(chats: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    told = said("structure", chats, out, "--take", 15, "shares={empty: 2, answer_inside: 1}")
    assert "13 records read, 12 used; left out: 1 tags" in told
    assert "structure is short of 3 pairs" in told
    pairs = lines(out / "structure.jsonl")
    assert sum(pair["damage"] == "empty" for pair in pairs) in (7, 8, 9, 10)
    assert {pair["damage"] for pair in pairs} == {"empty", "answer_inside"}


def test_blend_and_its_dry_run(chats: Path, samples: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"output: {tmp_path}/out\n"
        f"general: {{take: 9, sources: [{{path: {samples}, of: {chats}}}]}}\n"
        f"structure: {{take: 6, sources: [{{path: {chats}}}]}}\n"
    )
    told = said("blend", recipe, "general.take=2", "--dry-run")
    assert "nothing was written (--dry-run)" in told and not (tmp_path / "out").exists()
    assert "general, wrong: s" in told and "'99', not '" in told
    for kind in ("missing_open", "missing_close", "redundant", "misplaced", "answer_inside"):
        assert f"structure, {kind}: s" in told
    said("blend", recipe, "general.take=2")
    general, structure = (lines(tmp_path / "out" / f"{n}.jsonl") for n in ("general", "structure"))
    assert (len(general), len(structure)) == (2, 6)
    assert not {pair["id"] for pair in general} & {pair["id"] for pair in structure}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["structure", "CHATS", "OUT", "takes=3"], "unknown config key structure.takes; did you"),
        (["structure", "CHATS", "OUT", "think=allow"], "structure: think=allow: tags are damaged"),
        (["structure", "CHATS", "OUT", "nonsense"], "override 'structure.nonsense' is not of the"),
        (["structure", "none.jsonl", "OUT"], "path=none.jsonl: there is no such file"),
        (["structure", "CHATS", "CHATS"], "chats.jsonl is a file; name a folder"),
        (["structure", "BROKEN", "OUT"], "broken.jsonl:2: not a line of JSON"),
        (["general", "CHATS", "OUT"], "no pair could be made: general: {'no_candidates': 13}"),
        (["blend", "none.yaml"], "there is no config file none.yaml"),
        (["blend", "output=OUT"], "there is nothing to make; give general, structure or both"),
    ],
)
def test_errors(chats: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
    broken = write(tmp_path / "broken.jsonl", lines(chats)[:1])
    broken.write_text(broken.read_text() + "{\n")
    names = {"CHATS": str(chats), "BROKEN": str(broken), "OUT": str(tmp_path / "out")}
    given = [names.get(one, one.replace("OUT", names["OUT"])) for one in arguments]
    told = said(*given, status=1)
    assert told.startswith("error: ") and message in told
    assert not (tmp_path / "out").exists()


def test_help_and_keys() -> None:
    told = said("--help")
    assert "    python tools/make_pairs.py general SAMPLES.jsonl OUT [--of CHATS" in told
    told = said("keys")
    assert "general.longer_ratio [1.5]" in told and "general.overlap.words [4]" in told
    assert "structure.take" in told and "  when_short [fill]" in told


def test_as_a_program(chats: Path, tmp_path: Path) -> None:
    command = [sys.executable, "tools/make_pairs.py", "structure", str(chats), str(tmp_path / "o")]
    done = subprocess.run(command, cwd=ROOT, env={"PYTHONPATH": str(ROOT)}, capture_output=True)
    assert done.returncode == 0 and b"12 used" in done.stdout
    done = subprocess.run(
        [*command, "seed=-1"], cwd=ROOT, env={"PYTHONPATH": str(ROOT)}, capture_output=True
    )
    assert done.returncode == 1
    assert done.stdout == b"error: seed=-1: input should be greater than or equal to 0\n"
