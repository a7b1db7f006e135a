"""chat.py from a pipe against the plain reference, and what is shown of an answer that grows."""

import io
import json
import re
import sys

import pytest
import torch

from megatron_ring import config
from megatron_ring.convert import reference
from megatron_ring.convert.sources import HFFolder
from megatron_ring.data.tokenizer import load_tokenizer
from tests import ranks
from tests.model.layouts import GOLDEN
from tools import chat

TINY = GOLDEN / "ling_lite_tiny"
FIRST, SECOND = "What is 3 + 4?", "What is 10 + 21?"


def talk(monkeypatch, capsys, packed, lines, overrides=(), **options):
    """What is printed when these lines are piped to the tool."""
    monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
    given = {"max_tokens": 5, "temperature": 0.0, "tokenizer": str(packed / "tokenizer")} | options
    chat.main(str(TINY), list(overrides), **given)
    return capsys.readouterr().out


def by_reference(words, turns, count):
    """The likeliest tokens, from logits of the whole conversation each time."""
    model, read = config.read_hf_config(TINY), HFFolder(TINY).read
    ids = words.encode(words.render(turns, add_generation_prompt=True))
    start = len(ids)
    for _ in range(count):
        hidden = reference.hidden_states(read, model, torch.tensor(ids)).hidden_SD
        ids.append(int(reference.logits(read, model, hidden[-1:])[0, : words.size].argmax()))
    return words.decode(ids[start:])


def said(role, text):
    return {"role": role, "content": text}


def test_a_conversation(packed, monkeypatch, capsys, tmp_path):
    """The second question is answered with the first turns before it; then without."""
    words, file = load_tokenizer(packed / "tokenizer"), tmp_path / "talks.jsonl"
    lines = [FIRST, "", SECOND, f"/save {file}", "/reset", SECOND, f"/save {file}", "/quit", FIRST]
    shown = talk(monkeypatch, capsys, packed, lines, system="Say.")
    long, short = (json.loads(line)["messages"] for line in file.read_text().splitlines())
    turns = [said("system", "Say.")]
    for question in (FIRST, SECOND):
        turns.append(said("user", question))
        turns.append(said("assistant", by_reference(words, turns, 5)))
    assert long == turns
    begin = [said("system", "Say."), said("user", SECOND)]
    assert short == [*begin, said("assistant", by_reference(words, begin, 5))]
    parts = [f"> {FIRST}\n{long[2]['content']} [cut at 5 tokens]\n", "> \n"]
    parts += [f"> {SECOND}\n{long[4]['content']} [cut at 5 tokens]\n"]
    parts += [f"> /save {file}\n{file}: 5 turns added\n", "> /reset\n"]
    parts += [f"> {SECOND}\n{short[2]['content']} [cut at 5 tokens]\n"]
    parts += [f"> /save {file}\n{file}: 3 turns added\n", "> /quit\n"]
    assert shown == "".join(parts)


def piped(lines, *given):
    """The tool with these lines on its standard input; a forked worker has another's."""
    before, sys.stdin = sys.stdin, io.StringIO("".join(f"{line}\n" for line in lines))
    try:
        chat.main(*given)
    finally:
        sys.stdin = before


@pytest.mark.parametrize("layout", ["ep", "pp"])
def test_on_two_ranks_it_is_the_same(packed, tmp_path, layout):
    """The first has the conversation, the second only helps; drawn at temperature 1."""
    given = (None, 5, 1.0, 0.95, 3, str(packed / "tokenizer"))
    files = [tmp_path / f"{ranks}.jsonl" for ranks in ("one", "two")]
    lines = [[FIRST, SECOND, f"/save {file}"] for file in files]
    piped(lines[0], str(TINY), ["run.dtype=fp32"], *given)
    overrides = ["run.dtype=fp32", f"parallel.{layout}=2"]
    ranks.run(2, piped, lines[1], str(TINY), overrides, *given, folder=tmp_path / "ranks")
    assert files[1].read_text() == files[0].read_text()
    assert len(json.loads(files[0].read_text())["messages"]) == 4


def test_what_cannot_be_done_is_said(packed, monkeypatch, capsys, tmp_path):
    lines = ["/save", f"/save {tmp_path}/x", "/what", "What is it? " * 100, FIRST]
    lines += [f"/save {tmp_path}"]
    shown = talk(monkeypatch, capsys, packed, lines).split("\n")
    assert not (tmp_path / "x").exists()
    answers = [line for line in shown if not line.startswith("> ")]
    assert answers[0] == "/save needs a file: /save talks.jsonl"
    assert answers[1] == "nothing has been answered yet, so nothing is saved"
    assert answers[2].startswith("there is no command /what: /reset forgets")
    assert re.fullmatch(r"the prompt 'What is it\? .*' takes \d+ tokens, .*", answers[3])
    assert answers[3].endswith("; /reset begins anew")
    assert f"cannot write {tmp_path}: Is a directory" in answers
    with pytest.raises(SystemExit) as end:
        talk(monkeypatch, capsys, packed, [], top_p=2.0)
    assert end.value.code == "error: top_p=2.0 must be above 0 and at most 1"


def grown(text, primed=False):
    """What is shown of a text that grows by a character at a time: (plain or thought, text)."""
    parts = []

    def show(part, dim):
        if parts and parts[-1][1] == dim:
            part = parts.pop()[0] + part
        parts.append((part, dim))

    shown = chat.Shown(primed, show)
    for n in range(len(text) + 1):
        shown.more(text[:n], n == len(text))
    return parts


@pytest.mark.parametrize(
    ("text", "primed", "parts"),
    [
        ("<think>so</think>4", False, [("<think>so</think>", True), ("4", False)]),
        ("so</think>4", True, [("so</think>", True), ("4", False)]),
        ("well <think>so", False, [("well ", False), ("<think>so", True)]),
        ("1 < 2 and <thin", False, [("1 < 2 and <thin", False)]),
        ("", False, []),
        ("thinking", True, [("thinking", True)]),
        ("a `<think>` b", False, [("a `<think>` b", False)]),
    ],
)
def test_thought_is_told_from_the_answer_as_it_grows(text, primed, parts):
    if "`" in text:  # a quoted tag is known by what follows: whole, it is text
        shown = []
        chat.Shown(primed, lambda *part: shown.append(part)).more(text, True)
        assert shown == parts
    else:
        assert grown(text, primed) == parts


def test_half_a_character_waits():
    shown = []
    growing = chat.Shown(False, lambda *part: shown.append(part))
    for text in ("a", "a\ufffd", "aé", "aé</th", "aé</that"):
        growing.more(text, False)
    assert shown == [("a", False), ("é", False), ("</that", False)]
