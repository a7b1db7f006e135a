"""The report: what it says of two small data sets, that it needs no network, its errors."""

import json
import re
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

from megatron_ring.config import ConfigError
from tools import taxonomy_report

MATH = {"domain": "math", "level": "high_school", "topic": "sequences"}
CODE = {"domain": "code", "topic": "generation"}


def write(file: Path, *records: dict[str, str]) -> Path:
    file.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return file


def run(data: list[Path], output: Path, capsys: pytest.CaptureFixture[str], **more: object) -> str:
    taxonomy_report.main(data, output, **{"targets": None, "shown": 10} | more)
    return capsys.readouterr().out


def test_one_data_set_against_the_shares_of_the_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write(tmp_path / "ours.jsonl", *[MATH] * 9, CODE)
    said = run([data], tmp_path / "r.html", capsys)
    assert "in short supply, against the shares of the Ring-Lite-Distill report:" in said
    # (0.061 * 10 - 0) / (1 - 0.061) = 0.65 records of STEM; of levels, high school is enough.
    assert "all: STEM: 0 records, 0.00 % of a wanted 6.10 %; to add: 1\n" in said
    assert "math: junior_high: 0 records" in said and "high_school:" not in said
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "What the data are about: ours" in page
    assert "<th>math</th><th>junior_high</th>" not in page  # names, not ids
    assert "<th>math</th><th>Junior high school</th><td>0</td><td>0.00</td><td>15.84</td>" in page
    own = page.partition("</script>")[2]  # without the library
    assert not re.search(r"""(?:src|href)=["']?(?!data:)\w""", own)
    pixels = matplotlib.image.imread(tmp_path / "r.png")[..., :3].reshape(-1, 3)
    blue = np.array([0x2F, 0x6F, 0xBF]) / 255
    assert (np.abs(pixels - blue).max(1) < 0.01).sum() > 1000


def test_two_data_sets_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = write(tmp_path / "a<b.jsonl", *[MATH] * 3, CODE)
    other = write(tmp_path / "other.jsonl", MATH, *[CODE] * 3)
    said = run([one, other], tmp_path / "r.html", capsys)
    assert "in short supply, against other:" in said
    # One of four is wanted three of four: (3 - 1) / (1 - 0.75) = 8.
    assert "all: code: 1 records, 25.00 % of a wanted 75.00 %; to add: 8\n" in said
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "a&lt;b" in page and "a<b" not in page.partition("</script>")[2].split("<script")[0]
    assert "<th>all</th><th>Code</th><td>25.00</td><td>75.00</td><td>+50.00</td>" in page


def test_targets_of_a_user(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write(tmp_path / "ours.jsonl", *[MATH] * 9, CODE)
    targets = tmp_path / "t.yaml"
    targets.write_text("shares: {all: {code: 50}}")
    said = run([data], tmp_path / "r.html", capsys, targets=targets)
    assert said.endswith("all: code: 1 records, 10.00 % of a wanted 50.00 %; to add: 8\n")


def test_errors_of_the_caller(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write(tmp_path / "ours.jsonl", MATH)
    with pytest.raises(ConfigError, match="3 data sets; give one, or two to compare"):
        run([data] * 3, tmp_path / "r.html", capsys)
    with pytest.raises(ConfigError, match="r.html: there is no folder .*nowhere"):
        run([data], tmp_path / "nowhere" / "r.html", capsys)
    with pytest.raises(ConfigError, match="r.png: wants a name that ends in .html"):
        run([data], tmp_path / "r.png", capsys)
    with pytest.raises(ConfigError, match="none has no records"):
        run([write(tmp_path / "none.jsonl")], tmp_path / "r.html", capsys)
