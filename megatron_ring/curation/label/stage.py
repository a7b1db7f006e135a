"""The stage that labels: what the source says, then rules, then the text, then a judge if doubtful.

It sets domain, level, topic and confidence of a record, and in extra.label how it came to them. A
record keeps its labels if it has them, unless `overwrite`. Nothing is ever rejected here.
"""

from fnmatch import fnmatchcase
from typing import Any

from megatron_ring.config.base import ConfigError
from megatron_ring.config.curation.label import LabelConfig
from megatron_ring.curation.collect.cells import pick
from megatron_ring.curation.label import embedding, model
from megatron_ring.curation.label.judge import Judge
from megatron_ring.curation.label.rows import load_seeds
from megatron_ring.curation.label.rules import find_rule
from megatron_ring.curation.label.scores import Scorer, Step, descend, heads_of
from megatron_ring.curation.record import Record, prompt_of
from megatron_ring.curation.taxonomy import OTHERS, OWN_FILE, UNKNOWN, Taxonomy, load_taxonomy

LABELS = ("domain", "level", "topic")


class Label:
    """A `Stage`. Pure but for the judge, whose answers `judge.cache` keeps."""

    def __init__(self, options: LabelConfig) -> None:
        self.options = options
        self.taxonomy = load_taxonomy(options.taxonomy or OWN_FILE)
        _check_paths(options, self.taxonomy)
        self.scorer = _scorer(options, self.taxonomy)
        self.judge = Judge(options.judge, self.taxonomy) if options.judge else None

    def apply(self, record: Record) -> Record:
        """The record with its labels."""
        if "domain" in record and not self.options.overwrite:
            return record
        text = prompt_of(record)
        start, by = self._known(record, text)
        steps = descend(self.scorer, text, start)
        sure = _joint(steps)
        how: dict[str, Any] = {"by": by or "text"}
        path, claimed = self._claimed(start, steps)
        if self.judge and sure < self.judge.options.below:
            verdict = self.judge.ask(text)
            # A judge fills what the source or a rule leaves open; it does not overrule them.
            inside = not start or verdict.path == start or verdict.path.startswith(f"{start}/")
            if verdict.problem or not inside:
                how["judge"] = verdict.problem or f"{verdict.path} is not within {start}"
                how |= {"judge_said": verdict.detail} if verdict.detail else {}
            else:
                how |= {"by": "judge", "text_said": steps[-1].path if steps else start}
                path, sure = verdict.path, round(verdict.confidence, 4)
                claimed = self.taxonomy.labels(path)
        if steps and how["by"] != "judge":
            how["steps"] = {step.path: step.probability for step in steps}
        return self._labelled(record, claimed, sure, how)

    def _known(self, record: Record, text: str) -> tuple[str, str]:
        """The path that is settled before the text is weighed, and by what; both may be empty."""
        for rule in self.options.sources:
            if not fnmatchcase(record.get("source", ""), rule.source):
                continue
            value = pick(record, rule.column)
            path = rule.paths.get(str(value), rule.path)
            if path is not None:
                return path, "source"
        rule = find_rule(text) if self.options.rules else None
        # A user's taxonomy need not have the paths of our rules.
        if rule and rule.path in self.taxonomy.nodes:
            return rule.path, f"rule: {rule.name}"
        return "", ""

    def _claimed(self, start: str, steps: list[Step]) -> tuple[str, dict[str, str]]:
        """The path as far as it is sure enough, and labels that say where it is not."""
        path, joint = start, 1.0
        for step in steps:
            joint *= step.probability
            kind = self.taxonomy.nodes[step.path].kind
            topic = kind == "topic"
            if joint < (self.options.topic_threshold if topic else self.options.threshold):
                labels = self.taxonomy.labels(path) if path else {}
                return path, labels | {kind: OTHERS if topic else UNKNOWN}
            path = step.path
        return path, self.taxonomy.labels(path)

    def _labelled(
        self, record: Record, labels: dict[str, str], sure: float, how: dict[str, Any]
    ) -> Record:
        kept = {key: value for key, value in record.items() if key not in LABELS}
        extra = {**record.get("extra", {}), "label": how}
        return Record(**kept, **labels) | {"confidence": sure, "extra": extra}


def _joint(steps: list[Step]) -> float:
    joint = 1.0
    for step in steps:
        joint *= step.probability
    return round(joint, 4)


def _scorer(options: LabelConfig, taxonomy: Taxonomy) -> Scorer:
    heads = heads_of(taxonomy)
    if options.method == "embeddings":
        encode = embedding.load_encoder(options.embedding_model)
        return embedding.NearestLabeller(heads, load_seeds(taxonomy), encode)
    return model.load_labeller(options.labeller or model.OWN_FILE, heads)


def _check_paths(options: LabelConfig, taxonomy: Taxonomy) -> None:
    """ConfigError names the rule whose path the taxonomy does not know."""
    for i, rule in enumerate(options.sources):
        for path in [*([rule.path] if rule.path else []), *rule.paths.values()]:
            try:
                taxonomy.node(path)
            except ValueError as error:
                raise ConfigError(f"sources[{i}] ({rule.source}): {error}") from None
