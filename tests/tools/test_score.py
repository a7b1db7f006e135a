"""score.py against the plain reference, on every layout, and the lines it refuses."""

import json

import numpy as np
import pytest
import torch

from megatron_ring import config
from megatron_ring.convert import reference
from megatron_ring.convert.sources import HFFolder
from megatron_ring.convert.transfer import import_checkpoint
from megatron_ring.data.chat import encode_chat
from megatron_ring.data.tokenizer import load_tokenizer
from tests import ranks
from tests.model.layouts import GOLDEN
from tools import score

TINY = GOLDEN / "ling_lite_tiny"
LENGTHS = [5, 70, 1, 33, 2, 64, 17, 90, 1, 8, 40]


@pytest.fixture(scope="module")
def samples():
    """Token lists of mixed lengths; two of a single token."""
    rng = np.random.default_rng(0)
    return [rng.integers(0, 384, n).tolist() for n in LENGTHS]


@pytest.fixture(scope="module")
def expected(samples):
    return [by_reference(tokens) for tokens in samples]


def by_reference(tokens):
    """Log-probabilities of one sample alone, in plain torch."""
    model, read = config.read_hf_config(TINY), HFFolder(TINY).read
    ids = torch.tensor(tokens)
    hidden = reference.hidden_states(read, model, ids).hidden_SD
    return reference.token_logp(read, model, hidden[:-1], ids[1:]).tolist()


def write(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def ids(samples, tmp_path_factory):
    return write(
        tmp_path_factory.mktemp("ids") / "ids.jsonl", [{"tokens": tokens} for tokens in samples]
    )


def assert_same(lines, expected, tolerance):
    assert len(lines) == len(expected)
    for line, logprobs in zip(lines, expected, strict=True):
        assert line.keys() == {"logprobs"}
        assert line["logprobs"] == pytest.approx(logprobs, abs=tolerance)


@pytest.fixture(scope="module")
def alone(ids, tmp_path_factory):
    """What one process writes, reading the Hugging Face folder, in rows of 100 tokens."""
    output = tmp_path_factory.mktemp("alone") / "out.jsonl"
    score.main(str(TINY), ids, output, row_tokens=100)
    return read(output)


def test_the_reference_agrees_in_input_order(alone, expected):
    assert_same(alone, expected, 1e-4)
    assert [len(line["logprobs"]) for line in alone] == [n - 1 for n in LENGTHS]
    assert alone[2] == {"logprobs": []}


def test_rows_grow_to_the_longest_sample(alone, ids, tmp_path):
    score.main(str(TINY), ids, tmp_path / "out.jsonl", row_tokens=16)
    assert_same(read(tmp_path / "out.jsonl"), [line["logprobs"] for line in alone], 1e-5)


def test_a_megatron_checkpoint_gives_the_same(alone, ids, tmp_path):
    import_checkpoint(TINY, tmp_path / "imported")
    score.main(str(tmp_path / "imported"), ids, tmp_path / "out.jsonl", row_tokens=100)
    assert read(tmp_path / "out.jsonl") == alone


@pytest.mark.parametrize(
    ("world_size", "layout"),
    [
        (2, ["parallel.tp=2", "parallel.ep=2"]),
        (2, ["parallel.pp=2"]),
        (2, ["parallel.cp=2"]),
        (3, []),
        (4, ["parallel.pp=2", "parallel.vpp=2", "parallel.ep=2"]),
    ],
)
def test_every_layout_gives_the_same(world_size, layout, alone, ids, tmp_path):
    """Rows neither divide by the ranks nor the longest sample by two."""
    output = tmp_path / "out.jsonl"
    ranks.run(
        world_size, score.main, str(TINY), ids, output, layout, None, 91, folder=tmp_path / "ranks"
    )
    assert_same(read(output), [line["logprobs"] for line in alone], 1e-5)


def test_chat_samples(packed, tmp_path, ids):
    """As packed for training: the tokens, which are targets, and their log-probabilities."""
    tokenizer = load_tokenizer(packed / "tokenizer")
    turns = [
        {"role": "user", "content": "What is 3 + 4?\u2028"},  # a line end to Python, not to JSON
        {"role": "assistant", "content": "It is 7."},
    ]
    pair = {"prompt": turns[0]["content"], "response": turns[1]["content"]}
    file = tmp_path / "chat.jsonl"
    lines = [{"messages": turns}, {"tokens": [1, 2, 3]}, pair]
    text = "\n".join(json.dumps(line, ensure_ascii=False) for line in lines)
    file.write_text(text, encoding="utf-8")
    score.main(str(TINY), file, tmp_path / "out.jsonl", tokenizer=str(packed / "tokenizer"))
    chat, plain, from_pair = read(tmp_path / "out.jsonl")
    tokens, targets = encode_chat(turns, tokenizer)
    assert chat["tokens"] == tokens.tolist()
    assert chat["targets"] == targets.astype(int).tolist()
    assert chat["logprobs"] == pytest.approx(by_reference(chat["tokens"]), abs=1e-4)
    assert from_pair == chat
    assert plain.keys() == {"logprobs"}


def test_an_empty_file_has_no_lines(tmp_path):
    (tmp_path / "none.jsonl").write_text("")
    score.main(str(TINY), tmp_path / "none.jsonl", tmp_path / "out.jsonl")
    assert (tmp_path / "out.jsonl").read_text() == ""


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"tokens": [1', "not JSON: Expecting ',' delimiter: line 1 column 14 (char 13)"),
        ("[1, 2]", "not a JSON object but [1, 2]"),
        ('{"tokens": []}', "no tokens"),
        ('{"tokens": [3, 384]}', "token id 384 is outside the model's vocab_size=384"),
        ('{"tokens": [-1, 3]}', "token id -1 is outside the model's vocab_size=384"),
        (
            '{"tokens": [9999999999]}',
            "token id 9999999999 is outside the model's vocab_size=384",
        ),
        ('{"tokens": [1.5, 2]}', '"tokens" must be a list of whole numbers'),
        ('{"tokens": "12"}', '"tokens" must be a list of whole numbers'),
        ('{"tokens": [[1], [2]]}', '"tokens" must be a list of whole numbers'),
        ('{"text": "a"}', 'has neither "tokens", "messages" nor "prompt" and "response"'),
        (
            '{"messages": [{"role": "user", "content": "a"}]}',
            "no assistant turn among 1: there is nothing to learn",
        ),
    ],
)
def test_lines_that_cannot_be_scored(line, message, packed, tmp_path):
    file, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    file.write_text(f'{{"tokens": [1]}}\n{line}\n{{"tokens": [1]}}\n')
    with pytest.raises(SystemExit) as end:
        score.main(str(TINY), file, output, tokenizer=str(packed / "tokenizer"))
    assert end.value.code == f"error: {file}:2: {message}"
    assert not output.exists()


def test_a_mark_at_the_beginning_and_blank_lines_are_no_samples(tmp_path):
    file = tmp_path / "ids.jsonl"
    file.write_text('\ufeff{"tokens": [1, 2]}\n\n{"tokens": [3]}\n', encoding="utf-8")
    score.main(str(TINY), file, tmp_path / "out.jsonl")
    assert [len(line["logprobs"]) for line in read(tmp_path / "out.jsonl")] == [1, 0]


def test_a_model_that_is_none_and_a_file_that_is_not_there(ids, tmp_path):
    with pytest.raises(SystemExit) as end:
        score.main(str(tmp_path), ids, tmp_path / "out.jsonl")
    assert end.value.code == (
        f"error: {tmp_path} is neither a Megatron checkpoint (no ring.json) nor a Hugging Face "
        "folder (no config.json), nor a run's folder with a complete checkpoint in it"
    )
    with pytest.raises(SystemExit) as end:
        score.main(str(TINY), tmp_path / "no.jsonl", tmp_path / "out.jsonl")
    assert end.value.code == (
        f"error: cannot read {tmp_path}/no.jsonl: [Errno 2] No such file or directory: "
        f"'{tmp_path}/no.jsonl'"
    )
    with pytest.raises(SystemExit) as end:
        score.main(str(TINY), ids, tmp_path / "no" / "out.jsonl")
    assert end.value.code.endswith(f"/out.jsonl: there is no folder {tmp_path}/no")
    with pytest.raises(SystemExit) as end:
        score.main(str(TINY), ids, tmp_path / "out.jsonl", ["parallel.tp=2"])
    assert end.value.code.startswith("error: world size 1 is not a multiple of parallel.tp")
