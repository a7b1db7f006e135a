"""A checkpoint as evaluation's door: the texts of the plain sampler, whoever is asked beside."""

import json
from pathlib import Path
from typing import Any

import pytest

from megatron_ring import parallel, think
from megatron_ring.config import ConfigError, build
from megatron_ring.config.evaluation import EvaluationConfig, SamplerConfig
from megatron_ring.curation.shards import read_lines
from megatron_ring.data.chat import encode_chat
from megatron_ring.data.tokenizer import load_tokenizer
from megatron_ring.evaluation import run as evaluation
from megatron_ring.evaluation.door import Ask, Said
from megatron_ring.sampling import door as sampling
from megatron_ring.sampling.sampler import Answer
from tests import ranks
from tests.model.layouts import GOLDEN
from tests.tools.test_sample import by_reference

TINY = GOLDEN / "ling_lite_tiny"
SUMS = [(1, 2), (2, 3), (3, 4)]


@pytest.fixture(scope="module")
def words(packed) -> Path:
    return packed / "tokenizer"


def options(words: Path, **more: Any) -> SamplerConfig:
    keys = {"model": TINY, "tokenizer": words, "max_tokens": 5, "temperature": 1.0, "dtype": "fp32"}
    return SamplerConfig(**keys | more)


def ask(text: str, sample: int = 0, **more: Any) -> Ask:
    return Ask([{"role": "user", "content": text}], sample, **more)


def said(folder: Path, keys: SamplerConfig, asks: list[Ask], tell: Any = None) -> list[Said]:
    with sampling.opened(keys, folder) as door:
        return door.lead(lambda: door.answers(asks, tell or (lambda: None)))


def tree(folder: Path, words: Path, **sampler: Any) -> dict[str, Any]:
    """An evaluation of three sums, twice each."""
    rows = [{"question": f"{a} + {b}?", "answer": f"#### {a + b}"} for a, b in SUMS]
    (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    keys = options(words, **sampler).model_dump(mode="json")
    task = {"file": str(folder / "test.jsonl"), "samples": 2}
    return {"tasks": {"gsm8k": task}, "sampler": keys, "output": str(folder / "out")}


def evaluate(given: dict[str, Any], teller: evaluation.Teller | None = None) -> tuple[Any, int]:
    """Results on rank 0, and how many answers were drawn there."""
    config = build(EvaluationConfig, given)
    with sampling.opened(config.sampler, config.output) as door:
        return door.lead(lambda: evaluation.run(config, door, teller)), door.num_drawn


def texts(folder: Path) -> list[tuple[Any, ...]]:
    lines = read_lines(folder / "out/samples/gsm8k.jsonl")
    return [(one["id"], one["sample"], one["text"], one["finish"]) for one in lines]


def on_a_layout(folder: Path, words: Path, overrides: dict[str, int]) -> tuple[bool, int]:
    """Does this rank have results, and of how many answers?"""
    found, drawn = evaluate(tree(folder, words, parallel=overrides, max_batch=2))
    return found is not None, drawn


@pytest.fixture(scope="module")
def alone(words, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("alone")
    evaluate(tree(folder, words))
    return folder


@pytest.mark.parametrize("axis", ["tp", "ep", "pp", "dp"])
def test_a_layout_changes_no_text(alone, words, axis, tmp_path) -> None:
    """Four documents a data rank in a batch of two, so that some wait."""
    overrides = {} if axis == "dp" else {axis: 2}
    found = ranks.run(2, on_a_layout, tmp_path, words, overrides, folder=tmp_path / "ranks")
    assert found == [(True, 6), (False, 0)]  # each answer once, whoever else knows it
    assert texts(tmp_path) == texts(alone)
    assert len({text for _, _, text, _ in texts(alone)}) == 6  # independent draws differ
    samples = [list(read_lines(f / "out/samples/gsm8k.jsonl")) for f in (alone, tmp_path)]
    assert samples[0][0]["asked"] == samples[1][0]["asked"]


def test_the_likeliest_answer_is_the_references(words, tmp_path) -> None:
    tokenizer = load_tokenizer(words)
    [answer] = said(tmp_path, options(words, temperature=0), [ask("What is 3 + 4?")])
    turns = [{"role": "user", "content": "What is 3 + 4?"}]
    ids = tokenizer.encode(tokenizer.render(turns, add_generation_prompt=True))
    wanted = tokenizer.decode(by_reference(ids, 5, tokenizer.size))
    assert (answer.text, answer.finish) == (wanted, "length")
    card = answer.card
    assert (card["input_tokens"], card["output_tokens"]) == (len(ids), 5)
    assert (card["model"], card["step"], card["dtype"]) == ("ling_lite_tiny", None, "float32")
    assert (card["temperature"], card["seed"], card["finish_reason"]) == (0, 1234, "length")
    assert card["opens_thought"] is card["primed"] is False and len(card["weights"]) == 16
    stop = wanted[2]
    [cut] = said(tmp_path, options(words, temperature=0, stop=[stop]), [ask("What is 3 + 4?")])
    assert (cut.text, cut.finish) == (wanted[: wanted.index(stop)], "stop")


def test_an_answer_follows_from_seed_prompt_and_sample_alone(words, tmp_path) -> None:
    """Not from what is asked beside it, in which order, or in which folder replies lie."""
    asks = [ask(text, sample) for text in ("One?", "Two?", "Three?") for sample in range(3)]
    keys = options(words)
    first = [one.text for one in said(tmp_path / "a", keys, asks)]
    assert len(set(first)) == 9
    some = [asks[n] for n in (7, 2, 4)]
    assert [one.text for one in said(tmp_path / "b", keys, some)] == [first[n] for n in (7, 2, 4)]
    other = said(tmp_path / "b", options(words, seed=5), some)
    assert not {one.text for one in other} & set(first)
    twice = said(tmp_path / "b", keys, [asks[0], asks[1], asks[0]])
    assert [one.text for one in twice] == [first[0], first[1], first[0]]


def test_what_was_said_is_not_drawn_again(words, tmp_path) -> None:
    """Whoever asks and however the ranks lie; another sampling is another answer."""
    asks, told = [ask("One?", sample) for sample in range(3)], []
    with sampling.opened(options(words), tmp_path) as door:
        before = door.lead(lambda: door.answers(asks[:2], lambda: told.append(1)))
        assert door.num_drawn == 2
    with sampling.opened(options(words, max_batch=1), tmp_path) as door:
        after = door.lead(lambda: door.answers([*asks, asks[0]], lambda: told.append(1)))
        assert door.num_drawn == 1 and len(told) == 6
    assert after[:2] == before and after[3] == before[0]
    with sampling.opened(options(words, max_tokens=4), tmp_path) as door:
        door.lead(lambda: door.answers(asks, lambda: None))
        assert door.num_drawn == 3


class Failing(evaluation.Teller):
    """Breaks off when it has heard of so many answers."""

    def __init__(self, after: int) -> None:
        self.left = after

    def step(self) -> None:
        self.left -= 1
        if self.left == 0:
            raise ValueError("no more of this")


def test_a_run_that_broke_off_goes_on(alone, words, tmp_path, monkeypatch) -> None:
    """What was gathered before is kept, also the answers that came together with the trouble."""
    monkeypatch.setattr(sampling, "PASSES", 2)
    given = tree(tmp_path, words, max_batch=2)
    with pytest.raises(ValueError, match="no more of this"):
        evaluate(given, Failing(3))
    assert not (tmp_path / "out/samples").exists()
    _, drawn = evaluate(given)
    assert drawn == 6 - 3
    assert texts(tmp_path) == texts(alone)


def breaks_off(folder: Path, words: Path) -> str:
    """On rank 0 the error, on the other that it came to an end."""
    sampling.PASSES = 1
    try:
        evaluate(tree(folder, words, max_batch=1), Failing(1))
    except ValueError as error:
        return str(error)
    return f"rank {parallel.is_first_rank()}"


def test_trouble_on_rank_0_ends_all_ranks(words, tmp_path) -> None:
    found = ranks.run(2, breaks_off, tmp_path, words, folder=tmp_path / "ranks", patience=20)
    assert found == ["no more of this", "rank False"]


def data_are_missing(folder: Path, words: Path) -> str:
    given = tree(folder, words)
    given["tasks"]["gsm8k"]["file"] = str(folder / "no.jsonl")
    try:
        evaluate(given)
    except ConfigError as error:
        return str(error)
    return "ended"


def test_trouble_before_the_first_question_ends_all_ranks(words, tmp_path) -> None:
    found = ranks.run(2, data_are_missing, tmp_path, words, folder=tmp_path / "ranks")
    assert "no.jsonl" in found[0] and found[1] == "ended"


def told_to_stop(folder: Path, words: Path) -> str:
    """Only rank 1 is told, after the first pass."""
    sampling.PASSES = 1
    keys = options(words, max_batch=1)
    with sampling.opened(keys, folder) as door:
        door._stopping = lambda: not parallel.is_first_rank()
        try:
            door.lead(lambda: door.answers([ask("One?"), ask("Two?"), ask("Three?")], lambda: None))
        except sampling.StoppedError as error:
            return f"{error}: {door.num_drawn}"
    return "ended"


def test_one_rank_that_is_told_to_stop_stops_all(words, tmp_path) -> None:
    found = ranks.run(2, told_to_stop, tmp_path, words, folder=tmp_path / "ranks")
    assert found == ["told to stop while answers were drawn: 0", "ended"]


def test_a_prompt_too_long_is_refused(words, tmp_path) -> None:
    """It is counted as such; the others are answered."""
    given = tree(tmp_path, words)
    with (tmp_path / "test.jsonl").open("a") as file:
        file.write(json.dumps({"question": "long " * 400, "answer": "#### 1"}) + "\n")
    found, drawn = evaluate(given)
    assert drawn == 6 and found["tasks"]["gsm8k"]["verdicts"]["refused"] == 2
    [grade] = list(read_lines(tmp_path / "out/grades/gsm8k.jsonl"))[-1:]
    size = int(grade["detail"].split()[3])
    assert size >= 512
    assert grade["detail"] == f"the prompt takes {size} tokens, the model has 512 positions"


def test_a_prompt_that_opens_the_thought(words, tmp_path) -> None:
    """The text has the tag that the template wrote, as from an endpoint, and the card says so."""
    load_tokenizer(words).save(tmp_path / "words")
    template = tmp_path / "words/chat_template.jinja"
    opening = "{%- if add_generation_prompt -%}{{- '<think>\\n' -}}{%- endif -%}"
    template.write_text(template.read_text() + opening)
    [answer] = said(tmp_path, options(tmp_path / "words", temperature=0), [ask("One?")])
    tokenizer = load_tokenizer(tmp_path / "words")
    text = tokenizer.render([{"role": "user", "content": "One?"}], add_generation_prompt=True)
    assert text.endswith("<think>\n")
    behind = tokenizer.decode(by_reference(tokenizer.encode(text), 5, tokenizer.size))
    assert answer.text == f"<think>\n{behind.lstrip()}"
    assert (answer.card["opens_thought"], answer.card["primed"]) == (True, False)


@pytest.mark.parametrize(
    ("said_by_model", "opened", "text", "errors"),
    [
        ("a</think>b", True, "<think>\na</think>b", []),
        ("<think>a</think>b", True, "<think>a</think>b", ["redundant"]),
        ("<think>a</think>b", False, "<think>a</think>b", []),
        ("a</think>b", False, "a</think>b", ["missing_open"]),
    ],
)
def test_tags_are_counted_as_the_model_wrote_them(
    said_by_model, opened, text, errors, words, tmp_path
) -> None:
    """With `primed` of the card, think.py finds what is wrong, whoever wrote the first tag."""
    with sampling.opened(options(words), tmp_path) as door:
        prompt = sampling.Prompt("key", 1, [1, 2], opened)
        value = door._value(prompt, Answer(0, 0, [3], said_by_model, "end"))
    assert (value["text"], value["finish"]) == (text, "stop")
    assert value["card"]["output_tokens"] == 2  # the end token counts
    assert think.tag_errors(text, value["card"]["primed"]) == errors


def test_tools_are_told_as_in_training(words, tmp_path) -> None:
    """Ling's template knows no tools: their text joins the system turn."""
    tool = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
    plain, with_tools = said(tmp_path, options(words), [ask("Add."), ask("Add.", tools=[tool])])
    turns = [{"role": "user", "content": "Add."}, {"role": "assistant", "content": "{}"}]
    tokens, targets = encode_chat(turns, load_tokenizer(words), [tool])
    assert with_tools.card["input_tokens"] == targets.tolist().index(True)
    assert with_tools.card["input_tokens"] > plain.card["input_tokens"] + 20
    assert with_tools.text != plain.text


def test_whoever_is_asked_is_one(words, tmp_path) -> None:
    given = tree(tmp_path, words)
    generator = {"endpoint": "http://127.0.0.1:1/v1", "model": "m", "replies": "replies"}
    for more, message in (
        (
            {"generator": generator},
            "both generator and sampler are given: say generator=null to ask the checkpoint, or "
            "sampler=null to ask the endpoint",
        ),
        (
            {"sampler": None},
            "nobody is asked: give generator (a model behind an endpoint) or sampler (a checkpoint "
            "of ours)",
        ),
    ):
        with pytest.raises(ConfigError) as error:
            build(EvaluationConfig, given | more)
        assert str(error.value) == message
    with pytest.raises(ConfigError) as error, sampling.opened(SamplerConfig(), tmp_path):
        pass
    assert str(error.value) == ("missing config key sampler.model: a checkpoint, or a run's folder")
    with pytest.raises(ConfigError) as error:
        build(EvaluationConfig, given | {"sampler": {"stop": [""]}})
    assert "sampler.stop" in str(error.value)


def test_keys_of_the_layout_are_those_of_a_run(words) -> None:
    keys = options(words, parallel={"ep": 2, "tp": 4}, experts={"dispatcher": "allgather"})
    assert sampling.overrides_of(keys) == [
        "parallel.tp=4",
        "parallel.ep=2",
        "experts.dispatcher=allgather",
        "run.dtype=fp32",
    ]
