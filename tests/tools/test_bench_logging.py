"""The benchmark of logging: what it switches off and on, and the figure it prints."""

import re

from tests import ranks
from tests.runs import GOLDEN
from tests.tools.test_bench_checkpoint import empty_yaml  # noqa: F401
from tools import bench_logging


def measured(packed, yaml):
    import contextlib
    import io

    import torch

    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        overrides = [f"model.hf_config={GOLDEN}", "data.rows_per_step=2"]
        bench_logging.main(str(packed), overrides, yaml, steps=3)
    return torch.tensor(list(said.getvalue().encode()), dtype=torch.uint8)


def test_one_step_in_two_is_logged(packed, tmp_path, empty_yaml):  # noqa: F811
    """Two warm up, three of each kind are measured; five are logged."""
    (said,) = ranks.run(1, measured, packed, empty_yaml[1], folder=tmp_path / "ranks")
    said = bytes(said.tolist()).decode()
    assert re.search(r"3 steps of \d+\.\d ms; logging adds -?\d+\.\d\d ms a step", said)
    assert len(re.findall(r"  loss \d", said)) == 5


def test_by_hand(capsys):
    """Pairs of (1, 1.02), (3, 3.04), (2, 2.02) s: the median difference is 20 ms, 1 % of 2 s."""
    bench_logging.say([1.0, 3.0, 2.0], [1.02, 3.04, 2.02])
    assert "logging adds 20.00 ms a step" in (said := capsys.readouterr().out)
    assert said.endswith(": 1.00%\n")
