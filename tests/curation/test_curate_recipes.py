"""The recipes in configs/curate hold together, with the report's numbers, and make a mix."""

import json
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from megatron_ring.config.base import Part
from megatron_ring.config.curation import CurateConfig
from megatron_ring.config.curation.collect import (
    CheckToolsConfig,
    ScorePromptConfig,
    SelectAnswerConfig,
    SourceConfig,
    Sources,
)
from megatron_ring.config.curation.mix import MixConfig
from megatron_ring.config.loading import build, load
from megatron_ring.curation.collect.adapt import complete
from megatron_ring.curation.collect.prompts import ScorePrompt
from megatron_ring.curation.collect.select import SelectAnswer
from megatron_ring.curation.collect.tools import CheckTools
from megatron_ring.curation.mix import requested, write_mix
from megatron_ring.curation.record import Record, Rejection
from megatron_ring.curation.run import try_out
from tests.curation.runs import read_source

FOLDER = Path(__file__).parents[2] / "configs" / "curate"
SOURCES = sorted((FOLDER / "sources").glob("*.yaml"))
OURS = {
    "select_answer": (SelectAnswerConfig, SelectAnswer),
    "score_prompt": (ScorePromptConfig, ScorePrompt),
    "check_tools": (CheckToolsConfig, CheckTools),
}


class Recipe(Part):
    """The part of a recipe that this test knows."""

    sources: Sources


def sources_of(*names: str, data: str = "d") -> list[SourceConfig]:
    files = [OmegaConf.load(FOLDER / "sources" / f"{name}.yaml") for name in names]
    tree = OmegaConf.merge(*files, {"data": data})
    resolved = OmegaConf.to_container(tree, resolve=True)
    return build(Recipe, {"sources": resolved["sources"]}).sources


def stages_of(recipe: str) -> list[dict[str, Any]]:
    tree = OmegaConf.merge(OmegaConf.load(FOLDER / f"{recipe}.yaml"), {"fingerprints": "f"})
    return OmegaConf.to_container(tree, resolve=True)["stages"]


def mix_of(recipe: str) -> MixConfig:
    *_, last = stages_of(recipe)
    return build(MixConfig, last)


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: file.stem)
def test_every_source_states_kind_and_licence_and_no_place(file: Path) -> None:
    for source in sources_of(file.stem):
        if source.set is not None:
            source = complete(source)
        assert source.constants["kind"] in ("reasoning", "instruction", "tools"), source.name
        assert source.licence, source.name
        assert source.hub or source.path.startswith("d/"), source.name
        assert source.hub or source.revision, source.name


def test_source_files_merge_and_names_differ() -> None:
    names = [source.name for file in SOURCES for source in sources_of(file.stem)]
    assert len(set(names)) == len(names) >= 30
    merged = sources_of(*(file.stem for file in SOURCES))
    assert [source.name for source in merged] == names


@pytest.mark.parametrize("recipe", ["stage1", "stage2", "local_stage1", "local_stage2"])
def test_every_stage_of_ours_builds(recipe: str) -> None:
    names = [stage["stage"] for stage in stages_of(recipe)]
    others = {"exact", "minhash", "purify", "label", "decontaminate", "mix"}
    assert set(names) <= set(OURS) | others and names[-1] == "mix"
    # What is chosen from must be chosen before anything looks at it.
    assert names[0] == "select_answer"
    for stage in stages_of(recipe):
        if stage["stage"] in OURS:
            OURS[stage["stage"]][0].model_validate(stage)
    mix_of(recipe)


def test_the_queue_of_a_mix_is_distilled(tmp_path: Path) -> None:
    """As far as the first question: no model is there to be asked."""
    turns = [{"role": "user", "content": "What is 2 + 2?"}]
    prompt = {"id": "gsm8k/7", "messages": turns, "answer": "4", "domain": "math"}
    (tmp_path / "queue.jsonl").write_text(json.dumps(prompt) + "\n")
    url = "http://localhost:8000/v1"
    given = [f"data={tmp_path}", f"endpoint={url}", "fingerprints=f", "output=o"]
    recipe = load(CurateConfig, [str(FOLDER / "distil.yaml")], given)
    distil, *others = recipe.stages
    assert [one.stage for one in others] == ["purify", "decontaminate"]
    # Benchmarks' fingerprints are the user's own, and not here.
    (tried,) = try_out(recipe.model_copy(update={"stages": [distil, others[0]]}))
    assert tried.fate.startswith(f"distil would ask deepseek-ai/DeepSeek-R1 at {url} for 1 of at")
    assert tried.before is not None and tried.before["answer"] == "4"


def test_the_reports_numbers() -> None:
    first = requested(mix_of("stage1"))
    assert sum(first.values()) == 2_590_000
    by_name = {name: quota.take for name, quota in mix_of("stage1").quotas.items()}
    shares = [round(by_name[name] / 25_900, 2) for name in ("math", "code", "science")]
    assert shares == [84.2, 8.33, 6.1]  # Figure 5, in percent
    second = requested(mix_of("stage2"))
    assert second == {
        "tools": 240_000,
        "instructions": 197_000,
        "code": 195_000,
        "math": 400_000,
        "science": 50_000,
    }
    assert sum(second[name] for name in ("code", "math", "science")) == 645_000
    assert sum(second[name] for name in ("tools", "instructions")) == 437_000
    for stage in ("stage1", "stage2"):
        assert mix_of(f"local_{stage}").quotas == mix_of(stage).quotas


def lines(file: Path) -> list[Any]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


CORPUS = {
    "gsm8k/train.jsonl": {
        "question": "Ann has 2 + 3 eggs. How many?",
        "answer": "<<2+3=5>>5.\n#### 5",
    },
    "math_hendrycks_test5000/math_test_5000.jsonl": {
        "problem": "Compute $\\frac{6}{3}$.",
        "level": "Level 1",
        "type": "Prealgebra",
        "solution": "It is $\\boxed{2}$.",
        "idx": 0,
    },
    "carp_en/carp_en_976.jsonl": {
        "content": "$a + a$ equals ____?",
        "answer": "2a",
        "steps": "Add.",
    },
    "college_math/college_math_test.jsonl": {
        "question": "Find the rank of the identity on $R^3$.",
        "answer": "3",
        "license": "CC BY 3.0",
        "data_topic": "college_math.linear_algebra",
    },
    "mbpp/mbpp.jsonl": {
        "text": "Write a function to add.",
        "code": "def add(a, b):\n    return a + b",
        "task_id": 7,
        "test_list": ["assert add(1, 2) == 3", "assert add(0, 0) == 0"],
    },
    "seal_tools/dev.jsonl": {
        "id": "dev-easy-0",
        "query": "Find a fox.",
        "calling": [{"api": "find", "parameters": {"what": "fox"}, "responses": ["API_call_0"]}],
    },
    "seal_tools/tool.jsonl": {
        "api_name": "find",
        "api_description": "finds",
        "parameters": {"what": {"type": "str"}},
        "required": ["what"],
    },
}
ARRAYS = {
    "gaokao_bench/2010-2022_Physics_MCQs.json": {
        "example": [
            {
                "year": "2010",
                "question": "光速是多少？\nA．快",
                "answer": ["A"],
                "analysis": "故选： A。\n",
            }
        ]
    },
    "gpteacher/codegen-instruct.json": [
        {"instruction": "Print one.", "input": "in Python", "response": "print(1)"}
    ],
    "self_instruct_seeds/seed_tasks.jsonl": None,
}


def test_local_sets_become_a_mix(tmp_path: Path) -> None:
    """One row of each of some sets, in the shape they are published in."""
    for name, row in CORPUS.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(json.dumps(row) + "\n", encoding="utf-8")
    for name, rows in ARRAYS.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        seed = {"id": "s", "instruction": "Greet.", "instances": [{"input": "", "output": "Hi."}]}
        (tmp_path / name).write_text(json.dumps(rows or seed), encoding="utf-8")
    stages = [
        OURS[keys["stage"]][1](OURS[keys["stage"]][0].model_validate(keys))
        for keys in stages_of("local_stage2")
        if keys["stage"] in OURS
    ]
    records: list[Record] = []
    wanted = ("gsm8k", "math", "carp", "college_math", "mbpp", "seal_tools")
    wanted += ("gaokao_physics", "gpteacher_code", "self_instruct")
    for source in sources_of("maths", "science", "code", "general", "tools", data=str(tmp_path)):
        for record in read_source(source) if source.name in wanted else ():
            assert not isinstance(record, Rejection), record
            for stage in stages:
                record = stage.apply(record)
                assert not isinstance(record, Rejection), record
            records.append(record)
    assert len(records) == len(wanted)
    report = write_mix(lambda: records, mix_of("local_stage2"), tmp_path / "mix")
    assert {cell.name: cell.taken for cell in report.cells} == {
        "tools": 1,
        "instructions": 1,
        "code": 2,
        "math": 3,
        "science": 1,
    }
    maths = {one["id"]: one for one in lines(tmp_path / "mix" / "math.jsonl")}
    assert maths["gsm8k/1"]["messages"][1]["content"] == "5.\nThe answer is \\boxed{5}."
    assert maths["math/0"]["answer"] == "2" and maths["math/0"]["extra"]["level"] == "Level 1"
    said = maths["carp/1"]["messages"][1]["content"]
    assert said == "Add.\n\nThe answer is $\\boxed{2a}$."
    assert all(one["extra"]["selection"] == ["0: right"] for one in maths.values())
    (science,) = lines(tmp_path / "mix" / "science.jsonl")
    assert science["id"] == "gaokao_physics/2010-2022_Physics_MCQs:1"
    assert science["extra"]["selection"] == ["0: right"]
    code = {one["id"]: one for one in lines(tmp_path / "mix" / "code.jsonl")}
    assert code["mbpp/7"]["messages"][0]["content"] == (
        "Write a function to add.\n\nYour code should pass these tests:\n"
        "assert add(1, 2) == 3\nassert add(0, 0) == 0"
    )
    assert code["mbpp/7"]["messages"][1]["content"].startswith("```python\ndef add")
    (queued,) = lines(tmp_path / "mix" / "queue.jsonl")
    assert queued["id"] == "college_math/1" and queued["licence"] == "CC BY 3.0"
    assert queued["extra"]["prompt_score"]["score"] > 0.5
