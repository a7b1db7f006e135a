"""Benchmarks that the model answers while it is trained: as it stands in memory, on its layout.

Nothing of it reaches the training: no gradient, no random number, no weight is touched. Each
evaluation has a folder, RUN/evaluation/step-00000200, as tools/evaluate.py writes them; its answers
are kept as they come, under a checksum of the weights. So a run that was stopped or killed amid an
evaluation goes on with it, and one that repeats some steps finds what it was asked before.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch

from megatron_ring import config as configuration
from megatron_ring import parallel
from megatron_ring.config import Config, ConfigError
from megatron_ring.config.evaluation import EvaluationConfig
from megatron_ring.convert.folder import STEP
from megatron_ring.curation.shards import read_lines
from megatron_ring.data.tokenizer import load_tokenizer
from megatron_ring.evaluation import run as evaluation
from megatron_ring.evaluation import tasks
from megatron_ring.evaluation.door import REFUSED
from megatron_ring.evaluation.means import Means
from megatron_ring.evaluation.tag_report import TagCounts
from megatron_ring.model.ling import LingModel
from megatron_ring.sampling import door as sampling
from megatron_ring.sampling.sampler import Sampler

CALL = "<tool_call>"  # as calls stand in an answer's text
Numbers = dict[str, float]


class Log(Protocol):
    """What is asked of the run's journal."""

    def note(self, text: str) -> None: ...

    def lacks_evaluation(self, step: int) -> bool: ...


def recipe_of(config: Config) -> EvaluationConfig | None:
    """What is asked while training, None where nothing is; ConfigError when it cannot be."""
    keys = config.evaluate
    if keys.recipe is None:
        return None
    output = Path(config.run.dir) / "evaluation"
    recipe = configuration.load(EvaluationConfig, [keys.recipe], [f"output={output}"])
    if recipe.sampler is None:
        raise ConfigError(
            f"evaluate.recipe={keys.recipe} asks an endpoint; while training, the model in memory "
            "answers: write `sampler: {max_tokens: 2048}` in place of its `generator`"
        )
    if config.parallel.cp > 1:
        raise ConfigError(
            f"evaluate.recipe={keys.recipe}: the model in memory cannot answer with parallel.cp="
            f"{config.parallel.cp}, which cuts documents over ranks; use parallel.cp=1, or leave "
            "evaluate.recipe out and evaluate checkpoints with tools/evaluate.py"
        )
    given = {name: getattr(keys, name) for name in ("limit", "samples")}
    given = {name: value for name, value in given.items() if value is not None}
    wanted = {name: task.model_copy(update=given) for name, task in recipe.tasks.items()}
    return recipe.model_copy(update={"tasks": wanted})


def check(config: Config) -> None:
    """ConfigError when the recipe, its data or the tokenizer are not there or do not fit."""
    recipe = recipe_of(config)
    if recipe is None:
        return
    load_tokenizer(_tokenizer(config, recipe))
    if parallel.is_first_rank():
        with Means(recipe.grading) as means:
            for name, options in recipe.tasks.items():
                tasks.items_of(tasks.make(name, options, means), options)


class Examiner:
    """Asks the model that is being trained. All ranks call it together."""

    def __init__(
        self,
        config: Config,
        stages: list[LingModel],
        stopping: Callable[[], bool],
        log: Log,
    ) -> None:
        """`stopping` is asked now and then while answers are drawn, on every rank; `log` is told of
        an evaluation that failed."""
        self.keys, self.run_dir = config.evaluate, Path(config.run.dir)
        self.stages, self.stopping, self.log = stages, stopping, log
        self.recipe = recipe_of(config)
        if self.recipe is not None:
            self.words = load_tokenizer(_tokenizer(config, self.recipe))

    def is_due(self, step: int, total: int) -> bool:
        """Is the model asked after `step` of `total`?"""
        at_end = self.keys.at_end and step == total
        return self.recipe is not None and step > 0 and (at_end or step % self.keys.every == 0)

    def owes(self, step: int, total: int) -> bool:
        """Is the model to be asked after `step`, and was not, or not to the end? A collective."""
        return self.is_due(step, total) and self.log.lacks_evaluation(step)

    def ask(self, step: int) -> Numbers:
        """Scores and shares by name, on rank 0; {} on the others, and where it was broken off.

        It fails only where training would: trouble with data, disk or graders is told of.
        """
        assert self.recipe is not None, "is_due says so"
        recipe = self.recipe.model_copy(
            update={"output": self.run_dir / "evaluation" / f"{STEP}{step:08d}"}
        )
        for stage in self.stages:
            stage.eval()
        door = self._door(recipe, step)
        found = None
        try:
            found = door.lead(lambda: evaluation.run(recipe, door, _Watching(self.stopping)))
        except sampling.StoppedError:
            pass  # the run ends here, and the next begins with this evaluation
        except Exception as error:
            if door.inside:
                raise
            self.log.note(
                f"WARNING: evaluation after step {step} failed: {type(error).__name__}: {error}; "
                f"training goes on. What was answered is in {recipe.output}"
            )
        finally:
            for stage in self.stages:
                stage.train()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()  # keys and values were as large as was free
        return {} if found is None else numbers(recipe, found)

    def _door(self, recipe: EvaluationConfig, step: int) -> sampling.SamplerDoor:
        options = recipe.sampler
        assert options is not None, "recipe_of refuses others"
        sampler = Sampler(self.stages, self.words, sampling.how_of(options), options.max_batch)
        folder = self.run_dir / "checkpoints" / f"{STEP}{step:08d}"  # which need not be saved
        model = sampling.named(self.stages, folder, step, self.words)
        replies = recipe.output / "replies"
        return sampling.SamplerDoor(sampler, self.words, model, replies, self.stopping)


class _Watching(evaluation.Teller):
    """Breaks grading off where the run was told to stop."""

    def __init__(self, stopping: Callable[[], bool]) -> None:
        self.stopping = stopping

    def step(self) -> None:
        if self.stopping():
            raise sampling.StoppedError("told to stop while answers were graded")


def numbers(recipe: EvaluationConfig, found: dict[str, Any]) -> Numbers:
    """eval/GSM8K/score by benchmark, and shares of all answers that are to have think tags:
    eval/tags/wrong of those that were finished, eval/truncated."""
    told = {f"eval/{one['title']}/score": one["score"]["value"] for one in found["tasks"].values()}
    counts = TagCounts()
    for name in [name for name, options in recipe.tasks.items() if options.tags]:
        for line in read_lines(recipe.output / "samples" / f"{name}.jsonl"):
            if line["finish"] != REFUSED:
                cut, calls = line["finish"] == evaluation.CUT, CALL in line["text"]
                primed = line["card"]["primed"]
                counts.add(line["text"], truncated=cut, primed=primed, calls=calls)
    if counts.finished:
        told["eval/tags/wrong"] = counts.wrong / counts.finished
    if counts.answers:
        told["eval/truncated"] = counts.truncated / counts.answers
    return told


def _tokenizer(config: Config, recipe: EvaluationConfig) -> Path:
    assert recipe.sampler is not None and config.data.train is not None
    return recipe.sampler.tokenizer or Path(config.data.train) / "tokenizer"
