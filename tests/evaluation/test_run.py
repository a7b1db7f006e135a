"""Runs against an endpoint: asked once, graded from what was written, resumed after a kill."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from megatron_ring.config import ConfigError, build
from megatron_ring.config.curation.generate import GeneratorConfig
from megatron_ring.config.evaluation import EvaluationConfig
from megatron_ring.curation.shards import read_lines
from megatron_ring.evaluation import run as evaluation
from megatron_ring.evaluation.door import Ask, EndpointDoor, Said
from tests.curation import scripted
from tests.curation.killing import wait_for
from tests.curation.scripted import Serving
from tests.evaluation.evaluating import evaluate, start, tree

PAIRS = [(n, n + 1) for n in range(10)]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    folder = tmp_path_factory.mktemp("server")
    script = "tests.evaluation.adding:adds"
    with scripted.serve(folder, script=script, latency_s=0.05) as made:
        yield made


class Asked:
    """How many requests a test sent."""

    def __init__(self, server: Serving) -> None:
        self.server, self.before = server, len(server.ledger)

    def __len__(self) -> int:
        return len(self.server.ledger) - self.before


class Heard(evaluation.Teller):
    """Remembers what was said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


def lines(folder: Path, kind: str) -> list[dict[str, Any]]:
    return list(read_lines(folder / "out" / kind / "gsm8k.jsonl"))


def files(folder: Path) -> dict[str, bytes]:
    """All that a run wrote but its replies and its lock."""
    kinds = ("items", "samples", "grades")
    found = [
        *(folder / "out" / kind / "gsm8k.jsonl" for kind in kinds),
        folder / "out/results.json",
    ]
    return {path.name + path.parent.name: path.read_bytes() for path in found}


def test_a_run_asks_grades_and_counts(server: Serving, tmp_path: Path) -> None:
    asked = Asked(server)
    found = evaluate(tree(tmp_path, server.url, [*PAIRS, (1, 90), (1, 91), (1, 92)]))
    assert len(asked) == 26
    samples, grades = lines(tmp_path, "samples"), lines(tmp_path, "grades")
    assert [(one["id"], one["sample"]) for one in samples] == [
        (str(n), sample) for n in range(13) for sample in range(2)
    ]
    right = 0
    for sample, grade in zip(samples, grades, strict=True):
        a, b = (PAIRS + [(1, 90), (1, 91), (1, 92)])[int(sample["id"])]
        assert sample["messages"][0]["content"].startswith(f"{a} + {b}?")
        odd = {90: "truncated", 91: "no_answer", 92: "right"}
        correct = f"\\boxed{{{a + b}}}" in sample["text"]
        wanted = odd.get(b, "right" if correct else "wrong")
        assert (grade["verdict"], grade["score"]) == (wanted, float(wanted == "right"))
        assert (sample["id"], sample["sample"]) == (grade["id"], grade["sample"])
        right += wanted == "right"
    (result,) = found["tasks"].values()
    assert result["score"]["value"] == pytest.approx(right / 26)
    assert result["verdicts"] == Counter(one["verdict"] for one in grades)
    assert result["verdicts"]["truncated"] == result["verdicts"]["no_answer"] == 2
    assert (result["items"], result["samples"], list(result["pass_at"])) == (13, 2, ["1", "2"])
    assert result["pass_at"]["1"]["value"] == pytest.approx(right / 26)
    assert found == json.loads((tmp_path / "out/results.json").read_text())
    told = grades[20]["detail"]
    assert told == (
        "cut at the most tokens allowed; by itself no_answer: no final answer behind the thought"
    )


def test_a_sample_says_how_it_was_made(server: Serving, tmp_path: Path) -> None:
    evaluate(tree(tmp_path, server.url, [(1, 2)], system="Be brief."))
    one = lines(tmp_path, "samples")[1]
    assert [turn["role"] for turn in one["messages"]] == ["system", "user"]
    assert one["messages"][0]["content"] == "Be brief."
    asked = {"model": "m", "temperature": 0.6, "top_p": 0.95, "max_tokens": 50, "seed": 1234}
    assert one["asked"] == asked | {"opens_thought": False, "extra": {}}
    assert (one["task"], one["version"], one["finish"]) == ("gsm8k", "1", "stop")
    assert one["card"]["versions"]["math-verify"] and one["card"]["output_tokens"] > 0
    assert asked.items() - {("seed", 1234)} <= one["card"].items()


def test_grading_needs_nothing_but_the_folder(server: Serving, tmp_path: Path) -> None:
    """Neither the endpoint nor the data are there any more."""
    found = evaluate(tree(tmp_path, server.url, PAIRS))
    before = files(tmp_path)
    (tmp_path / "test.jsonl").unlink()
    for kind in ("grades", "results"):
        for path in (tmp_path / "out").rglob(f"{kind}*/*.jsonl"):
            path.unlink()
    moved = (tmp_path / "out").rename(tmp_path / "moved")
    assert evaluation.grade(moved) == found
    moved.rename(tmp_path / "out")
    assert files(tmp_path) == before


def test_what_was_sampled_is_not_asked_again(server: Serving, tmp_path: Path) -> None:
    heard = Heard()
    asked = Asked(server)
    given = tree(tmp_path, server.url, PAIRS)
    found = evaluate(given)
    (tmp_path / "out/replies").rename(tmp_path / "gone")
    assert evaluate(given, heard) == found
    assert (heard.lines, len(asked)) == (["GSM8K: 20 answers, sampled before"], 20)
    (tmp_path / "gone").rename(tmp_path / "out/replies")
    given["tasks"]["gsm8k"]["samples"] = 3
    evaluate(given)
    assert len(asked) == 30  # the third answers
    given["generator"]["temperature"] = 0.0
    evaluate(given)
    assert len(asked) == 60
    assert {one["asked"]["temperature"] for one in lines(tmp_path, "samples")} == {0.0}


def test_a_killed_run_goes_on_and_ends_as_if_it_had_not_been(
    server: Serving, tmp_path: Path
) -> None:
    """Nothing that came home is asked twice; what was on its way may be."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        folder.mkdir()
    asked = Asked(server)
    evaluate(tree(whole, server.url, PAIRS))
    # One at a time: the kill comes long before the end, also on a busy machine.
    given = tree(killed, server.url, PAIRS, generator={"concurrency": 1})
    for replies in (3, 9):
        child = start(given)
        try:
            wait_for(lambda wanted=20 + replies: len(asked) >= wanted, seconds=300)
        finally:
            child.kill()
            child.wait()
        assert not (killed / "out/samples").exists()
    assert 20 + 9 <= len(asked) < 40
    evaluate(given)
    assert len(asked) <= 40 + 2  # of each kill the one that was on its way
    assert lines(whole, "grades") == lines(killed, "grades")
    texts = [[one["text"] for one in lines(folder, "samples")] for folder in (whole, killed)]
    assert texts[0] == texts[1]


def test_a_refused_item_is_counted_and_asked_again(server: Serving, tmp_path: Path) -> None:
    asked = Asked(server)
    given = tree(tmp_path, server.url, [(1, 2), (2, 3)])
    rows = (tmp_path / "test.jsonl").read_text().replace("1 + 2?", "1 + 2? [[http_400 ok]]")
    (tmp_path / "test.jsonl").write_text(rows)
    given["tasks"]["gsm8k"]["samples"] = 1
    found = evaluate(given)["tasks"]["gsm8k"]["verdicts"]
    assert found["refused"] == 1
    assert "HTTP 400" in lines(tmp_path, "grades")[0]["detail"]
    assert "refused" not in evaluate(given)["tasks"]["gsm8k"]["verdicts"]
    assert len(asked) == 3


def test_another_door_shares_what_follows(tmp_path: Path) -> None:
    """A model in this process, say: it has no replies on disk."""

    class Sure:
        def described(self) -> dict[str, Any]:
            return {"checkpoint": "step 10"}

        def answers(self, asks: Any, tell: Any) -> list[Said]:
            for _ in asks:
                tell()
            return [Said("\\boxed{3}", "stop", {}) for _ in asks]

    config = build(EvaluationConfig, tree(tmp_path, "http://127.0.0.1:1/v1", [(1, 2), (1, 3)]))
    found = evaluation.run(config, Sure())
    assert found["tasks"]["gsm8k"]["score"]["value"] == 0.5
    assert found["tasks"]["gsm8k"]["tokens"] is None
    assert lines(tmp_path, "samples")[0]["asked"] == {"checkpoint": "step 10"}
    assert not (tmp_path / "out/replies").exists()


def test_tools_are_sent_and_calls_are_text(tmp_path: Path) -> None:
    tool = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
    with scripted.serve(tmp_path, script="tests.evaluation.adding:calls") as own:
        generator = tree(tmp_path, own.url, [(1, 2)])["generator"]
        door = EndpointDoor(GeneratorConfig(**generator))
        asks = [Ask([{"role": "user", "content": "Add."}], 0, tools) for tools in ([tool], [])]
        called, plain = door.answers(asks, lambda: None)
        door.close()
        assert "tools" in own.ledger.lines[0]["body"] or "tools" in own.ledger.lines[1]["body"]
    assert plain.text == "No tools."
    assert called.text == (
        "<think>\nI add.\n</think>\n\n"
        '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>\n'
        '<tool_call>\n{"name": "add", "arguments": {}}\n</tool_call>'
    )
    assert "tools" not in called.card and called.card["input_tokens"] == 1


def test_another_version_of_the_prompts_is_told(server: Serving, tmp_path: Path) -> None:
    evaluate(tree(tmp_path, server.url, [(1, 2)]))
    path, heard = tmp_path / "out/samples/gsm8k.jsonl", Heard()
    path.write_text(path.read_text().replace('"version": "1"', '"version": "0"'))
    evaluation.grade(tmp_path / "out", heard)
    assert heard.lines == [
        "GSM8K: sampled with version 0 of its prompts and graded with 1: not to be compared with "
        "others of 1"
    ]


def test_damaged_files_are_told_and_made_anew(server: Serving, tmp_path: Path) -> None:
    """Each spoils the file of a whole run; grading names it, and the run's command mends it."""
    given = tree(tmp_path, server.url, PAIRS[:3])
    evaluate(given)
    asked, before = Asked(server), files(tmp_path)
    out = tmp_path / "out"
    samples, items = out / "samples/gsm8k.jsonl", out / "items/gsm8k.jsonl"
    again = (
        "; give the command of its `run` again, which asks for nothing that is among the replies"
    )

    def without(path: Path, old: str, new: str) -> str:
        text = path.read_text()
        assert old in text
        return text.replace(old, new)

    for path, spoilt, told in [
        (samples, samples.read_text()[:-30], f"{samples} line 6 is no JSON: Expecting "),
        (samples, "", f"{samples} is empty"),
        (samples, without(samples, '"text": ', '"txt": '), f"{samples} line 1 has no 'text'"),
        (items, without(items, '"id": "2"', '"id": "7"'), f"{items} has no item '2', sampled"),
        (items, without(items, '"gold": ', '"old": '), f"{items} cannot be read (Item"),
    ]:
        path.write_text(spoilt)
        with pytest.raises(ConfigError) as error:
            evaluation.grade(out)
        assert str(error.value).startswith(told) and str(error.value).endswith(again)
        evaluate(given)
        assert files(tmp_path) == before and len(asked) == 0
    items.unlink()
    with pytest.raises(ConfigError) as error:
        evaluation.grade(out)
    missing = f"{items} cannot be read ([Errno 2] No such file or directory: '{items}')"
    assert str(error.value) == missing + again


def test_a_run_that_breaks_off_leaves_the_right_answers_of_before(
    server: Serving, tmp_path: Path
) -> None:
    """Other data under the same ids: what was said is graded by what was asked."""
    found = evaluate(tree(tmp_path, server.url, PAIRS))
    down = {"retries": 0, "endpoint": "http://127.0.0.1:1/v1"}
    with pytest.raises(ValueError):
        evaluate(tree(tmp_path, server.url, [(a + 7, b) for a, b in PAIRS], generator=down))
    assert evaluation.grade(tmp_path / "out") == found


def test_what_stands_in_the_way_of_a_run(tmp_path: Path) -> None:
    given = tree(tmp_path, "http://127.0.0.1:1/v1", [(1, 2)])
    with pytest.raises(ConfigError) as error:
        evaluation.grade(tmp_path)
    assert str(error.value) == f"{tmp_path} has no run in it: there is no recipe.yaml"
    with pytest.raises(ConfigError) as error:
        build(EvaluationConfig, given | {"tasks": {}})
    assert str(error.value) == "tasks: no benchmark is named; one is {gsm8k: {file: test.jsonl}}"
    missing = tmp_path / "no.key"
    with pytest.raises(ConfigError) as error:
        config = build(
            EvaluationConfig,
            tree(tmp_path, "http://a/v1", [(1, 2)], generator={"key_file": str(missing)}),
        )
        EndpointDoor(config.generator)
    assert str(error.value) == f"generator.key_file: there is no file {missing}"
    with pytest.raises(ValueError) as error:
        evaluate(given | {"generator": given["generator"] | {"retries": 0}})
    assert "Start it and run again; nothing is lost" in str(error.value)
    with pytest.raises(ConfigError) as error:
        evaluation.grade(tmp_path / "out")
    assert str(error.value) == f"{tmp_path / 'out'}: nothing was sampled yet"
