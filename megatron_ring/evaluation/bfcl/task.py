"""BFCL as a task: items of its files, and a grade from the calls of an answer."""

import re
from collections.abc import Sequence
from typing import Any, ClassVar

from megatron_ring.config.base import ConfigError
from megatron_ring.config.evaluation import TaskConfig
from megatron_ring.evaluation.bfcl.calls import Calls, read_calls
from megatron_ring.evaluation.bfcl.compare import matching_fault, same_name
from megatron_ring.evaluation.bfcl.prompts import tools_of, with_text
from megatron_ring.evaluation.data import Row, Source, rows
from megatron_ring.evaluation.task import Average, Grade, Item
from megatron_ring.think import split

CATEGORIES = (
    "simple_python",
    "simple_java",
    "simple_javascript",
    "multiple",
    "parallel",
    "parallel_multiple",
    "irrelevance",
    "live_simple",
    "live_multiple",
    "live_parallel",
    "live_parallel_multiple",
    "live_irrelevance",
    "live_relevance",
)
# CATEGORY and possible_answer_CATEGORY, or both as the authors name them and in their folders.
NAMED = re.compile(
    rf"(?:^|/)(possible_answer[/_])?(?:BFCL_v\d+_)?({'|'.join(CATEGORIES)})\.jsonl?(?:\.gz)?$"
)
SOURCE = Source(
    inside=NAMED.pattern,
    advice="the folder or .zip of BFCL's data: BFCL_v4_CATEGORY.json and possible_answer of "
    "ShishirPatil/gorilla, bfcl_eval/data (or PyPI's bfcl-eval)",
    needs=("id",),
)
SIMPLE = ("simple_python", "simple_java", "simple_javascript")
LIVE_CALLS = tuple(f"live_{kind}" for kind in ("simple", "multiple", "parallel"))
LIVE_CALLS += ("live_parallel_multiple",)
# Numbers of the leaderboard of v2 (gorilla, commit 30124c43 of 2024-08-19,
# eval_checker/eval_runner_helper.py), whose executed categories are no part of this.
NON_LIVE_AST = [
    *(([name], 1 / 12) for name in SIMPLE),
    *(([name], 1 / 4) for name in ("multiple", "parallel", "parallel_multiple")),
]
OVERALL = [
    *(([name], 1 / 36) for name in SIMPLE),
    (["live_simple"], 1 / 12),
    *(
        ([f"{live}{kind}"], 1 / 12)
        for kind in ("multiple", "parallel", "parallel_multiple", "irrelevance")
        for live in ("", "live_")
    ),
    (["live_relevance"], 1 / 6),
]


class BFCL:
    """An answer is right when its calls are a possible answer's, in any order.

    In irrelevance it is right when it says without a call that none fits, in relevance when it
    calls any function that was offered. The executed categories of v1 are no part of it.
    """

    name = "bfcl"
    title = "BFCL v2"
    samples = 1
    # non_live_ast: "AST summary"; of categories alike, the simple ones as one. live_ast, live:
    # "AST summary" and "overall accuracy"; of items. overall: "total overall accuracy" without the
    # executed categories; of simple, multiple, parallel, parallel_multiple, irrelevance, relevance
    # alike, each half live where it is both.
    averages: ClassVar[dict[str, Average]] = {
        "non_live_ast": Average(fact="category", groups=NON_LIVE_AST),
        "live_ast": Average(fact="category", groups=[(LIVE_CALLS, 1.0)]),
        "live": Average(
            fact="category", groups=[((*LIVE_CALLS, "live_irrelevance", "live_relevance"), 1.0)]
        ),
        "overall": Average(fact="category", groups=OVERALL),
    }

    def __init__(
        self, options: TaskConfig, as_tools: bool = True, categories: Sequence[str] = CATEGORIES
    ) -> None:
        unknown = [name for name in categories if name not in CATEGORIES]
        if unknown:
            raise ConfigError(
                f"bfcl categories {', '.join(unknown)}: not known; known: {', '.join(CATEGORIES)}"
            )
        self.options, self.as_tools, self.categories = options, as_tools, categories
        self.version = "1-tools" if as_tools else "1-text"

    def items(self) -> list[Item]:
        """Items in the order of categories and files. ConfigError: data.rows, or no answer."""
        found: dict[tuple[str, bool], list[Row]] = {}
        for path, row in rows(self.name, self.options, SOURCE):
            named = NAMED.search(path)
            if named is not None:
                found.setdefault((named[2], bool(named[1])), []).append(row)
        return [item for category in self.categories for item in self._of(category, found)]

    def grade(self, item: Item, text: str) -> Grade:
        """1 for the right decision and calls.

        Verdicts: right; wrong (calls, and others than wanted), called (and should not),
        not_called (and should), unreadable (no call can be read, and it is no refusal in plain
        words either), no_answer. The thought is no part of the answer.
        """
        answer = split(text).answer.strip()
        gold = item.gold
        names = [function["name"] for function in gold["functions"]]
        read = read_calls(answer, gold["language"], names)
        verdict, detail = _judge(read, gold, names)
        return Grade(
            score=float(verdict == "right"), verdict=verdict, extracted=answer, detail=detail
        )

    def _of(self, category: str, found: dict[tuple[str, bool], list[Row]]) -> list[Item]:
        given = f"tasks.bfcl.file={self.options.file}"
        wants_answers = "relevance" not in category
        for is_answer in (False, True)[: 1 + wants_answers]:
            if (category, is_answer) not in found:
                what = f"{'possible answers' if is_answer else 'items'} of {category}"
                raise ConfigError(f"{given}: no {what}; wanted is {SOURCE.advice}")
        listed, answered = found[category, False], found.get((category, True), [])
        for part, needs in ((listed, ("question", "function")), (answered, ("ground_truth",))):
            for row in part:
                if missing := [key for key in needs if key not in row]:
                    raise ConfigError(f"{given}: {row['id']} has no {', '.join(missing)}")
        answers = {row["id"]: row["ground_truth"] for row in answered}
        if wants_answers and (lacking := [r["id"] for r in listed if r["id"] not in answers]):
            raise ConfigError(f"{given}: {category}: no possible answer for {lacking[0]}")
        return [self._item(row, category, answers.get(row["id"], [])) for row in listed]

    def _item(self, row: Row, category: str, answers: list[Any]) -> Item:
        language = category.removeprefix("simple_")
        language = language if language in ("java", "javascript") else "python"
        wants = "calls"
        if "relevance" in category:
            wants = "nothing" if "irrelevance" in category else "any_call"
        functions, messages = row["function"], row["question"][0]
        names = {function["name"] for function in functions}
        strange = [name for answer in answers for name in answer if name not in names]
        if strange:
            raise ConfigError(
                f"tasks.bfcl: the possible answer of {row['id']} calls {strange[0]}, not offered"
            )
        as_text = [] if self.as_tools else with_text(messages, functions, language)
        gold = {"wants": wants, "answers": answers, "functions": functions, "language": language}
        return Item(
            id=row["id"],
            messages=as_text or messages,
            gold=gold,
            facts={"category": category},
            tools=tools_of(functions, language) if self.as_tools else (),
        )


def _judge(read: Calls, gold: dict[str, Any], names: list[str]) -> tuple[str, str]:
    """Verdict and what the grader saw."""
    if read.kind in ("silent", "unreadable"):
        return {"silent": "no_answer"}.get(read.kind, read.kind), read.fault
    made = ", ".join(call.name for call in read.made)
    if gold["wants"] == "nothing":
        return ("right", "") if read.kind == "none" else ("called", made)
    if read.kind == "none":
        return "not_called", ""
    if gold["wants"] == "any_call":
        strange = [c.name for c in read.made if not any(same_name(c.name, n) for n in names)]
        return ("wrong", f"{strange[0]} is not offered") if strange else ("right", made)
    fault = matching_fault(read.made, gold["answers"], gold["functions"], gold["language"])
    return ("wrong", fault) if fault else ("right", made)
