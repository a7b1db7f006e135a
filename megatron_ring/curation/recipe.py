"""The stages there are, and a recipe as a chain of segments.

A new stage: its options in megatron_ring/config/curation (a `Part` with `stage: Literal["name"] =
"name"`, joined to StageConfig there), its class in a file beside this one, a line in a table here.
The table imports them all: what takes long to import waits for the first `__init__`.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

from megatron_ring.config.base import Part
from megatron_ring.config.curation import CurateConfig
from megatron_ring.config.curation.collect import (
    CheckToolsConfig,
    ScorePromptConfig,
    SelectAnswerConfig,
)
from megatron_ring.config.curation.decontaminate import DecontaminateConfig
from megatron_ring.config.curation.dedup import ExactConfig, MinHashConfig
from megatron_ring.config.curation.distil import DistilConfig
from megatron_ring.config.curation.label import LabelConfig
from megatron_ring.config.curation.mix import MixConfig
from megatron_ring.config.curation.purify import PurifyConfig
from megatron_ring.curation.collect.prompts import ScorePrompt
from megatron_ring.curation.collect.select import SelectAnswer
from megatron_ring.curation.collect.tools import CheckTools
from megatron_ring.curation.decontaminate.stage import Decontaminate
from megatron_ring.curation.dedup import Exact, MinHash
from megatron_ring.curation.distil import Distil
from megatron_ring.curation.label.stage import Label
from megatron_ring.curation.mix import Mix
from megatron_ring.curation.purify import Purify
from megatron_ring.curation.record import GlobalStage, Stage

# One record at a time.
STAGES: dict[str, tuple[type[Part], type[Stage]]] = {
    "select_answer": (SelectAnswerConfig, SelectAnswer),
    "score_prompt": (ScorePromptConfig, ScorePrompt),
    "check_tools": (CheckToolsConfig, CheckTools),
    "distil": (DistilConfig, Distil),
    "purify": (PurifyConfig, Purify),
    "label": (LabelConfig, Label),
    "decontaminate": (DecontaminateConfig, Decontaminate),
}

# All records before the first decision.
GLOBAL_STAGES: dict[str, tuple[type[Part], type[GlobalStage]]] = {
    "exact": (ExactConfig, Exact),
    "minhash": (MinHashConfig, MinHash),
    "mix": (MixConfig, Mix),
}

READ = "read"  # the pseudo-stage that rejects what cannot be read


@dataclass(frozen=True)
class Step:
    """A stage of a recipe."""

    label: str  # its name; a second one of the name is name-2
    options: Any  # a Part, as JSON-able as all of them

    @property
    def is_global(self) -> bool:
        """Does it see all records before it decides?"""
        return self.options.stage in GLOBAL_STAGES


@dataclass(frozen=True)
class Segment:
    """What is done to a shard without looking at the others.

    First the decisions of the global stage `head` (None in the first segment, which reads), then
    the steps, then summaries for the global stage `tail` (None in the last segment).
    """

    number: int
    head: Step | None
    steps: tuple[Step, ...]
    tail: Step | None

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{self.number:02d}-{self.labels[0]}"

    @property
    def labels(self) -> list[str]:
        """Whose counts it makes, in order."""
        first = READ if self.head is None else self.head.label
        return [first, *(step.label for step in self.steps)]


def segments_of(config: CurateConfig) -> list[Segment]:
    """The chain cut at its global stages."""
    segments: list[Segment] = []
    head, steps = None, []
    for step in label_steps(config.stages):
        if step.is_global:
            segments.append(Segment(len(segments), head, tuple(steps), step))
            head, steps = step, []
        else:
            steps.append(step)
    return [*segments, Segment(len(segments), head, tuple(steps), None)]


def label_steps(stages: Iterable[Any]) -> list[Step]:
    """Stages' options with labels that tell them apart."""
    steps: list[Step] = []
    for options in stages:
        before = sum(step.options.stage == options.stage for step in steps)
        label = options.stage if before == 0 else f"{options.stage}-{before + 1}"
        steps.append(Step(label, options))
    return steps


def stage_class(name: str) -> type:
    """The class that runs a stage."""
    return {**STAGES, **GLOBAL_STAGES}[name][1]


def make_stage(options: Any) -> Any:
    """The stage with these options; one a process, since it may hold much."""
    return _make(options.stage, options.model_dump_json())


@cache
def _make(name: str, options: str) -> Any:
    options_class, stage = {**STAGES, **GLOBAL_STAGES}[name]
    return stage(options_class.model_validate_json(options))
