"""tools/pack.py and tools/show_rows.py, as they are called."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from megatron_ring.data.rows import Rows
from tools import pack, show_rows

ROOT = Path(__file__).parents[2]


@pytest.fixture
def arguments(tmp_path, ling_folder, monkeypatch):
    """What packs forty short chats, twenty of them from a plain-text file."""
    monkeypatch.setenv("COLUMNS", "100")
    turns = [{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "two"}]
    chats = [json.dumps({"messages": turns})] * 20
    (tmp_path / "chats.jsonl").write_text("\n".join(chats))
    (tmp_path / "plain.jsonl").write_text('{"q": "3-2?", "a": "one"}\n' * 20)
    (tmp_path / "data.yaml").write_text(
        f"sources: [{{path: {tmp_path}/chats.jsonl}}]\nrow_tokens: 192\n"
    )
    plain = f"{{path: {tmp_path}/plain.jsonl, prompt: q, response: a}}"
    return [
        str(tmp_path / "data.yaml"),
        f"tokenizer={ling_folder}",
        f"output={tmp_path / 'packed'}",
        f"sources=[{{path: {tmp_path}/chats.jsonl}}, {plain}]",
    ]


def test_pack_writes_a_folder_and_says_so(arguments, tmp_path, capsys):
    """A chat is 19 + 4 + 3 = 26 tokens; seven of them fill a row of 192 but for ten tokens."""
    assert pack.main(arguments) == 0
    rows = Rows.open(tmp_path / "packed")
    assert (rows.num_rows, rows.row(0).num_tokens) == (6, 182)
    printed = " ".join(capsys.readouterr().out.split())
    assert "rows 6 of 192 tokens (epochs: 6)" in printed
    assert "chats 1 20 0 520 15.4% 20" in printed
    assert "16 to 31 40 ████" in printed
    assert f"python tools/show_rows.py {tmp_path / 'packed'}" in printed


def test_dry_run_shows_the_first_samples_and_writes_nothing(arguments, tmp_path, capsys):
    assert pack.main([*arguments, "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert '"row_tokens": 192' in printed
    assert "<role>HUMAN</role>3-2?<role>ASSISTANT</role>one<|endoftext|>" in printed
    assert "26 tokens, 15% learnt (green)" in printed
    assert not (tmp_path / "packed").exists()


def test_pack_prints_errors_without_a_traceback(arguments, tmp_path, capsys):
    with open(tmp_path / "chats.jsonl", "a") as file:
        file.write('\n{"messages": [')
    assert pack.main(arguments) == 1
    assert f"error: {tmp_path}/chats.jsonl:21: not JSON: " in capsys.readouterr().out
    assert pack.main([*arguments, "row_token=5"]) == 1
    assert "unknown config key row_token; did you mean row_tokens?" in capsys.readouterr().out


def test_help_teaches(capsys):
    assert pack.main(["--help"]) == 0
    printed = capsys.readouterr().out
    assert "python tools/pack.py tokenizer=tok.model output=packed" in printed
    assert "sources.N.weight [1.0]  times each sample is seen an epoch" in printed


@pytest.fixture
def packed(arguments, tmp_path):
    assert pack.main(arguments) == 0
    return str(tmp_path / "packed")


def show(*arguments):
    return CliRunner().invoke(show_rows.app, arguments)


def test_show_rows_marks_targets_segments_and_padding(packed):
    result = show(packed, "--plain", "--documents", "2")
    assert result.exit_code == 0
    head, title, text, *rest = result.output.splitlines()
    assert head == ("row 0 of 6: 7 documents, 182 of 192 tokens (94.8%), 28 learnt (15.4%)")
    assert title.startswith("── document 0: ") and title.endswith(": 26 tokens from 0")
    assert text in (
        "<role>HUMAN</role>1+1?<role>ASSISTANT</role>[[two<|endoftext|>]]",
        "<role>HUMAN</role>3-2?<role>ASSISTANT</role>[[one<|endoftext|>]]",
    )
    assert rest[2:] == [
        "… and 5 documents (--documents 0)",
        "── padding: 10 tokens in 1 segments of at most 10",
    ]


def test_show_rows_of_one_source_in_colour(packed):
    shown = [show(packed, "--row", str(row), "--source", "plain").output for row in range(6)]
    assert "\x1b[1;32mone<|endoftext|>\x1b[0m" in "".join(shown)
    assert "two" not in "".join(shown)


def test_show_rows_says_what_is_wrong(packed, tmp_path):
    wrong = {
        (packed, "--row", "6"): "error: row 6 is outside the plan of 6 rows (0 first)",
        (packed, "--source", "x"): "error: no source 'x'; there are chats, plain",
        (str(tmp_path / "no"),): f"error: {tmp_path / 'no'} is not a packed folder",
    }
    for arguments, message in wrong.items():
        result = show(*arguments, "--plain")
        assert result.exit_code == 1
        assert message in result.output


@pytest.mark.slow  # starts a second program
def test_killed_in_the_middle_nothing_is_there_and_packing_again_works(arguments, tmp_path):
    with open(tmp_path / "chats.jsonl", "a") as file:
        file.write(("\n" + (tmp_path / "chats.jsonl").read_text()) * 5000)
    command = [sys.executable, "tools/pack.py", *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    program = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
    while not list(tmp_path.glob("packed.tmp-*/documents.arrow")):
        assert program.poll() is None, "packing ended before it could be killed"
        time.sleep(0.02)
    program.send_signal(signal.SIGKILL)
    program.wait()
    assert not (tmp_path / "packed").exists()
    (tmp_path / "chats.jsonl").write_text("")
    assert pack.main(arguments) == 0
    Rows.open(tmp_path / "packed").verify()
