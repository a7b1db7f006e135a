"""Phrases that give a task away, so that no statistics are needed.

Few on purpose: a rule stands here when `tools/measure_taxonomy.py` finds it right nearly always.
"""

import re
from typing import NamedTuple

LANGUAGE = (
    r"(?:python|java|javascript|typescript|c\+\+|c#|rust|golang|go|ruby|php|perl|swift|kotlin|scala"
    r"|haskell|matlab|bash|shell|sql|html|css|r)"
)
CODE = r"(?:code|program|function|method|script|class|snippet|algorithm|query)"


class Rule(NamedTuple):
    name: str
    pattern: re.Pattern[str]
    path: str


def _rule(name: str, pattern: str, path: str) -> Rule:
    return Rule(name, re.compile(pattern, re.IGNORECASE | re.DOTALL), path)


# The first that is found counts: what is asked about code comes before what code it is.
RULES = (
    _rule(
        "translate code",
        rf"\b(?:translate|convert|port|rewrite)\b[^.\n]{{0,80}}\b(?:from\s+{LANGUAGE}\s+)?(?:in|in)?to\s+"
        rf"{LANGUAGE}\b(?=[^.\n]{{0,40}}(?:[:.]|$|{CODE}))",
        "code/translation",
    ),
    _rule("write tests", r"\bwrite\b[^.\n]{0,40}\b(?:unit tests?|test cases?)\b", "code/testing"),
    _rule(
        "fix code",
        rf"\b(?:fix|debug)\b[^.\n]{{0,40}}\b(?:bugs?|errors?|mistakes?|{CODE})\b[^.\n]{{0,40}}",
        "code/repair",
    ),
    _rule("refactor", rf"\brefactor\b[^.\n]{{0,60}}\b{CODE}\b", "code/refactoring"),
    _rule(
        "optimize code",
        rf"\b(?:optimi[sz]e|speed up)\b[^.\n]{{0,40}}\b{CODE}\b",
        "code/optimization",
    ),
    _rule("review code", r"\b(?:review|critique)\b[^.\n]{0,30}\bcode\b", "code/review"),
    _rule(
        "predict output",
        r"\bwhat (?:is|will be|does)\b[^.?\n]{0,60}\b(?:output|print(?:ed)?)\b[^.?\n]{0,40}\?.*"
        r"(?:```|print|=)",
        "code/output_prediction",
    ),
    _rule(
        "explain code",
        rf"\bexplain\b[^.\n]{{0,40}}\b(?:this|the following|given|below)\b[^.\n]{{0,20}}\b{CODE}\b",
        "code/explanation",
    ),
    _rule(
        "SQL",
        r"\b(?:write|create|generate|construct)\b[^.\n]{0,40}\bSQL\b|"
        r"\bSQL (?:query|statement|command)\b[^.\n]{0,40}\bto\b",
        "code/sql_and_data",
    ),
    _rule(
        "signature with docstring",
        r"^\s*(?:(?:from|import)\s[^\n]+\n\s*)*(?:def|class)\s\w+.*(?:\"\"\"|''')",
        "code/completion",
    ),
    _rule(
        "write code",
        rf"\b(?:write|implement|create|develop|generate|build|design)\b[^.\n]{{0,40}}"
        rf"(?:\b{LANGUAGE}(?<!\br)(?<!\bgo)\s+{CODE}\b"
        r"|\b(?:function|program|script)\b (?:to|that|which|for|in)\b)",
        "code/generation",
    ),
    _rule(
        "read input, write output",
        r"(?:\binput\b.*\bthe first line\b.*\boutput\b|\btest cases?\b.*\bprint\b)",
        "code/generation",
    ),
    _rule(
        "编写程序",
        r"(?:编写|写一?[个段]|实现一?[个段])[^。，\n]{0,12}(?:程序|函数|算法|脚本|代码)",
        "code/generation",
    ),
)


def find_rule(text: str) -> Rule | None:
    """The first rule whose phrase stands in the first 4000 characters of `text`."""
    head = text[:4000]
    return next((rule for rule in RULES if rule.pattern.search(head)), None)
