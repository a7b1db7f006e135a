"""tools/fingerprint.py and tools/check_contamination.py, on files and on a packed folder."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

ROOT = Path(__file__).parents[2]
FROG = (
    "A frog sits on the lowest of 31 lilies in a pond and leaps over 4 lilies at a time. How many?"
)
LAMPS = "Seven lamps in a row are switched on and off by 12 children who walk past them twice."


def tool(name: str, *arguments: Any) -> tuple[int, str]:
    command = [sys.executable, ROOT / "tools" / f"{name}.py", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    return done.returncode, done.stdout + done.stderr


@pytest.fixture
def gate(tmp_path: Path) -> list[Any]:
    """Options of the gate, with a fingerprint built by the tool."""
    source = tmp_path / "own.jsonl"
    source.write_text(json.dumps({"n": "p7", "q": FROG}) + "\n")
    options = ["--column", "q", "--id-column", "n", "--output", tmp_path / "fp"]
    options += ["--salt", tmp_path / "salt"]
    status, said = tool("fingerprint", "build", "own", source, *options)
    assert status == 0, said
    assert "a new salt; all fingerprints used together need it" in said
    assert "own, 1 items" in said and "0 are short" in said
    status, said = tool("fingerprint", "build", "own", source, *options, "--background", source)
    assert status == 0 and "a new salt" not in said
    return ["--fingerprint", tmp_path / "fp", "--salt", tmp_path / "salt"]


def chat(text: str) -> dict[str, Any]:
    return {"id": "r9", "messages": [{"role": "user", "content": text}]}


def test_the_gate_on_files(tmp_path: Path, gate: list[Any]) -> None:
    folder = tmp_path / "out"
    (folder / "rejected").mkdir(parents=True)
    clean, bad = json.dumps(chat(LAMPS)), json.dumps(chat(f"Please: {FROG}"))
    (folder / "a.jsonl").write_text(clean + "\n")
    (folder / "report.json").write_text('{"cells": [1]}')  # one object, as mix writes it
    (folder / "rejected" / "a.jsonl").write_text(bad + "\n")  # not trained on
    (folder / "work").mkdir()
    (folder / "work" / "a.jsonl").write_text(bad + '\n["id", 1]\n')  # nor this
    status, said = tool("check_contamination", folder, *gate)
    assert (status, said) == (0, "3 texts checked, 0 findings\n")
    pq.write_table(pa.Table.from_pylist([chat(LAMPS), chat(FROG)]), folder / "b.parquet")
    status, said = tool("check_contamination", folder, *gate)
    found, last = said.splitlines()
    assert status == 1 and last == "9 texts checked, 1 findings"
    assert found.startswith(f"{folder / 'b.parquet'}:r9: own item p7, n-grams 1.00: A frog sits on")
    (folder / "c.jsonl").write_text(bad + "\n")
    status, said = tool("check_contamination", folder, *gate, "--show", 1)
    assert status == 1 and "… and 1 more (--show)" in said and "12 texts checked, 2" in said


def test_the_gate_says_when_it_checked_nothing(tmp_path: Path, gate: list[Any]) -> None:
    (tmp_path / "empty").mkdir()
    status, said = tool("check_contamination", tmp_path / "empty", *gate)
    assert status == 2 and "nothing was checked" in said
    status, said = tool("check_contamination", tmp_path / "gone.jsonl", *gate)
    assert status == 2 and "gone.jsonl: cannot be read" in said


def test_the_gate_on_a_packed_folder(tmp_path: Path, gate: list[Any]) -> None:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({piece: i for i, piece in enumerate(alphabet)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken("<|end|>", special=True)])
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    made.save(str(folder / "tokenizer.json"))
    template = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}\n{% endfor %}"
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|end|>"}
    config |= {"pad_token": "<|end|>", "chat_template": template}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    for name, text in (("clean", LAMPS), ("bad", FROG)):
        turns = [{"role": "user", "content": text}, {"role": "assistant", "content": "8"}]
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"id": name, "messages": turns}))
    packed = tmp_path / "packed"
    sources = ",".join(f"{{path: {tmp_path / name}.jsonl}}" for name in ("clean", "bad"))
    options = [f"tokenizer={folder}", f"output={packed}", "row_tokens=512"]
    status, said = tool("pack", *options, f"sources=[{sources}]")
    assert status == 0, said
    status, said = tool("check_contamination", packed, *gate)
    found, last = said.splitlines()
    assert (status, last) == (1, "2 texts checked, 1 findings")
    assert found.startswith(f"{packed}: bad ") and "own item p7, n-grams 1.00: A frog" in found


def test_a_background_that_holds_the_benchmark_is_told(tmp_path: Path, gate: list[Any]) -> None:
    background = tmp_path / "background.jsonl"
    background.write_text((json.dumps({"text": FROG}) + "\n") * 3)
    options = ["--column", "q", "--output", tmp_path / "fp", "--salt", tmp_path / "salt"]
    options += ["--background", background]
    status, said = tool("fingerprint", "build", "own", tmp_path / "own.jsonl", *options)
    assert status == 0 and "is the benchmark in it? 0" in said
    status, said = tool("fingerprint", "show", tmp_path / "fp")
    assert json.loads(said)["name"] == "own" and json.loads(said)["items"] == 1
    status, said = tool("fingerprint", "show", background)
    assert status == 1 and "no fingerprint of a benchmark" in said
