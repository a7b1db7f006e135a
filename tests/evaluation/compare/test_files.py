"""What a comparison leaves: Markdown, lines of changed items, a real offline run of wandb."""

import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from megatron_ring.curation.shards import read_lines
from megatron_ring.evaluation.compare import console, reading, tables, wandb_tables, words, writing
from megatron_ring.evaluation.compare.cells import Frame
from megatron_ring.evaluation.compare.markdown import escaped, markdown
from megatron_ring.evaluation.run import Teller
from tests.test_trackers import wandb_log, written

Made = tuple[dict[str, Any], list[dict[str, Any]], Path]


def compared(folders: dict[str, list[Path]]) -> tuple[Frame, dict[str, Any]]:
    frame = Frame(reading.read(folders), reading.baselines(list(folders), "previous"))
    return frame, tables.build(frame, Teller())


@pytest.fixture(scope="module")
def made(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("made") / "tables"
    frame, told = compared({name: [runs / name] for name in ("base", "sft", "dpo")})
    return told, writing.write(frame, told, folder, 1), folder


def test_words() -> None:
    assert [words.signed(x) for x in (0.0312, -0.004, 0.0001, -0.0001)] == [
        *("+3.1", "-0.4", "0.0", "0.0")
    ]
    delta = {"value": 0.031, "low": 0.004, "high": 0.058, "sure": True}
    assert words.delta_text(delta) == "+3.1 (+0.4 to +5.8) ▲"
    down = {"value": -0.031, "low": -0.058, "high": -0.004, "sure": True}
    assert words.delta_text(down) == "-3.1 (-5.8 to -0.4) ▼"
    assert words.delta_text(delta | {"sure": False}) == "+3.1 (+0.4 to +5.8)"
    assert [words.p_text(p) for p in (1.0, 0.046, 0.0046, 0.00004)] == [
        *("1.00", "0.05", "0.0046", "< 0.0001")
    ]
    assert words.spread_text({"seeds": [0.5, 0.25, 0.4]}) == "3 seeds: 25.0 to 50.0"


def test_markdown_by_hand(made: Made) -> None:
    told, _, folder = made
    text = (folder / "tables.md").read_text()
    assert text == markdown(told)
    lines = text.splitlines()
    assert "| benchmark | of | base | sft (Δ to base) | dpo (Δ to sft) |" in lines
    row = next(line for line in lines if line.startswith("| GSM8K | 8 items |"))
    assert row == (
        "| GSM8K | 8 items | **37.5** (13.7 to 69.4)<br>5 tokens | **75.0** (40.9 to 92.9)<br>"
        "+37.5 (-24.7 to +99.7)<br>5 tokens | **75.0** (40.9 to 92.9)<br>0.0 (-44.7 to +44.7)<br>"
        "5 tokens |"
    )
    assert any(line.startswith("| **Mean** | 3 benchmarks | **45.8** (") for line in lines)
    assert "| any error | **13.3** (3.7 to 37.9)<br>2 of 15 | **6.2** (1.1 to 28.3)<br>" in text
    assert "| GSM8K | 4 | 1 | 2 | 1 | 0.38 | 2, 3, 5, 6 | 1 |" in lines
    assert "### MATH-500, by level" in lines
    assert any(
        line.startswith("| 2 | 2 items | **0.0** (0.0 to 65.8); tags 0.0 |") for line in lines
    )
    assert told["table2"]["caption"] in text and told["items"]["caption"] in text
    columns = {line.count("|") for line in lines if line.startswith("| ") and "Δ" in line}
    assert columns <= {5, 6}


def test_every_line_of_a_table_has_its_cells(made: Made) -> None:
    """Names of items and columns may hold what Markdown knows."""
    told = json.loads(json.dumps(made[0]))
    told["columns"][0]["name"] = "a|b*c_d <i>"
    told["items"]["pairs"][0]["tasks"][0]["won"] = ["x|y"] * 12
    text = markdown(told)
    assert "a\\|b\\*c\\_d &lt;i>" in text and "x\\|y, … 4 more" in text
    block: set[int] = set()
    for line in [*text.splitlines(), ""]:
        if line.startswith("|"):
            block.add(line.replace("\\|", "").count("|"))
        else:
            assert len(block) < 2, line
            block = set()
    assert escaped("a\nb\\") == "a b\\\\"


def test_marks_of_what_is_sure(runs: Path) -> None:
    """A column against itself with all answers right in one: 3 of 4 won, then a sure rise."""
    frame, told = compared({"base": [runs / "base"], "sft": [runs / "sft"]})
    delta = told["table2"]["rows"][1]["cells"][1]["delta"]
    delta |= {"low": 0.01, "sure": True}
    assert "<br>+37.5 (+1.0 to +99.7) ▲<br>" in markdown(told)


def test_numbers_and_changed_items(made: Made) -> None:
    told, shown, folder = made
    assert json.loads((folder / "tables.json").read_text()) == told
    lines = list(read_lines(folder / "changed.jsonl"))
    of = [(*line["columns"], line["task"], line["outcome"]) for line in lines]
    # By DOES: base to sft wins 2 of math500, 4 of gsm8k, none of mmlu.
    assert of.count(("base", "sft", "math500", "won")) == 2
    assert of.count(("base", "sft", "gsm8k", "won")) == 4
    assert of.count(("base", "sft", "gsm8k", "lost")) == 1
    assert of.count(("base", "sft", "mmlu", "lost")) == 2
    assert of.count(("sft", "dpo", "mmlu", "won")) == 2
    assert len(of) == 2 + 4 + 1 + 2 + (1 + 1) + (1 + 1) + 2
    assert [(*line["columns"], line["task"], line["outcome"]) for line in shown] == list(
        dict.fromkeys(of)
    )
    assert all(line["one"]["text"] and line["other"]["text"] for line in lines)


def test_long_answers_are_cut_where_they_are_shown(runs: Path, tmp_path: Path) -> None:
    long = shutil.copytree(runs / "sft", tmp_path / "long")
    path = long / "samples/gsm8k.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[2]["text"] += " and" * 2000
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    frame, told = compared({"base": [runs / "base"], "sft": [long]})
    shown = writing.write(frame, told, tmp_path / "out", 9)
    (cut,) = [one for one in shown if (one["task"], one["id"]) == ("gsm8k", "2")]
    length = len(lines[2]["text"])
    assert cut["other"]["text"] == lines[2]["text"][:4000] + f" ... ({length:,} characters)"
    kept = {(one["task"], one["id"]): one for one in read_lines(tmp_path / "out/changed.jsonl")}
    assert kept["gsm8k", "2"]["other"]["text"] == lines[2]["text"]


def test_the_console_shows_the_same(made: Made) -> None:
    told = json.loads(json.dumps(made[0]))
    told["notes"] = ["[bold]base[/] has no MMLU."]
    told["table2"]["rows"][0]["cells"][0] = None
    out = Console(file=io.StringIO(), width=140)
    console.show(out, told)
    said = out.file.getvalue()
    assert "Table 2: scores, in per cent" in said and "Table 3: think-tag errors" in said
    assert "75.0  +37.5" in said and "-24.7 to +99.7" in said and "2 of 15" in said
    assert "From base to sft" in said and re.search("│ MATH-500 +│ — ", said)
    assert "note: [bold]base[/] has no MMLU." in said


def test_wandb_offline_for_real(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own messages and files hold the tables and the single numbers."""
    told, shown, _ = made
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    files = wandb_tables.publish(told, shown, "tests", tmp_path, has_login=False)
    ((_, settings, history),) = written(tmp_path, lambda runs: runs and runs[0][2])
    assert settings["against"] == [None, "base", "sft"] and settings["unit"] == "items"
    logged = {key.split(".")[0] for key in history[0]}
    assert logged >= {"table2", "table3", "topics", "won_and_lost", "answers"}
    tables_of = {path.name.split("_0_")[0]: path for path in files.rglob("*.table.json")}
    table = json.loads(tables_of["table2"].read_text())
    assert table["columns"] == list(wandb_tables.HEADS)
    rows = {
        (row[0], row[2]): dict(zip(table["columns"], row, strict=True)) for row in table["data"]
    }
    assert len(rows) == 6 * 3
    sft = rows["gsm8k", "sft"]
    assert (sft["baseline"], sft["value"], sft["delta"], sft["sure"]) == (
        "base",
        0.75,
        0.375,
        False,
    )
    assert rows["gsm8k", "base"]["delta"] is None and sft["seeds"] == 1
    tags = json.loads(tables_of["table3"].read_text())["data"]
    assert ["all", "any error", "base"] in [row[:3] for row in tags]
    changes = json.loads(tables_of["won_and_lost"].read_text())["data"]
    assert ["base", "sft", "gsm8k", "GSM8K", 4, 1, 2, 1, 0.375] in changes
    answers = json.loads(tables_of["answers"].read_text())["data"]
    assert len(answers) == len(shown) and answers[0][6].startswith("<think>")
    (log,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    numbers = {}
    for record in wandb_log(log):
        for item in record.summary.update if record.HasField("summary") else ():
            numbers["/".join(item.nested_key) or item.key] = json.loads(item.value_json)
    assert numbers["score/sft/gsm8k"] == 0.75
    assert numbers["tag_errors/base/any_error"] == pytest.approx(2 / 15)
