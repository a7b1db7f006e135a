"""The label stage: what comes before what, what is claimed when, errors in options."""

import copy
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from megatron_ring.config.base import ConfigError
from megatron_ring.config.curation.label import JudgeConfig, LabelConfig, SourceRule
from megatron_ring.curation.label import embedding
from megatron_ring.curation.label.embedding import NearestLabeller
from megatron_ring.curation.label.judge import Verdict
from megatron_ring.curation.label.model import Row
from megatron_ring.curation.label.scores import heads_of
from megatron_ring.curation.label.stage import Label
from megatron_ring.curation.record import Record
from megatron_ring.curation.taxonomy import load_taxonomy

HEADS = heads_of(load_taxonomy())


class Sure:
    """A scorer whose chances are known: so much for one child of a node, the rest for others."""

    def __init__(self, chances: dict[str, float]) -> None:
        self.heads, self.chances = HEADS, chances

    def logits(self, text: str) -> dict[str, np.ndarray]:
        result = {}
        for head, children in HEADS.items():
            left = 1 - sum(p for path, p in self.chances.items() if path in children)
            named = [path for path in children if path in self.chances]
            rest = left / max(len(children) - len(named), 1)
            result[head] = np.log([self.chances.get(path, rest) + 1e-12 for path in children])
        return result


CHANCES = {"math": 0.9, "math/high_school": 0.8, "math/high_school/sequences": 0.6}


def stage(chances: dict[str, float] = CHANCES, **options: object) -> Label:
    made = Label(LabelConfig(**options))
    made.scorer = Sure(chances)
    return made


def record(text: str = "Which number comes next?", **keys: object) -> Record:
    return Record(id="a/1", messages=[{"role": "user", "content": text}], source="a", **keys)


def labels(found: Record) -> dict[str, object]:
    return {key: found[key] for key in ("domain", "level", "topic", "confidence") if key in found}


def test_the_whole_path_when_it_is_sure_enough() -> None:
    found = stage().apply(record())
    assert labels(found) == {
        "domain": "math",
        "level": "high_school",
        "topic": "sequences",
        "confidence": 0.432,  # 0.9 * 0.8 * 0.6
    }
    assert found["extra"]["label"] == {
        "by": "text",
        "steps": {"math": 0.9, "math/high_school": 0.8, "math/high_school/sequences": 0.6},
    }


@pytest.mark.parametrize(
    ("threshold", "of_topics", "said"),
    [
        (0.72, 0.432, {"domain": "math", "level": "high_school", "topic": "sequences"}),
        (0.71, 0.433, {"domain": "math", "level": "high_school", "topic": "others"}),
        (0.73, 0.0, {"domain": "math", "level": "unknown"}),
        (0.91, 0.0, {"domain": "unknown"}),
    ],
)
def test_what_is_not_sure_is_not_claimed(
    threshold: float, of_topics: float, said: dict[str, str]
) -> None:
    found = labels(stage(threshold=threshold, topic_threshold=of_topics).apply(record()))
    assert found == said | {"confidence": 0.432}


def test_the_record_given_is_left_as_it_is() -> None:
    given = record(extra={"subject": "x"}, level="old", seed_ids=["b"])
    before = copy.deepcopy(given)
    found = stage().apply(given)
    assert given == before
    assert found["extra"]["subject"] == "x" and found["seed_ids"] == ["b"]
    assert found["level"] == "high_school"
    assert stage().apply(given) == found


def test_labels_that_are_there_stay_unless_told() -> None:
    given = record(domain="biology", topic="botany")
    assert stage().apply(given) is given
    found = stage({"physics": 0.9}, threshold=0.6, overwrite=True).apply(given)
    assert found["domain"] == "physics" and found["topic"] == "others"


def test_what_the_source_says_comes_first_and_text_fills_the_rest() -> None:
    rules = [
        SourceRule(source="b*", path="code/testing"),
        SourceRule(
            source="a",
            column="extra.meta.subject",
            paths={"7": "biology/botany", "p": "math/primary"},
        ),
        SourceRule(source="*", path="math/high_school"),
    ]
    made = stage(sources=rules)
    whole = made.apply(record(extra={"meta": {"subject": 7}}))
    assert labels(whole) == {"domain": "biology", "topic": "botany", "confidence": 1.0}
    assert whole["extra"]["label"] == {"by": "source"}
    # A value that no rule names, and no such column: the next rule that knows a path.
    for extra in ({"meta": {"subject": "q"}}, {"meta": "q"}, {}):
        part = made.apply(record("Write a program that sorts.", extra=extra))
        assert labels(part) == {
            "domain": "math",
            "level": "high_school",
            "topic": "sequences",
            "confidence": 0.6,
        }
        assert part["extra"]["label"]["by"] == "source"
    assert made.apply(record() | {"source": "bench"})["topic"] == "testing"


def test_rules_come_before_text() -> None:
    text = "Write unit tests for the function below."
    found = stage().apply(record(text))
    assert labels(found) == {"domain": "code", "topic": "testing", "confidence": 1.0}
    assert found["extra"]["label"] == {"by": "rule: write tests"}
    assert stage(rules=False).apply(record(text))["domain"] == "math"


class Said:
    """A judge that always says the same."""

    def __init__(self, verdict: Verdict, below: float = 0.5) -> None:
        self.options = JudgeConfig(endpoint="http://x/v1", model="m", below=below)
        self.verdict, self.asked = verdict, 0

    def ask(self, text: str) -> Verdict:
        self.asked += 1
        return self.verdict


def judged(verdict: Verdict, below: float = 0.5, **options: object) -> tuple[Record, int]:
    made = stage(**options)
    made.judge = Said(verdict, below)
    return made.apply(record()), made.judge.asked


def test_a_judge_decides_what_is_doubtful() -> None:
    found, asked = judged(Verdict("physics/optics", 0.75))
    assert labels(found) == {"domain": "physics", "topic": "optics", "confidence": 0.75}
    assert found["extra"]["label"] == {"by": "judge", "text_said": "math/high_school/sequences"}
    assert asked == 1
    found, asked = judged(Verdict("physics/optics", 0.75), below=0.4)
    assert (found["domain"], asked) == ("math", 0)


def test_a_judge_whose_answer_is_none_changes_nothing_but_is_seen() -> None:
    plain = stage().apply(record())
    found, _ = judged(Verdict(problem="unknown path", detail="math/x"))
    assert labels(found) == labels(plain)
    assert found["extra"]["label"] == plain["extra"]["label"] | {
        "judge": "unknown path",
        "judge_said": "math/x",
    }


def test_a_judge_does_not_overrule_the_source() -> None:
    rules = [SourceRule(source="a", path="math")]
    found, asked = judged(Verdict("physics/optics", 1.0), sources=rules)
    assert asked == 1 and found["domain"] == "math"
    assert found["extra"]["label"]["judge"] == "physics/optics is not within math"
    found, _ = judged(Verdict("math/primary/algebra", 0.9), sources=rules)
    assert found["level"] == "primary" and found["confidence"] == 0.9


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"sources": [{"source": "a"}]}, "source='a' has neither path nor paths; give it one"),
        (
            {"sources": [{"source": "a", "path": "math", "column": "x"}]},
            "column='x' with 0 paths; the two come together",
        ),
        ({"method": "embeddings"}, "method=embeddings with embedding_model=None"),
        ({"embedding_model": "m"}, "method=ngrams with embedding_model=m"),
    ],
)
def test_options_that_do_not_go_together(options: dict[str, object], complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        LabelConfig(**options)


def test_paths_that_the_taxonomy_does_not_know() -> None:
    options = LabelConfig(sources=[{"source": "a", "column": "c", "paths": {"x": "math/prime"}}])
    with pytest.raises(ConfigError, match=r"sources\[0\] \(a\): .*no 'prime' under math; there"):
        Label(options)


def unit(*at: int) -> list[float]:
    return [1.0 if i in at else 0.0 for i in range(4)]


def test_the_nearest_prototype_by_hand() -> None:
    heads = {"": ("sea", "land"), "sea": ("sea/fish", "sea/ship")}
    space = {"cod": unit(0), "sail": unit(1), "hill": unit(2), "query": [0.6, 0.0, 0.8, 0.0]}

    def encode(texts: list[str]) -> np.ndarray:
        return np.asarray([space[text] for text in texts])

    rows = [Row("cod", ("sea/fish",)), Row("sail", ("sea/ship",)), Row("hill", ("land",))]
    logits = NearestLabeller(heads, rows, encode).logits("query")
    # The sea is midway between cod and sail: cosines 0.6 / sqrt(2) and 0.8; 25 is the sharpness.
    assert logits[""] == pytest.approx([25 * 0.6 / 2**0.5, 25 * 0.8])
    assert logits["sea"] == pytest.approx([25 * 0.6, 0.0])
    with pytest.raises(ConfigError, match="nothing is known of sea/ship: it has neither words"):
        NearestLabeller(heads, rows[:1] + rows[2:], encode)


def test_embeddings_as_the_method(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # A model of four dimensions: what a text has of the words light, cell, loop; and a constant.
    def encode(texts: list[str]) -> np.ndarray:
        words = ("lens", "membrane", "function")
        return np.asarray([[*(text.count(word) for word in words), 0.1] for text in texts])

    monkeypatch.setattr(embedding, "load_encoder", lambda folder: encode)
    options = {"method": "embeddings", "embedding_model": tmp_path}
    made = Label(LabelConfig(**options, threshold=0, topic_threshold=0))
    assert made.apply(record("a lens and a lens"))["topic"] == "optics"


def test_embeddings_without_a_model(tmp_path: Path) -> None:
    options = LabelConfig(method="embeddings", embedding_model=tmp_path / "m")
    with pytest.raises(ConfigError, match="embedding_model=.*m is no folder of a model"):
        Label(options)
