"""The report's command line: what it writes, and what it says of folders it cannot read."""

import json
from pathlib import Path

import pytest

from tools import bench_report, report


def test_writes_one_page_with_everything_in_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = bench_report.write_run(tmp_path / "run", 30)
    report.main([run], tmp_path / "new/page.html", "A <title>")
    text = (tmp_path / "new/page.html").read_text(encoding="utf-8")
    assert "<title>A &lt;title&gt;</title>" in text
    # Nothing to fetch: the only address in the page's own part is the name of a vocabulary.
    start, end = text.index("</footer>"), text.rindex('"use strict";\n\nconst COLOURS')
    own = (text[:start] + text[end:]).replace("http://www.w3.org/2000/svg", "")
    assert "://" not in own
    assert f"wrote {tmp_path / 'new/page.html'} (" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("tail", "complaint"),
    [
        ("{\n", r"error: .*run.metrics\.jsonl:4: not JSON"),
        ("[]\n", r"error: .*metrics\.jsonl:4: not an object with a whole \"step\""),
    ],
)
def test_a_damaged_line_is_named(tmp_path: Path, tail: str, complaint: str) -> None:
    run = tmp_path / "run"
    run.mkdir()
    lines = [{"step": step, "loss": 1.0} for step in range(3)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + tail)
    with pytest.raises(SystemExit, match=complaint):
        report.main([run], tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


def test_what_is_no_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="error: there is no folder .*nowhere; name the run.dir"):
        report.main([tmp_path / "nowhere"], tmp_path / "page.html")
    with pytest.raises(SystemExit, match="is not the folder of a run: there is no .*metrics.jsonl"):
        report.main([tmp_path], tmp_path / "page.html")


def test_a_planted_secret_is_not_in_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "planted-0123456789abcdef")
    report.main([bench_report.write_run(tmp_path / "run", 30)], tmp_path / "page.html")
    assert "planted-0123456789abcdef" not in (tmp_path / "page.html").read_text()
