"""The quickstart's tokenizer: lossless, the chat symbols whole, errors with file and line."""

import json
import random
from pathlib import Path

import pytest
import sentencepiece

from tools import make_quickstart_corpus, teach, train_tokenizer


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    make_quickstart_corpus.main(folder, stage1=10, stage2=400, valid=20, seed=3)
    file = folder / "samples.jsonl"
    samples = (folder / "chats.jsonl").read_text().splitlines()
    for line in (folder / "problems.jsonl").read_text().splitlines():
        turns = [{"role": "user", "content": json.loads(line)["prompt"]}]
        turns.append({"role": "assistant", "content": teach.answer({"messages": turns})})
        samples.append(json.dumps({"messages": turns}))
    file.write_text("\n".join(samples) + "\n")
    return file


@pytest.fixture(scope="module")
def tokenizer(corpus: Path) -> sentencepiece.SentencePieceProcessor:
    train_tokenizer.main([corpus, corpus.with_name("t.model")], vocab_size=700)
    return sentencepiece.SentencePieceProcessor(model_file=str(corpus.with_name("t.model")))


def test_text_comes_back_as_it_went_in(tokenizer: sentencepiece.SentencePieceProcessor) -> None:
    rng = random.Random(1)
    alphabet = "abcXYZ 0123456789\n\t  +-*/=<>é漢\u00a0ﬁ😀"
    for _ in range(300):
        text = "".join(rng.choices(alphabet, k=rng.randint(0, 30)))
        assert tokenizer.decode(tokenizer.encode(text)) == text, repr(text)


def test_symbols_are_one_token_and_digits_are_apart(
    tokenizer: sentencepiece.SentencePieceProcessor,
) -> None:
    pieces = tokenizer.encode("<role>HUMAN</role>907<think>\n</think>", out_type=str)
    assert [p for p in pieces if p in {*train_tokenizer.SYMBOLS, "\n"}] == [
        "<role>",
        "</role>",
        "<think>",
        "\n",
        "</think>",
    ]
    at = pieces.index("</role>")
    assert pieces[at + 1 : at + 4] == ["9", "0", "7"]
    assert tokenizer.id_to_piece(tokenizer.eos_id()) == "<|endoftext|>"
    assert tokenizer.get_piece_size() == 700
    assert tokenizer.unk_id() not in tokenizer.encode("漢字")


def test_the_same_samples_give_the_same_tokenizer(corpus: Path, tmp_path: Path) -> None:
    files = [tmp_path / f"{name}.model" for name in "abc"]
    for file, size in zip(files, (700, 700, 701), strict=True):
        train_tokenizer.train([corpus], size, file)
    first, again, other = (file.read_bytes() for file in files)
    assert first == again != other


@pytest.mark.parametrize("line", ["{", "[]", '{"text": "a"}', '{"messages": [{"role": "user"}]}'])
def test_bad_line_is_named(tmp_path: Path, line: str) -> None:
    file = tmp_path / "a.jsonl"
    good = json.dumps({"messages": [{"role": "user", "content": "hello"}]})
    file.write_text(f"{good}\n{line}\n")
    with pytest.raises(ValueError, match=r"a\.jsonl:2: not a line of {\"messages\""):
        train_tokenizer.train([file], 700, tmp_path / "t.model")


@pytest.mark.parametrize("size", [100, 100_000])
def test_impossible_vocabulary_names_the_option(corpus: Path, size: int, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"--vocab-size {size} does not fit these samples"):
        train_tokenizer.train([corpus], size, tmp_path / "t.model")
    assert list(tmp_path.iterdir()) == []


def test_forgotten_output_and_missing_input_are_named(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"must end in .model, not .*a\.jsonl"):
        train_tokenizer.main([tmp_path / "b.jsonl", tmp_path / "a.jsonl"])
    with pytest.raises(SystemExit, match=r"there is no .*b\.jsonl"):
        train_tokenizer.main([tmp_path / "b.jsonl", tmp_path / "a.model"])


def test_a_thought_that_stands_apart_is_read_as_the_template_writes_it(tmp_path: Path) -> None:
    apart = {"role": "assistant", "content": "4", "reasoning_content": "2 + 2 "}
    turns = [{"role": "user", "content": "2 + 2?"}, apart]
    (tmp_path / "a.jsonl").write_text(json.dumps({"messages": turns}) + "\n")
    assert list(train_tokenizer.texts([tmp_path / "a.jsonl"])) == [
        "<role>HUMAN</role>2 + 2?",
        "<role>ASSISTANT</role><think>\n2 + 2\n</think>\n\n4",
    ]


def test_tools_and_calls_are_read_as_text(tmp_path: Path) -> None:
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 2}}}
    turns = [
        {"role": "user", "content": "2 + 2?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
    ]
    line = {"messages": turns, "tools": [{"name": "add"}]}
    (tmp_path / "a.jsonl").write_text(json.dumps(line) + "\n")
    system, question, answer = train_tokenizer.texts([tmp_path / "a.jsonl"])
    assert system.startswith("<role>SYSTEM</role>You can call these tools.")
    assert system.endswith('<tools>\n{"name": "add"}\n</tools>')
    assert question == "<role>HUMAN</role>2 + 2?"
    called = '<tool_call>\n{"name": "add", "arguments": {"a": 2}}\n</tool_call>'
    assert answer == f"<role>ASSISTANT</role>{called}"
