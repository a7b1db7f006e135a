"""The benchmark of curation on few records: its rows, and what it writes."""

import json

from typer.testing import CliRunner

from tools import bench_curation


def test_rows_are_repeated_and_differ(tmp_path):
    """Three rows to seven, no two of which share a shingle."""
    given = tmp_path / "given.jsonl"
    rows = [{"q": f"{name} one two three four five", "a": "yes"} for name in "abc"]
    given.write_text("".join(json.dumps(row) + "\n" for row in rows))
    bench_curation.make_rows(tmp_path / "rows.jsonl", given, "q", "a", 7)
    made = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert [row["prompt"] for row in made[:3]] == [row["q"] for row in rows]
    assert made[3]["prompt"] == "a1 one1 two1 three1 four1 five1"
    assert made[6]["prompt"] == "a2 one2 two2 three2 four2 five2"
    assert {row["response"] for row in made} == {"yes"}


def test_table_and_json_agree(tmp_path, monkeypatch):
    monkeypatch.setattr(bench_curation, "time_datatrove", lambda *a: {"datatrove": 2.0})
    done = CliRunner().invoke(
        bench_curation.app, ["--records=40", "--workers=1", f"--json={tmp_path / 'bench.json'}"]
    )
    assert done.exit_code == 0, done.output
    written = json.loads((tmp_path / "bench.json").read_text())
    assert written["records"] == 40
    assert written["seconds"]["datatrove"] == {"1": 2.0}
    assert "2.00  20" in done.output
    steps = [
        f"ours: read, {name}, write" for name in ("nothing", "check_tools", "exact", "minhash")
    ]
    assert list(written["seconds"]) == [*steps, "datatrove"]


def test_files_are_cut_in_order(tmp_path):
    file = tmp_path / "rows"
    file.write_text("".join(f"{n}\n" for n in range(7)))
    assert bench_curation.split_file(file, tmp_path / "parts", 3) == 3
    parts = [path.read_text().split() for path in sorted((tmp_path / "parts").iterdir())]
    assert parts == [["0", "1", "2"], ["3", "4", "5"], ["6"]]
