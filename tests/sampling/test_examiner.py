"""Benchmarks while training: what is asked and written, and that training knows nothing of it."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_ring import config as configuration
from megatron_ring import signals, train
from megatron_ring.config import Config, ConfigError
from megatron_ring.config.evaluation import EvaluationConfig
from megatron_ring.curation.shards import read_lines
from megatron_ring.evaluation import run as evaluation
from megatron_ring.sampling import door as sampling
from megatron_ring.sampling import examiner
from tests.runs import options, run, same_losses, same_tensors

STEPS = 4


def recipe(folder: Path, **more: Any) -> list[str]:
    """Keys of a run of four steps that asks three of four sums after each second."""
    rows = [{"question": f"What is {a} + 2?", "answer": f"#### {a + 2}"} for a in range(4)]
    (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tasks = {"gsm8k": {"file": str(folder / "test.jsonl"), "samples": 2, "limit": 2}}
    given = {"tasks": tasks, "sampler": {"max_tokens": 4, "temperature": 1.0}, "output": "unused"}
    (folder / "recipe.yaml").write_text(json.dumps(given | more))
    keys = {"recipe": folder / "recipe.yaml", "every": 2, "limit": 3, "samples": 1}
    return [f"evaluate.{key}={value}" for key, value in keys.items()]


def evaluations(run_dir: Path) -> dict[int, dict[str, float]]:
    """What metrics.jsonl says of benchmarks, by step; a step that is there twice is an error."""
    found: dict[int, dict[str, float]] = {}
    for line in read_lines(run_dir / "metrics.jsonl"):
        numbers = {key: value for key, value in line.items() if key.startswith("eval/")}
        if numbers:
            assert line["step"] not in found
            found[line["step"]] = numbers
    return found


@pytest.fixture(scope="module")
def plain(packed, tmp_path_factory) -> Path:
    """A run that asks nothing."""
    run_dir = tmp_path_factory.mktemp("plain") / "run"
    train.main([*options(packed, run_dir), f"optim.steps={STEPS}"])
    return run_dir


@pytest.fixture(scope="module")
def asked(packed, tmp_path_factory) -> Path:
    """The same run with benchmarks."""
    folder = tmp_path_factory.mktemp("asked")
    more = [f"optim.steps={STEPS}", "log.tensorboard=true", *recipe(folder)]
    before = torch.get_rng_state()
    train.main(options(packed, folder / "run", *more))
    torch.set_rng_state(before)
    return folder / "run"


def test_training_is_the_same_with_it(plain, asked) -> None:
    """Losses, gradient norms, weights and optimizer, bit by bit."""
    same_losses(plain, asked)
    last = f"checkpoints/step-{STEPS:08d}"
    assert len(same_tensors(plain / last, asked / last)) > 20
    assert not evaluations(plain)


def test_each_evaluation_has_a_folder_and_a_line(asked) -> None:
    """Scores as results.json has them; three items, one answer each, of other weights each time."""
    found = evaluations(asked)
    assert list(found) == [2, 4]
    weights = set()
    for step, numbers in found.items():
        output = asked / f"evaluation/step-{step:08d}"
        results = json.loads((output / "results.json").read_text())["tasks"]["gsm8k"]
        assert (results["items"], results["samples"]) == (3, 1)
        assert numbers["eval/GSM8K/score"] == results["score"]["value"]
        samples = list(read_lines(output / "samples/gsm8k.jsonl"))
        cut = sum(one["finish"] == "length" for one in samples)
        assert numbers["eval/truncated"] == pytest.approx(cut / 3)
        asked_of = samples[0]["asked"]
        assert (asked_of["step"], asked_of["model"]) == (step, f"step-{step:08d}")
        weights.add(asked_of["weights"])
        again = evaluation.grade(output)
        assert again["tasks"]["gsm8k"]["score"] == results["score"]
    assert len(weights) == 2
    events = list(asked.glob("tensorboard/events*"))
    assert any(b"eval/GSM8K/score" in file.read_bytes() for file in events)


def test_the_checkpoint_says_the_same(asked, tmp_path) -> None:
    """What the model in memory said is what tools/evaluate.py has from the checkpoint."""
    output = asked / "evaluation/step-00000004"
    over = [f"sampler.model={asked}", f"output={tmp_path / 'out'}"]
    given = configuration.load(examiner.EvaluationConfig, [str(output / "recipe.yaml")], over)
    with sampling.opened(given.sampler, given.output) as door:
        door.lead(lambda: evaluation.run(given, door))
    texts = [
        [one["text"] for one in read_lines(folder / "samples/gsm8k.jsonl")]
        for folder in (output, tmp_path / "out")
    ]
    assert texts[0] == texts[1]


def test_on_two_ranks_training_is_the_same_with_it(packed, tmp_path) -> None:
    more = ["optim.steps=3", "parallel.ep=2"]
    run(2, options(packed, tmp_path / "plain", *more), tmp_path / "ranks")
    run(2, options(packed, tmp_path / "asked", *more, *recipe(tmp_path)), tmp_path / "ranks")
    same_losses(tmp_path / "plain", tmp_path / "asked")
    assert list(evaluations(tmp_path / "asked")) == [2, 3]


class Interrupting:
    """Sends this process SIGTERM amid the evaluation after a step, once."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, step: int) -> None:
        ask, gathered = examiner.Examiner.ask, sampling.SamplerDoor._gathered
        self.step, self.now = step, 0

        def asking(self_: examiner.Examiner, at: int) -> Any:
            self.now = at
            return ask(self_, at)

        def telling(door: sampling.SamplerDoor, own: Any) -> Any:
            if self.now == self.step:
                self.step = -1
                os.kill(os.getpid(), signal.SIGTERM)
            return gathered(door, own)

        monkeypatch.setattr(sampling, "PASSES", 1)
        monkeypatch.setattr(examiner.Examiner, "ask", asking)
        monkeypatch.setattr(sampling.SamplerDoor, "_gathered", telling)


@pytest.mark.parametrize("step", [2, STEPS])
def test_a_run_that_is_stopped_amid_an_evaluation_goes_on_with_it(
    plain, asked, packed, step, tmp_path, monkeypatch
) -> None:
    """Also after the last step: then the run has not finished. None is missed, none twice."""
    Interrupting(monkeypatch, step)
    more = options(packed, tmp_path / "run", f"optim.steps={STEPS}", *recipe(tmp_path))
    with pytest.raises(SystemExit) as end:
        train.main(more)
    assert end.value.code == signals.STOPPED
    assert step not in evaluations(tmp_path / "run")
    events = (tmp_path / "run/events.jsonl").read_text()
    assert "WARNING" not in events and f"SIGTERM: stopped after step {step} of {STEPS}" in events
    train.main(more)
    assert evaluations(tmp_path / "run") == evaluations(asked)
    same_losses(plain, tmp_path / "run")
    train.main(more)  # finished: nothing is asked or written again
    assert evaluations(tmp_path / "run") == evaluations(asked)


def test_steps_that_are_trained_again_are_asked_no_second_time(
    asked, packed, tmp_path, monkeypatch
) -> None:
    """After a kill with no save behind the evaluations: same weights, same answers."""
    more = options(packed, tmp_path / "run", f"optim.steps={STEPS}", *recipe(tmp_path))
    drawn: list[int] = []
    lead = sampling.SamplerDoor.lead

    def counting(door: sampling.SamplerDoor, work: Any) -> Any:
        found = lead(door, work)
        drawn.append(door.num_drawn)
        return found

    monkeypatch.setattr(sampling.SamplerDoor, "lead", counting)
    for _ in range(2):
        train.main([*more, "checkpoint.save_every=100", f"optim.steps={STEPS}"])
        for path in (tmp_path / "run/checkpoints").iterdir():
            path.rename(tmp_path / f"gone-{len(drawn)}")
    assert drawn == [3, 3, 0, 0]
    assert evaluations(tmp_path / "run") == evaluations(asked)


def test_trouble_with_grading_does_not_end_training(
    plain, packed, tmp_path, monkeypatch, capsys
) -> None:
    """It is told, and the answers are there to be graded later."""

    def broken(*_: Any) -> Any:
        raise RuntimeError("no grader today")

    monkeypatch.setattr(evaluation, "graded", broken)
    train.main(options(packed, tmp_path / "run", f"optim.steps={STEPS}", *recipe(tmp_path)))
    same_losses(plain, tmp_path / "run")
    output = tmp_path / "run/evaluation/step-00000002"
    told = (
        "WARNING: evaluation after step 2 failed: RuntimeError: no grader today; training goes on. "
        f"What was answered is in {output}"
    )
    assert told in capsys.readouterr().out
    events = read_lines(tmp_path / "run/events.jsonl")
    assert [one["text"] for one in events if one["text"].startswith("WARNING: eval")][0] == told
    monkeypatch.undo()
    assert evaluation.grade(output)["tasks"]["gsm8k"]["items"] == 3


def test_training_states_are_as_before(packed, tmp_path, monkeypatch) -> None:
    """Train mode, random numbers, gradients, and no keys and values are left in the model."""
    seen: list[bool] = []
    ask = examiner.Examiner.ask

    def watching(self: examiner.Examiner, step: int) -> Any:
        [stage] = self.stages
        before = torch.get_rng_state(), [p.main_grad.clone() for p in stage.parameters()]
        attends = [m.attend for m in stage.modules() if "attend" in vars(m)]
        found = ask(self, step)
        after = [p.main_grad for p in stage.parameters()]
        seen.append(torch.equal(before[0], torch.get_rng_state()))
        seen.append(all(map(torch.equal, before[1], after)))
        seen.append(all(module.training for module in stage.modules()))
        kept = [m.attend for m in stage.modules() if "attend" in vars(m)]
        seen.append(len(kept) > 0 and all(a is b for a, b in zip(attends, kept, strict=True)))
        return found

    monkeypatch.setattr(examiner.Examiner, "ask", watching)
    train.main(options(packed, tmp_path / "run", "optim.steps=2", *recipe(tmp_path)))
    assert seen == [True] * 4


def test_when_it_is_asked() -> None:
    def due(step: int, **keys: Any) -> bool:
        made = examiner.Examiner.__new__(examiner.Examiner)
        made.keys = configuration.EvaluateConfig(**{"every": 3, "recipe": "r"} | keys)
        made.recipe = None if made.keys.recipe is None else object()  # type: ignore[assignment]
        return made.is_due(step, 8)

    assert [step for step in range(9) if due(step)] == [3, 6, 8]
    assert [step for step in range(9) if due(step, at_end=False)] == [3, 6]
    assert not any(due(step, recipe=None) for step in range(9))


def config(packed: Path, *more: str) -> Config:
    return configuration.load(Config, [], options(packed, "run", *more))


def test_what_cannot_be_asked_is_said_before_the_first_step(packed, tmp_path) -> None:
    keys = recipe(tmp_path)
    file = tmp_path / "recipe.yaml"
    with pytest.raises(SystemExit) as end:
        train.main(["--dry-run", *options(packed, tmp_path, *keys, "parallel.cp=2")])
    assert "world size 1 is not a multiple" in end.value.code
    for more, written, message in (
        (
            ["parallel.cp=2"],
            {},
            f"evaluate.recipe={file}: the model in memory cannot answer with parallel.cp=2, which "
            "cuts documents over ranks; use parallel.cp=1, or leave evaluate.recipe out and "
            "evaluate checkpoints with tools/evaluate.py",
        ),
        (
            [],
            {
                "sampler": None,
                "generator": {"endpoint": "http://a/v1", "model": "m", "replies": "r"},
            },
            f"evaluate.recipe={file} asks an endpoint; while training, the model in memory "
            "answers: write `sampler: {max_tokens: 2048}` in place of its `generator`",
        ),
        ([], {"tasks": {"none": {}}}, "tasks.none: there is no such benchmark; known: "),
    ):
        with pytest.raises(ConfigError) as error:
            examiner.check(config(packed, *recipe(tmp_path, **written), *more))
        assert str(error.value).startswith(message)
    (tmp_path / "test.jsonl").unlink()
    with pytest.raises(SystemExit) as end:
        recipe(tmp_path)
        (tmp_path / "test.jsonl").unlink()
        train.main(["--dry-run", *options(packed, tmp_path / "run", *keys)])
    assert "test.jsonl" in end.value.code


def test_answers_that_are_not_to_think_count_for_no_tag_errors(tmp_path: Path) -> None:
    """Two benchmarks of one answer without tags each; of one of them none are expected."""
    tasks = {name: {"kind": "chats", "tags": name == "sums"} for name in ("sums", "facts")}
    recipe = EvaluationConfig(tasks=tasks, sampler={}, output=tmp_path)
    (tmp_path / "samples").mkdir()
    for name in tasks:
        line = {"text": "4", "finish": "stop", "card": {"primed": False}}
        lines = [line] if name == "facts" else [line, line | {"text": "<think>\n2\n</think>\n\n4"}]
        written = "".join(json.dumps(one) + "\n" for one in lines)
        (tmp_path / "samples" / f"{name}.jsonl").write_text(written)
    found = {"tasks": {"sums": {"title": "Sums", "score": {"value": 0.5}}}}
    assert examiner.numbers(recipe, found) == {
        "eval/Sums/score": 0.5,
        "eval/tags/wrong": 0.5,  # 2 of 3 with the facts
        "eval/truncated": 0.0,
    }
