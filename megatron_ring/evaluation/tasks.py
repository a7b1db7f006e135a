"""All benchmarks. One of short answers is a line of SHORT and a function that reads its rows."""

import hashlib
import random
import re
from collections.abc import Callable
from pathlib import PurePosixPath
from typing import Any

from megatron_ring.config.base import ConfigError
from megatron_ring.config.evaluation import EvaluationConfig, TaskConfig
from megatron_ring.curation.collect.answers import behind_hashes
from megatron_ring.evaluation.bfcl import BFCL
from megatron_ring.evaluation.chats import ChatSamples
from megatron_ring.evaluation.coding import LiveCodeBench
from megatron_ring.evaluation.data import Hub, Row, Source
from megatron_ring.evaluation.ifeval import IFEval
from megatron_ring.evaluation.maths import LETTERS, Question, ShortAnswers
from megatron_ring.evaluation.means import Means
from megatron_ring.evaluation.task import Average, Item, Task
from megatron_ring.evaluation.teval import TEval

# The categories of MMLU's subjects, by their subcategories (hendrycks/test, categories.py).
MMLU_CATEGORIES = {
    "STEM": "abstract_algebra astronomy college_biology college_chemistry college_computer_science "
    "college_mathematics college_physics computer_security conceptual_physics "
    "electrical_engineering elementary_mathematics high_school_biology high_school_chemistry "
    "high_school_computer_science high_school_mathematics high_school_physics "
    "high_school_statistics machine_learning",
    "humanities": "formal_logic high_school_european_history high_school_us_history "
    "high_school_world_history international_law jurisprudence logical_fallacies moral_disputes "
    "moral_scenarios philosophy prehistory professional_law world_religions",
    "social sciences": "econometrics high_school_geography high_school_government_and_politics "
    "high_school_macroeconomics high_school_microeconomics high_school_psychology human_sexuality "
    "professional_psychology public_relations security_studies sociology us_foreign_policy",
}
# MathBench's application, theory and overall numbers: of stages alike, then of the two alike
# (opencompass, configs/summarizers/groups/mathbench_v1_2024.py; there of both languages).
APPLIED = ("college", "high", "middle", "primary", "arithmetic")
THEORY = ("college_knowledge", "high_knowledge", "middle_knowledge", "primary_knowledge")
TOLD = re.compile(r"(answers?): *(?=[^\n]+\Z)", re.IGNORECASE)  # before an answer
MMLU_COLUMNS = ("question", "A", "B", "C", "D", "answer")
GPQA_COLUMNS = ("Correct Answer", "Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3")


def gsm8k(path: str, number: int, row: Row) -> Question:
    """The number behind #### of its solution."""
    gold = behind_hashes(row["answer"])
    if gold is None:
        raise ValueError("nothing behind #### in its answer")
    return Question(id=str(number), text=row["question"], gold=gold)


def math500(path: str, number: int, row: Row) -> Question:
    """With subject and level."""
    facts = {key: str(row[key]) for key in ("subject", "level") if key in row}
    name = row.get("unique_id", number)
    return Question(id=str(name), text=row["problem"], gold=row["answer"], facts=facts)


def aime24(path: str, number: int, row: Row) -> Question:
    """Integers from 0 to 999, some of them written with leading zeros."""
    gold = str(int(row["answer"]))
    return Question(id=str(row.get("id", number)), text=row["problem"], gold=gold)


def gaokao2023en(path: str, number: int, row: Row) -> Question:
    """Of Qwen2.5-Math's copy, where two rows have their answer at the end of the question."""
    text, gold = row["question"], row["answer"].strip()
    if not gold:
        text, _, gold = TOLD.split(text, maxsplit=1)
    return Question(id=f"{number}/{row.get('source', '')}", text=text, gold=gold.strip())


def olympiadbench(path: str, number: int, row: Row) -> Question:
    """Open questions in English without pictures; several answers are one text with commas."""
    golds = row["final_answer"]
    golds = [golds] if isinstance(golds, str) else golds
    gold = ", ".join(str(one).replace("$", "").strip() for one in golds)
    unit = f" The unit of the answer is {row['unit']}; leave it out." if row.get("unit") else ""
    context = f"{row['context']}\n\n" if row.get("context") else ""
    try:
        tolerance = float(row["error"]) if row.get("error") else None
    except ValueError:  # a tolerance for each of several answers
        tolerance = None
    facts = {key: str(row[key]) for key in ("subject", "subfield") if row.get(key)}
    return Question(
        id=str(row.get("id", number)),
        text=f"{context}{row['question']}{unit}",
        gold=gold,
        tolerance=tolerance,
        facts=facts,
    )


def mathbench(path: str, number: int, row: Row) -> Question:
    """The English half; its files are those of a stage (primary ... college_knowledge).

    Each question of one choice is asked once. The authors' main number, circular evaluation, asks
    it with four orders of its options and wants all four right; it is lower.
    """
    stage = PurePosixPath(path).parent.name or PurePosixPath(path).stem
    facts = {key: str(row[key]) for key in ("topic",) if row.get(key)} | {"stage": stage}
    options = tuple(map(str, row.get("options") or ()))
    name = f"{path.removesuffix('.jsonl')}/{number}"
    gold = str(row["answer"]).strip()
    return Question(id=name, text=row["question"], gold=gold, options=options, facts=facts)


def mmlu(path: str, number: int, row: Row) -> Question:
    """Of the authors' archive (a CSV file a subject), or of the hub."""
    if "choices" in row:
        subject, options, gold = row["subject"], row["choices"], LETTERS[row["answer"]]
    else:
        subject = PurePosixPath(path).stem.removesuffix("_test")
        options, gold = [row[letter] for letter in "ABCD"], row["answer"].strip()
    name, facts = f"{subject}/{number}", {"subject": subject, "category": mmlu_category(subject)}
    return Question(id=name, text=row["question"], gold=gold, options=options, facts=facts)


def mmlu_category(subject: str) -> str:
    """One of four; the authors call the last "other (business, health, misc.)"."""
    named = subject.replace(" ", "_")
    return next((name for name, some in MMLU_CATEGORIES.items() if named in some.split()), "other")


def gpqa_diamond(path: str, number: int, row: Row) -> Question:
    """Four options in an order that the question's text alone decides, the same in all runs."""
    options = [row[column].strip() for column in GPQA_COLUMNS]
    right = options[0]
    seed = hashlib.sha256(row["Question"].encode()).digest()
    random.Random(int.from_bytes(seed[:8])).shuffle(options)
    columns = {"domain": "High-level domain", "subdomain": "Subdomain"}
    facts = {fact: row[column] for fact, column in columns.items() if row.get(column)}
    return Question(
        id=str(row.get("Record ID", number)),
        text=row["Question"].strip(),
        gold=LETTERS[options.index(right)],
        options=options,
        facts=facts,
    )


GPQA_HUB = Hub("Idavidrein/gpqa", "train", "gpqa_diamond")
GPQA_ADVICE = (
    "the path of gpqa_diamond.csv. Its authors ask that no question be shown in the open, so it "
    "is downloaded by hand, once you agreed to that; or set tasks.gpqa_diamond.hub to "
    "Idavidrein/gpqa, where your login of the hub may read it"
)
MATHBENCH_ADVICE = "the folder or .zip of MathBench's release, which the hub does not have"
LCB_ADVICE = (
    "a release file of livecodebench/code_generation_lite, test.jsonl to test6.jsonl, which hold "
    "the tests"
)
# name: title, samples, version of prompt and rules, where its data are, how a row is read
SHORT: dict[str, tuple[str, int, str, Source, Callable[[str, int, Row], Question]]] = {
    "aime24": ("AIME24", 64, "1", Source(Hub("HuggingFaceH4/aime_2024", "train")), aime24),
    "math500": ("MATH-500", 1, "1", Source(Hub("HuggingFaceH4/MATH-500")), math500),
    "gpqa_diamond": ("GPQA Diamond", 1, "1", Source(GPQA_HUB, advice=GPQA_ADVICE), gpqa_diamond),
    "olympiadbench": (
        "OlympiadBench",
        1,
        "1",
        Source(Hub("Hothan/OlympiadBench", "train", "OE_TO_maths_en_COMP")),
        olympiadbench,
    ),
    "mathbench": (
        "MathBench",
        1,
        "1",
        Source(inside=r"_en\.jsonl$", advice=MATHBENCH_ADVICE),
        mathbench,
    ),
    "gaokao2023en": (
        "GAOKAO2023en",
        1,
        "1",
        Source(Hub("MARIO-Math-Reasoning/Gaokao2023-Math-En", "train")),
        gaokao2023en,
    ),
    "gsm8k": ("GSM8K", 1, "1", Source(Hub("openai/gsm8k", subset="main")), gsm8k),
    "mmlu": (
        "MMLU",
        1,
        "1",
        Source(Hub("cais/mmlu", subset="all"), heads=MMLU_COLUMNS, inside="test"),
        mmlu,
    ),
}


AVERAGES: dict[str, dict[str, Average]] = {
    "mathbench": {
        "application": Average(fact="stage", groups=[([stage], 1 / 5) for stage in APPLIED]),
        "theory": Average(fact="stage", groups=[([stage], 1 / 4) for stage in THEORY]),
        "overall": Average(
            fact="stage",
            groups=[([stage], 1 / 10) for stage in APPLIED] + [([one], 1 / 8) for one in THEORY],
        ),
    }
}


def _short(name: str) -> Callable[[TaskConfig, Means], Task]:
    averages = AVERAGES.get(name, {})
    return lambda options, means: ShortAnswers(name, *SHORT[name], options, means, averages)


def _livecodebench(options: TaskConfig, means: Means) -> Task:
    needs = ("question_id", "question_content", "public_test_cases", "private_test_cases")
    source = Source(advice=LCB_ADVICE, needs=needs)
    return LiveCodeBench("livecodebench", "LiveCodeBench", 1, "1", source, options, means)


TASKS: dict[str, Callable[[TaskConfig, Means], Task]] = {
    **{name: _short(name) for name in SHORT},
    "livecodebench": _livecodebench,
    "ifeval": lambda options, means: IFEval(options),
    "bfcl": lambda options, means: BFCL(options),
    "teval": TEval,
}


def make(name: str, options: TaskConfig, means: Means) -> Task:
    """A benchmark; its data are read when it is asked for items."""
    if options.kind == "chats":
        return ChatSamples(name, options)
    if name not in TASKS:
        raise ConfigError(
            f"tasks.{name}: there is no such benchmark; known: {', '.join(TASKS)}. One of your "
            f"own has tasks.{name}.kind=chats"
        )
    return TASKS[name](options, means)


def items_of(task: Task, options: TaskConfig) -> list[Item]:
    """Those that are asked: `limit` of them are drawn by their ids, in the order of the data.

    ValueError where two items have one id.
    """
    items = task.items()
    seen: dict[str, Item] = {}
    for item in items:
        if item.id in seen:
            raise ConfigError(f"tasks.{task.name}: two items have the id {item.id!r}")
        seen[item.id] = item
    if options.limit is None:
        return items
    drawn = sorted(seen, key=lambda one: hashlib.sha256(f"{task.name} {one}".encode()).digest())
    chosen = set(drawn[: options.limit])
    return [item for item in items if item.id in chosen]


def samples_of(task: Task, config: EvaluationConfig) -> int:
    """Answers to each item."""
    return config.tasks[task.name].samples or task.samples


def prompt_of(item: Item, system: str) -> list[dict[str, Any]]:
    """All turns that are sent."""
    first = [{"role": "system", "content": system}] if system else []
    return [*first, *map(dict, item.messages)]
