"""tools/measure_purification.py on three made-up solutions, one of them spoilt."""

import json
import random
from pathlib import Path

import pytest

from megatron_ring.config.curation.purify import PurifyConfig
from megatron_ring.curation.purify import Purify
from tools.measure_purification import clean_records, damaged, false_alarms


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rows = {
        "gsm8k/train.jsonl": [{"question": "1 + 1?", "answer": "1 + 1 = <<1+1=2>>2.\n#### 2"}],
        "gsm8k/test.jsonl": [{"question": "2 + 1?", "answer": "Two plus one makes the"}],
        "math_hendrycks_test5000/math_test_5000.jsonl": [
            {"problem": "Draw a line.", "solution": "[asy]\ndraw(A--B);\n[/asy]\nIt is $AB$."},
        ],
    }
    for name, lines in rows.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path


def test_false_alarms_are_counted_and_shown(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    false_alarms(Purify(PurifyConfig()), list(clean_records(folder)))
    assert capsys.readouterr().out.splitlines() == [
        "clean solutions: 3; dropped 2, by rule {'truncation_ending': 1, 'figures_drawn': 1}",
        "false alarms: 1 = 33.333%",
        "  without GSM8K's test: 0 of 2 = 0.000%",
        "    gsm8k/test.jsonl/0: truncation_ending: "
        "the last word must go on: 'Two plus one makes the'",
    ]


def test_damage_of_each_kind() -> None:
    formula = "\\left( \\frac{1}{x^2} \\right)"
    got = {kind_text for seed in range(200) if (kind_text := damaged(formula, random.Random(seed)))}
    assert ("right", "\\left( \\frac{1}{x^2} ") in got
    assert ("script", "\\left( \\frac{1}{x^2^2} \\right)") in got
    assert ("brace", "\\left( \\frac1}{x^2} \\right)") in got
    assert ("name", "\\left( \\farc{1}{x^2} \\right)") in got
    assert damaged("x", random.Random(0)) is None
