"""The loss plot: its colours, the mean by hand, and files that cannot be read."""

import json
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from matplotlib.axes import Axes

from tools import plot_loss

LINES = [
    {"step": 0, "valid_loss": 8.0},
    {"step": 1, "loss": 7.0, "lr": 0.1},
    {"step": 2, "loss": 5.0, "lr": 0.2},
    {"step": 2, "valid_loss": 4.5},
    {"step": 3, "loss": 3.0, "lr": 0.1},
]


def write(run: Path, lines: list[dict[str, float]], tail: str = "") -> Path:
    run.mkdir()
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (run / "metrics.jsonl").write_text(text + tail)
    return run


def test_a_loss_that_is_not_finite_spoils_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 20 steps the fifth is nan: its place is empty, the mean of the last ten is that of ten."""
    lines = [{"step": s, "loss": float("nan") if s == 5 else 2.0, "lr": 0.1} for s in range(1, 21)]
    drawn = []
    monkeypatch.setattr(Axes, "plot", lambda axes, *curve, **style: drawn.append(curve[1]))
    plot_loss.plot({"run": lines}, tmp_path / "loss.png")
    faint, mean, _lr = (np.array(values) for values in drawn)
    assert np.isnan(faint).tolist() == np.isnan(mean).tolist() == [s == 5 for s in range(1, 21)]
    assert plot_loss.summary(lines) == "20 steps, training loss 2.000 -> 2.000"


def test_summary_by_hand() -> None:
    assert (
        plot_loss.summary(LINES) == "3 steps, training loss 7.000 -> 5.000, held out 8.000 -> 4.500"
    )
    with pytest.raises(ValueError, match='there is no line with a "loss" yet'):
        plot_loss.summary([{"step": 0, "valid_loss": 8.0}])


def test_draws_each_run_in_its_colour(tmp_path: Path) -> None:
    runs = [write(tmp_path / name, LINES) for name in "ab"]
    plot_loss.main(runs, tmp_path / "both.png")
    plot_loss.main(runs[:1])
    blue, orange = (31, 119, 180), (255, 127, 14)
    for file, expected in ((tmp_path / "both.png", True), (runs[0] / "loss.png", False)):
        pixels = (matplotlib.image.imread(file)[..., :3] * 255).round().reshape(-1, 3)
        assert (pixels == np.array(blue)).all(1).any()
        assert (pixels == np.array(orange)).all(1).any() == expected


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"there is no folder .*nowhere"):
        plot_loss.main([tmp_path / "nowhere"])
    run = write(tmp_path / "run", LINES, tail="{\n")
    with pytest.raises(SystemExit, match=r"metrics\.jsonl:6: not JSON"):
        plot_loss.main([run])
    with pytest.raises(SystemExit, match=r"empty: there is no line with a \"loss\" yet"):
        plot_loss.main([write(tmp_path / "empty", [])])
