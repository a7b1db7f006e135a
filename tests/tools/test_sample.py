"""sample.py against the plain reference, one token after the other."""

import json

import pytest
import torch

from megatron_ring import config
from megatron_ring.convert import reference
from megatron_ring.convert.sources import HFFolder
from megatron_ring.data.tokenizer import load_tokenizer
from megatron_ring.model import frozen
from tests.model.layouts import GOLDEN
from tools import sample

TINY = GOLDEN / "ling_lite_tiny"
PROMPTS = ["What is 3 + 4?", "What is 10 + 21? Why?"]


class Plain:
    """A tokenizer whose texts are the ids, also those that the real one does not have."""

    def __init__(self, folder, eos_id=None):
        self.real = load_tokenizer(folder)
        self.eos_id, self.size = eos_id, 384  # as many as the model has

    def render(self, *args, **kwargs):
        return self.real.render(*args, **kwargs)

    def encode(self, text):
        return self.real.encode(text)

    def decode(self, ids):
        return " ".join(map(str, ids))


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
        assert line["answer"] == words.decode(ids)
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


@pytest.fixture(scope="module")
def stage():
    with frozen.opened(TINY, frozen.configure(TINY, [])) as [stage]:
        yield stage


@pytest.fixture
def words(packed):
    return Plain(packed / "tokenizer")


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


def turns(prompts):
    return [[{"role": "user", "content": prompt}] for prompt in prompts]


def answer(stage, words, prompts, max_tokens=8, temperature=0.0, seed=0):
    texts = sample.answer(stage, words, turns(prompts), max_tokens, temperature, seed)
    return [[int(i) for i in text.split()] for text in texts]


def test_greedy_is_the_references_likeliest(stage, words):
    """Both prompts in one row; each answer is the one it has alone."""
    expected = [by_reference(prompt_ids(words, prompt), 8) for prompt in PROMPTS]
    assert answer(stage, words, PROMPTS) == expected
    assert [answer(stage, words, [prompt])[0] for prompt in PROMPTS] == expected


def test_it_stops_at_the_end_token_and_leaves_it_out(stage, words):
    """The end token is what one answer holds and the other does not: the other goes on."""
    first, second = answer(stage, words, PROMPTS)
    at = next(i for i, token in enumerate(first) if token not in second)
    words.eos_id = first[at]
    assert answer(stage, words, PROMPTS) == [first[: first.index(first[at])], second]


def test_it_stops_at_the_models_length(stage, words, monkeypatch):
    ids = prompt_ids(words, PROMPTS[0])
    short = stage.arch.model_copy(update={"max_position_embeddings": len(ids) + 3})
    monkeypatch.setattr(stage, "arch", short)
    assert answer(stage, words, PROMPTS[:1]) == [by_reference(ids, 3)]


def test_a_prompt_that_leaves_no_room_is_refused(stage, words):
    prompt = "What is it? " * 100
    with pytest.raises(
        config.ConfigError, match="takes .* tokens, the model's 512 positions leave no room"
    ):
        sample.answer(stage, words, turns([prompt]), 5, 0.0, 0)


def test_the_seed_decides_what_is_drawn(stage, words):
    drawn = answer(stage, words, PROMPTS, temperature=1.0, seed=3)
    assert answer(stage, words, PROMPTS, temperature=1.0, seed=3) == drawn
    assert answer(stage, words, PROMPTS, temperature=1.0, seed=4) != drawn
    cold = answer(stage, words, PROMPTS, temperature=1e-4, seed=4)
    assert cold == answer(stage, words, PROMPTS)


def test_draws_follow_the_probabilities(stage, words):
    """4000 first tokens at temperature 0.5 against softmax(2 · logits) of the reference."""
    model, read = config.read_hf_config(TINY), HFFolder(TINY).read
    ids = torch.tensor(prompt_ids(words, PROMPTS[0]))
    hidden = reference.hidden_states(read, model, ids).hidden_SD
    p = (reference.logits(read, model, hidden[-1:])[0] / 0.5).softmax(-1)
    copies = [PROMPTS[0]] * 40
    drawn = [
        token
        for seed in range(5)
        for [token] in answer(stage, words, copies, max_tokens=1, temperature=0.5, seed=seed)
    ]
    # The mean log-probability of what is drawn estimates -entropy; five standard errors.
    logp = p.log()[torch.tensor(drawn)]
    entropy, spread = (
        -(p * p.log()).sum(),
        ((p * p.log().square()).sum() - (p * p.log()).sum() ** 2),
    )
    assert abs(logp.mean() + entropy) < 5 * (spread / len(drawn)) ** 0.5
    assert len(set(drawn)) > 50


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


def test_nothing_to_answer(tmp_path):
    for given, message in (
        ([], "there is nothing to answer: give --prompt TEXT or --input FILE"),
        ([None, tmp_path / "no.jsonl"], f"--input {tmp_path}/no.jsonl: there is no such file"),
    ):
        with pytest.raises(SystemExit) as end:
            sample.main(str(TINY), *given)
        assert end.value.code == f"error: {message}"
