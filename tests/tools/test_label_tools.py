"""Training and measuring the labeller: on data small enough to know what must come out."""

import json
import re
from pathlib import Path

import pytest

from megatron_ring.curation.label.model import load_labeller
from megatron_ring.curation.label.scores import descend, heads_of
from megatron_ring.curation.taxonomy import load_taxonomy
from tools import measure_taxonomy, train_labeller

TAXONOMY = """
version: 1
classes:
  - {clc: O, id: o, en: O, zh: 数, into: [math, physics]}
  - {clc: Q, id: biology, en: Biology, zh: 生物, words: [leaf]}
domains:
  - {id: math, en: Mathematics, zh: 数学, words: [number]}
  - {id: physics, en: Physics, zh: 物理, words: [force]}
"""
TABLE = """
trainable: [MIT]
licences: {}
sources:
  - name: free
    family: one
    licence: MIT
    files: [free.jsonl]
    text: q
    by: s
    paths: {m: math, p: physics, b: biology}
  - {name: bound, family: two, licence: secret, files: [bound.jsonl], text: q, path: math}
"""


def data(folder: Path) -> Path:
    words = {"m": "integral prime root", "p": "torque orbit lens", "b": "petal gene cell"}
    lines = [
        {"q": f"{word} {i} and {a}", "s": subject}
        for subject, of_it in words.items()
        for i, word in enumerate(of_it.split() * 8)
        for a in "xyz"
    ]
    (folder / "free.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    bound = [{"q": f"secret torque {i}"} for i in range(30)]
    (folder / "bound.jsonl").write_text("\n".join(map(json.dumps, bound)), encoding="utf-8")
    for name, text in (("taxonomy", TAXONOMY), ("table", TABLE), ("seeds", "math: [sum]")):
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
    return folder


def train(folder: Path, output: Path, **options: object) -> None:
    own = {"taxonomy": folder / "taxonomy.yaml", "table": folder / "table.yaml"}
    train_labeller.main(
        **{"data": folder, "seeds": folder / "seeds.yaml", "cap": 400, "keep": 0.1} | own | options,
        output=output,
    )


def test_training_uses_what_the_licence_allows_and_repeats(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = data(tmp_path)
    train(folder, folder / "a.npz")
    said = capsys.readouterr().out
    assert re.search(r"free: 1\d\d\n", said) and "bound" not in said
    train(folder, folder / "b.npz")
    assert (folder / "a.npz").read_bytes() == (folder / "b.npz").read_bytes()
    labeller = load_labeller(folder / "a.npz", heads_of(load_taxonomy(folder / "taxonomy.yaml")))
    # Had the rows that are not free been used, torque would be mathematics.
    for text, path in (("torque", "physics"), ("a gene", "biology"), ("prime root", "math")):
        assert descend(labeller, text)[0].path == path
    train(folder, folder / "c.npz", data=None)
    said = capsys.readouterr().out
    assert "from 7 texts" in said  # one seed; three lists of words, each whole and by three


def test_measuring_prints_every_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = data(tmp_path)
    measure_taxonomy.main(folder, embedding_model=None, mapping=folder / "table.yaml", cap=400)
    said = capsys.readouterr().out
    heads = re.findall(r"^##+ (.*)$", said, re.MULTILINE)
    assert heads == [
        "Rows",
        "Accuracy, %",
        "Accuracy by source, %: domain / level / topic",
        "Confusions of the shipped labeller",
        "Domains",
        "Levels",
        "Topics most often taken for others",
        "Confidence in the whole path: shipped labeller, sources it knows",
        "Confidence in the whole path: source left out",
        "Rules",
        "The whole stage, by threshold: how much it claims, and how much of that is right",
    ]
    line = re.search(r"^\| domain \|(.*)\|$", said, re.MULTILINE)[1]
    count, _shipped, own, left_out, _texts, most = (float(cell) for cell in line.split("|"))
    # Words of each subject are its own, so that a labeller that saw them is always right; without
    # their family it is not. Most rows by far that are tested are of math: the second source.
    assert own == 100.0 and left_out < 70 and 33 < most < 60
    tested = re.findall(r"^\| (?:free|bound) \|.*\| (\d+) \|$", said, re.MULTILINE)
    assert count == sum(map(int, tested))
