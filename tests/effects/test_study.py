"""The study: sums by hand, and that what is done stays done."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron_ring.effects import paper, simulate, study, study_report
from megatron_ring.effects.baselines import RCTOnly
from megatron_ring.effects.learners import ridge


def record(method: str, seed: int, root_pehe: float, chosen: str = "") -> dict[str, Any]:
    where = {"design": "hidden", "history": "complete", "base": "ridge"}
    more = {"root_pehe": root_pehe, "bias": 0.5, "seconds": 0.1, "chosen": chosen}
    return {**where, "seed": seed, "method": method, **more}


RECORDS = [
    *[record("RCT-only DR", seed, value) for seed, value in enumerate((1.0, 2.0, 3.0))],
    # Paired by seed, whatever the order: differences -1.1, -1, -0.9.
    *[record("CIO, auto", s, v, "x") for s, v in ((2, 2.1), (1, 1.0), (0, -0.1))],
]


def test_means_and_paired_differences_by_hand() -> None:
    """Student's quantile at two degrees of freedom is 4.3027."""
    alone, auto = study_report.lines(RECORDS)
    assert (alone.mean, alone.reach) == (2, pytest.approx(4.3027 / np.sqrt(3), abs=1e-3))
    assert alone.verdict == ""
    assert auto.apart == pytest.approx(-1)
    assert auto.apart_reach == pytest.approx(4.3027 * 0.1 / np.sqrt(3), abs=1e-3)
    assert (auto.verdict, auto.chosen) == ("better", "x 3")
    with pytest.raises(ValueError, match=r"1 draw\(s\): an interval needs 2 at least"):
        study_report.interval([1.0])
    assert study_report.lines(RECORDS[:1]) == []


def test_the_report_in_words() -> None:
    text = study_report.markdown(RECORDS)
    assert "| CIO, auto (x 3) | 1.000 ± 2.733 | -1.000 ± 0.248 | **better** | +0.500 |" in text
    assert "better than RCT-only DR in 1 of 1 cells, worse in 0" in text
    assert "better than naive pooling in 0 of 0 cells" in text  # there is none of it
    assert "| hidden, complete history | 2.00 ± 2.48 | **1.00 ± 2.73** |" in text
    # 5.75 / 9.74, 2.36 / 4.06; of ours there is no such design here.
    assert "| CIO, complete history | 5.75±0.34 (0.59) | – | 2.36±0.48 (0.58) | – | – | – |" in text


def test_ours_beside_the_paper_s_by_hand() -> None:
    cells = {"paper": ("complete", "treated_only", "control_only"), "nsw": ("control_only",)}
    means = {(d, h, "RCT-only T"): 2.0 for d, histories in cells.items() for h in histories}
    autos = {("paper", "complete"): 1.0, ("paper", "treated_only"): 1.5, ("nsw", "control_only"): 3}
    means |= {(*where, "CIO, auto"): value for where, value in autos.items()}
    head, *rows = paper.table("ridge", means)
    assert head == [
        "ridge",
        "simulation, paper",
        "ours",
        "STAR, paper",
        "ours",
        "NSW, paper",
        "ours",
    ]
    by_method = {method: cells for method, *cells in rows}
    assert by_method["RCT-only"][:2] == ["9.74±2.39", "2.00"]
    assert by_method["CIO, complete history"][1::2] == ["1.00 (0.50)", "–", "–"]
    assert by_method["CIO, incomplete history"][1::2] == ["1.50 (0.75)", "–", "3.00 (1.50)"]
    assert by_method["naive pooling"] == [
        "21.43±1.06 (2.20)",
        "–",
        "12.82±3.48 (3.16)",
        "–",
        "15.85±0.32 (6.37)",
        "–",
    ]


def test_a_study_goes_on_where_it_was_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last line cut, a method taken out: only those two are done again, to the same numbers."""
    few = "RCT-only T", "RCT-only DR", "Kallus 2018", "CIO, final X"
    monkeypatch.setattr(study, "METHODS", {name: study.METHODS[name] for name in few})
    asked = dict(seeds=(0, 1), designs=["paper"], bases=["ridge"])
    whole = study.run(tmp_path, **asked)
    assert len(whole) == 2 * (4 + 3 + 3)  # Kallus's needs a complete history
    path = tmp_path / study.DRAWS
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[1:-1]) + "\n" + lines[-1][:40])
    left = list(study.tasks(study.cells(["paper"]), ["ridge"], (0, 1), study.read(path)))
    assert [(t.cell.history, t.seed, t.methods) for t in left] == [
        ("complete", 0, ("RCT-only T",)),
        ("control_only", 1, ("CIO, final X",)),
    ]
    again = study.run(tmp_path, **asked)
    assert sorted(map(key, again)) == sorted(map(key, whole))
    assert len(path.read_text().splitlines()) == len(whole)
    assert all(json.loads(line) for line in path.read_text().splitlines())
    before = path.read_text()
    study.run(tmp_path, **asked)
    assert path.read_text() == before


def key(record: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(value for name, value in record.items() if name != "seconds")


def test_a_record_is_the_distance_from_the_known_effect() -> None:
    cell = study.Cell("hidden", "treated_only")
    found = study.Task(cell, "ridge", 3, ("RCT-only DR",)).run()[0]
    draw = simulate.draw("hidden", "treated_only", 3)
    alone = RCTOnly("dr", ridge(2), ridge(2), e=0.5).fit(draw.y, draw.t, X=draw.x, S=draw.s)
    wrong = alone.effect(draw.test_x) - draw.test_effect
    assert found["root_pehe"] == pytest.approx(np.sqrt(np.mean(wrong**2)))
    assert found["bias"] == pytest.approx(wrong.mean())


def test_processes_find_the_same_as_one(tmp_path: Path) -> None:
    left = [
        study.Task(study.Cell("paper", "complete"), "ridge", s, ("naive pooling",)) for s in (0, 1)
    ]
    one, two = (dict(_by_seed(study._results(left, jobs))) for jobs in (1, 2))
    assert one == two


def _by_seed(results: Any) -> Any:
    return ((task.seed, key(records[0])) for task, records in results)


def test_other_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="bases='tarnet'; it is one of ridge, forest"):
        study.run(tmp_path, bases=["tarnet"])
    with pytest.raises(ValueError, match="designs='ihdp'; it is one of hidden, paper"):
        study.run(tmp_path, designs=["ihdp"])
