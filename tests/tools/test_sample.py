"""sample.py against the plain reference, one token after the other."""

import json
import re

import pytest
import torch

from megatron_ring import config
from megatron_ring.convert import reference
from megatron_ring.convert.sources import HFFolder
from megatron_ring.data.tokenizer import load_tokenizer
from megatron_ring.evaluation import tag_report
from tests import ranks
from tests.model.layouts import GOLDEN
from tools import sample

TINY = GOLDEN / "ling_lite_tiny"
PROMPTS = ["What is 3 + 4?", "What is 10 + 21? Why?"]


def test_as_called(packed, tmp_path, capsys):
    """The tokenizer has 290 tokens, the model 384: what has no text is never chosen."""
    output = tmp_path / "answers.jsonl"
    tokenizer = str(packed / "tokenizer")
    sample.main(str(TINY), PROMPTS, None, None, 5, 0.0, 0, tokenizer, output)
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    assert [line["prompt"] for line in lines] == PROMPTS
    words, said = load_tokenizer(tokenizer), capsys.readouterr().out
    for line in lines:
        assert line["prompt"] in said
        ids = by_reference(prompt_ids(words, line["prompt"]), 5, words.size)
        assert (line["answer"], line["ended"]) == (words.decode(ids), "length")
        assert (line["finish_reason"], line["primed"]) == ("length", False)
    with pytest.raises(SystemExit) as end:
        sample.main(str(tmp_path), PROMPTS)
    assert end.value.code == (
        f"error: {tmp_path} is neither a Megatron checkpoint (no ring.json) nor a Hugging Face "
        "folder (no config.json), nor a run's folder with a complete checkpoint in it"
    )


def test_several_answers_to_each_prompt(packed, tmp_path, capsys):
    """Those of one prompt stand together; drawn, they differ, and the likeliest one is the same."""
    output, tokenizer = tmp_path / "answers.jsonl", str(packed / "tokenizer")

    def answers(temperature):
        sample.main(str(TINY), PROMPTS, None, None, 5, temperature, 0, tokenizer, output, 3)
        lines = [json.loads(line) for line in output.read_text().splitlines()]
        assert [line["prompt"] for line in lines] == [PROMPTS[0]] * 3 + [PROMPTS[1]] * 3
        said = capsys.readouterr().out
        assert [said.count(prompt) for prompt in PROMPTS] == [3, 3]
        return [{line["answer"] for line in lines[at : at + 3]} for at in (0, 3)]

    assert [len(of_prompt) for of_prompt in answers(0.0)] == [1, 1]
    assert [len(of_prompt) for of_prompt in answers(1.0)] == [3, 3]


def test_prompts_from_chat_samples(packed, tmp_path):
    """The turns before the last assistant turn; answers as those of the reference."""

    def user(text):
        return {"role": "user", "content": text}

    def assistant(text):
        return {"role": "assistant", "content": text}

    samples = [
        [user("What is 3 + 4?"), assistant("7"), user("And 1 more?"), assistant("8"), user("Ok")],
        [user("What is 10 + 21?"), assistant("31")],
        [user("never read"), assistant("for the limit")],
    ]
    file, output = tmp_path / "chats.jsonl", tmp_path / "answers.jsonl"
    file.write_text("".join(json.dumps({"messages": m}) + "\n" for m in samples))
    tokenizer = str(packed / "tokenizer")
    sample.main(str(TINY), None, file, 2, 4, 0.0, 0, tokenizer, output)
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    assert [line["prompt"] for line in lines] == ["And 1 more?", "What is 10 + 21?"]
    words = load_tokenizer(tokenizer)
    for line, turns_before in zip(lines, [samples[0][:3], samples[1][:1]], strict=True):
        text = words.render(turns_before, add_generation_prompt=True)
        assert line["answer"] == words.decode(by_reference(words.encode(text), 4, words.size))


def prompt_ids(words, prompt):
    text = words.render([{"role": "user", "content": prompt}], add_generation_prompt=True)
    assert text.endswith("<role>ASSISTANT</role>")
    return words.encode(text)


def by_reference(ids, count, size=384):
    """The likeliest token, `count` times, from logits of the whole sequence each time."""
    model, read = config.read_hf_config(TINY), HFFolder(TINY).read
    ids, start = list(ids), len(ids)
    for _ in range(count):
        hidden = reference.hidden_states(read, model, torch.tensor(ids)).hidden_SD
        ids.append(int(reference.logits(read, model, hidden[-1:])[0, :size].argmax()))
    return ids[start:]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"chats\.jsonl:2: not a line of .*: JSONDecodeError"),
        ('{"messages": [{"role": "user", "content": "x"}]}', r"jsonl:2: .* an assistant turn: Val"),
        ('{"messages": [{"role": "assistant", "content": "x"}]}', r"jsonl:2: no turn comes before"),
    ],
)
def test_what_is_no_chat_sample_is_named(tmp_path, line, message):
    good = '{"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]}'
    file = tmp_path / "chats.jsonl"
    file.write_text(f"{good}\n{line}\n")
    with pytest.raises(ValueError, match=message):
        list(sample.read_prompts(file))


def test_on_two_ranks_the_same_is_drawn(packed, tmp_path):
    """Experts on two processes; the first one writes."""

    def options(output, overrides):
        words = str(packed / "tokenizer")
        return (*(6, 1.0, 0, words, output, 2, 0.9, ["h"], 3), ["run.dtype=fp32", *overrides])

    outputs = [tmp_path / f"{name}.jsonl" for name in ("alone", "two")]
    start = (str(TINY), PROMPTS, None, None)
    sample.main(*start, *options(outputs[0], []))
    two = options(outputs[1], ["parallel.ep=2"])
    ranks.run(2, sample.main, *start, *two, folder=tmp_path / "ranks")
    assert outputs[1].read_text() == outputs[0].read_text()
    lines = [json.loads(line) for line in outputs[0].read_text().splitlines()]
    assert [line["prompt"] for line in lines] == [PROMPTS[0]] * 2 + [PROMPTS[1]] * 2
    assert not any("h" in line["answer"] for line in lines)
    assert {line["ended"] for line in lines} == {"stop", "length"}


def test_think_tags_are_counted_from_its_lines(packed, tmp_path):
    """What is cut, and what the template opens: a line says what counts them."""
    words = load_tokenizer(packed / "tokenizer")
    words.save(tmp_path / "words")
    template = tmp_path / "words/chat_template.jinja"
    opening = "{%- if add_generation_prompt -%}{{- '<think>\\n' -}}{%- endif -%}"
    template.write_text(template.read_text() + opening)
    output = tmp_path / "answers.jsonl"
    stop = by_reference(prompt_ids(words, PROMPTS[1]), 1, words.size)
    for folder, primed in ((packed / "tokenizer", False), (tmp_path / "words", True)):
        more = (str(folder), output, 1, 1.0, [words.decode(stop)])
        sample.main(str(TINY), PROMPTS, None, None, 5, 0.0, 0, *more)
        lines = [json.loads(line) for line in output.read_text().splitlines()]
        assert {line["primed"] for line in lines} == {primed}
        for line in lines:
            assert line["finish_reason"] == {"stop": "stop", "length": "length"}[line["ended"]]
        tags = tag_report.count(line | {"text": line["answer"]} for line in lines)
        cut = sum(line["finish_reason"] == "length" for line in lines)
        assert (tags.answers, tags.truncated) == (2, cut)
        # None opens a thought; primed, the template has.
        assert tags.errors["missing_open"] == (0 if primed else tags.finished)
        assert tags.errors["missing_close"] == tags.finished
        if not primed:
            assert "stop" in {line["ended"] for line in lines}


def test_a_prompt_that_leaves_no_room_is_refused(packed):
    with pytest.raises(SystemExit) as end:
        sample.main(str(TINY), ["What is it? " * 100], tokenizer=str(packed / "tokenizer"))
    assert re.fullmatch(
        r"error: the prompt 'What is it\? .{28}' takes \d+ tokens, the model's 512 positions leave "
        "no room for an answer",
        end.value.code,
    )


def test_options_that_cannot_be(packed):
    with pytest.raises(SystemExit) as end:
        sample.main(str(TINY), PROMPTS, top_p=0.0, tokenizer=str(packed / "tokenizer"))
    assert end.value.code == "error: top_p=0.0 must be above 0 and at most 1"


def test_nothing_to_answer(tmp_path):
    for given, message in (
        ([], "there is nothing to answer: give --prompt TEXT or --input FILE"),
        ([None, tmp_path / "no.jsonl"], f"--input {tmp_path}/no.jsonl: there is no such file"),
    ):
        with pytest.raises(SystemExit) as end:
            sample.main(str(TINY), *given)
        assert end.value.code == f"error: {message}"
