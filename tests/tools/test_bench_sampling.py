"""bench_sampling.py on a tiny model: what it counts, and that both ways say the same."""

import re

import pytest

from tests.model.layouts import GOLDEN
from tools import bench_sampling

TINY = GOLDEN / "ling_lite_tiny"


def test_both_ways_are_timed_and_their_ratio_is_theirs(capsys):
    bench_sampling.main(str(TINY), ["run.dtype=fp32"], 3, 40, 30)
    first, *timed, last = capsys.readouterr().out.splitlines()
    assert first == "tp 1 pp 1 cp 1 ep 1 dp 1; 3 answers, 90 tokens in all"
    seconds = []
    for line, name in zip(timed, ("kept", "read again"), strict=True):
        found = re.fullmatch(rf"{name} +([\d.]+) s +([\d.]+) tokens/s", line)
        seconds.append(float(found[1]))
        assert float(found[2]) * seconds[-1] == pytest.approx(90, rel=0.2)
    found = re.fullmatch(r"ratio +([\d.]+) +3 of 3 answers equal", last)
    assert float(found[1]) == pytest.approx(seconds[1] / seconds[0], rel=0.2)


def test_more_than_the_models_positions_are_refused():
    with pytest.raises(SystemExit) as end:
        bench_sampling.main(str(TINY), [], 1, 500, 20)
    assert end.value.code == (
        "error: --prompt-tokens 500 and --max-tokens 20 are more than the model's 512 positions; "
        "lower one"
    )
