"""Purification: labelled cases, what each rule says of a plain example, options, hard inputs."""

import json
import random
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from megatron_ring.config.curation.purify import PurifyConfig
from megatron_ring.curation.purify import Purify
from megatron_ring.curation.purify.latex import Scanner
from megatron_ring.curation.purify.mathematics import (
    INNER_ENVIRONMENTS,
    TOP_ENVIRONMENTS,
    formulas,
)
from megatron_ring.curation.purify.purify import FAMILIES, RULES
from megatron_ring.curation.purify.repetition import GRAM, stretches
from megatron_ring.curation.record import Rejection

GOLDEN = Path(__file__).parent / "golden" / "purify_cases.jsonl"
CASES = [json.loads(line) for line in GOLDEN.read_text(encoding="utf-8").splitlines()]


def record(response: str | None, prompt: str = "q", reason: str | None = None) -> dict[str, Any]:
    turns = [{"role": "user", "content": prompt}]
    turns += [{"role": "assistant", "content": response}] if response is not None else []
    card = {"card": {"finish_reason": reason}} if reason else {}
    return {"id": "a/0", "messages": turns} | card


def found(response: str | None, prompt: str = "q", **options: Any) -> dict[str, str]:
    stage = Purify(PurifyConfig.model_validate(options))
    return {one.reason: one.evidence for one in stage.findings(record(response, prompt))}


def scores(cases: list[dict[str, Any]], family: str, said: dict[str, set[str]]) -> Counter[str]:
    """Right and wrong verdicts of `family`, over its own cases and those of all others."""
    counts: Counter[str] = Counter()
    for case in cases:
        if family not in case.get("unscored", []):
            truth = case["label"] and case["rule"] == family
            counts[f"{'true' if truth == (family in said[case['id']]) else 'false'} {truth}"] += 1
    return counts


def test_labelled_cases(capsys: pytest.CaptureFixture[str]) -> None:
    stage = Purify(PurifyConfig())
    said = {}
    for case in CASES:
        item = record(case["response"], case["prompt"], case.get("finish_reason"))
        said[case["id"]] = {one.reason.split("_")[0] for one in stage.findings(item)}
    wrong = []
    with capsys.disabled():
        print("\nrule family   part       cases  precision  recall")
        for family in FAMILIES:
            for part, held in (
                ("all", (True, False)),
                ("tuned on", (False,)),
                ("held out", (True,)),
            ):
                cases = [case for case in CASES if case["held_out"] in held]
                counts = scores(cases, family, said)
                hits = counts["true True"]
                # A positive that is missed counts as "false True", an alarm as "false False".
                precision = hits / (hits + counts["false False"])
                recall = hits / (hits + counts["false True"])
                own = sum(case["rule"] == family for case in cases)
                print(f"{family:13} {part:9} {own:6} {precision:10.3f} {recall:7.3f}")
                if part == "all" and min(precision, recall) < 0.95:
                    wrong.append((family, precision, recall))
    assert not wrong


def test_labelled_cases_cover_what_was_promised() -> None:
    assert len(CASES) >= 300 and len({case["id"] for case in CASES}) == len(CASES)
    kinds = Counter((case["rule"], case["kind"], case["language"]) for case in CASES)
    for family in FAMILIES:
        for kind in ("clear", "borderline", "clean look-alike"):
            for language in ("en", "zh"):
                assert kinds[family, kind, language] >= 1, (family, kind, language)
    assert 0.3 < sum(case["held_out"] for case in CASES) / len(CASES) < 0.36


LOOP = "We multiply both sides by the common denominator of these fractions. "
EXAMPLES = [
    ("repetition_characters", "q", "It grows" + "!" * 128, "'!' 128 times in a row, at most 127"),
    (
        "repetition_loop",
        "q",
        "First\n" + LOOP * 5 + "Done.",
        "5 times, 60 tokens: We multiply both sides by the common denominator of these fractions .",
    ),
    (
        "repetition_counted_loop",
        "q",
        "".join(
            f"Now I begin again from the start in case of an error, which is try {n}, but no. "
            for n in range(9)
        ),
        "9 times, 189 tokens: "
        "Now I begin again from the start in case of an error , which is try 0 , but no .",
    ),
    (
        "repetition_sentences",
        "q",
        "".join(f"It is {w} today. The answer must be an even number. " for w in "abcdefgh"),
        "8 times, 52% of the text repeats: The answer must be an even number.",
    ),
    ("truncation_think", "q", "<think>\nLet me see.", "<think> is not closed; ends with "),
    ("truncation_answer", "q", "<think>\nSo 4.\n</think>\n", "no reply behind </think>"),
    ("truncation_answer", "q", "", "the response is empty"),
    (
        "truncation_answer",
        "Put it in \\boxed{}.",
        "It is 4.",
        "asked for \\boxed{…}, the reply has none; ends with 'It is 4.'",
    ),
    ("truncation_fence", "q", "Use:\n```python\nx = 1\n", "```python is not closed"),
    ("truncation_formula", "q", "We get $x^2 + 3", "formula not closed: $x^2 + 3"),
    ("truncation_ending", "q", "Then we add the", "the last word must go on: 'Then we add the'"),
    (
        "truncation_ending",
        "q",
        "所以生成物中一定含有",
        "the last word must go on: '所以生成物中一定含有'",
    ),
    ("latex_delimiters", "q", "Let $x = 2 be it.", "$ is not closed: $x = 2 be it."),
    ("latex_braces", "q", "So $\\frac{1}{2$.", "{ is not closed: $\\frac{1}{2$"),
    (
        "latex_environments",
        "q",
        "$$\\begin{cases} x \\end{matrix}$$",
        "\\begin{cases} ends as matrix: $$\\begin{cases} x \\end{matrix}$$",
    ),
    ("latex_left_right", "q", "$\\left( x$.", "\\left without \\right: $\\left( x$"),
    ("latex_scripts", "q", "$a_b_c$.", "two subscripts: $a_b_c$"),
    ("latex_arguments", "q", "$\\frac{5}$.", "\\frac lacks an argument: $\\frac{5}$"),
    ("latex_alignment", "q", "$x &= 3$.", "& outside an environment: $x &= 3$"),
    ("latex_commands", "q", "$\\fracc{1}{2}$.", "unknown command \\fracc: $\\fracc{1}{2}$"),
    ("figures_image", "![a](b.png) Why?", "Because.", "![a]("),
    ("figures_drawn", "q", "[asy] draw(A--B); [/asy]", "[asy] draw(A--B); [/asy]"),
    ("figures_reference", "如图，求角 A。", "30 度。", "如图，求角 A。"),
    ("figures_reference", "In the diagram, AB = 2.", "Yes.", "In the diagram, AB = 2."),
]


@pytest.mark.parametrize(("rule", "prompt", "response", "evidence"), EXAMPLES)
def test_a_rule_names_itself_and_shows_what_it_saw(
    rule: str, prompt: str, response: str, evidence: str
) -> None:
    said = found(response, prompt)
    assert said[rule].startswith(evidence), said
    assert rule not in found(response, prompt, off=[rule])


def test_repeated_ngrams_without_a_period() -> None:
    rng = random.Random(0)
    clauses = [
        f"the {w} remainder must be even since the other {w} quotient is odd so" for w in "xyz"
    ]
    text = " ".join(rng.choice(clauses) for _ in range(40))
    assert found(text)["repetition_ngrams"].endswith("10-grams of words occurred before")


def test_every_rule_has_an_example() -> None:
    elsewhere = {"truncation_length", "repetition_ngrams"}
    assert {rule for rule, *_ in EXAMPLES} | elsewhere == set(RULES)


def test_stage_keeps_or_says_why() -> None:
    stage = Purify(PurifyConfig())
    good = record("2 + 2 = 4.", reason="stop")
    assert stage.apply(good) is good
    cut = stage.apply(record("Finished.", reason="length"))
    assert cut == Rejection("truncation_length", "finish_reason=length")
    own = PurifyConfig.model_validate({"truncation": {"finish_reasons": ["max"]}})
    assert Purify(own).apply(good | {"card": {"finish_reason": "length"}})["id"] == "a/0"


def test_a_prompt_alone_is_looked_at_for_figures_and_latex_only() -> None:
    assert found(None, "Then we add the") == {}
    assert set(found(None, "Find $\\frac{1}{2$ in the diagram below.")) == {
        "figures_reference",
        "latex_braces",
    }
    assert found("One.", "Find $\\frac{1}{2$.", latex={"look_at": "response"}) == {}


def test_options_move_the_limits() -> None:
    text = "First. " + LOOP * 4 + "Done."
    assert "repetition_loop" in found(text)
    assert "repetition_loop" not in found(text, repetition={"loop_copies": 5})
    assert "repetition_characters" not in found("x" + "y" * 127 + " .")
    assert found("It is $\\foo{1}$.", latex={"commands": ["foo"]}) == {}
    assert found("$$\\begin{foo} 1 \\end{foo}$$", latex={"environments": ["foo"]}) == {}
    drawing, prompt = "[asy] draw(A--B); [/asy]", "In the diagram, what is AB?"
    assert found(f"{drawing} It is 2.", prompt, figures={"drawn": "keep"}) == {}
    assert found("It is 2.", f"{prompt} {drawing}") == {}
    assert set(found("It is 2.", drawing, figures={"drawn": "both"})) == {"figures_drawn"}
    own = found("Yes.", "Voir le schéma ci-contre.", figures={"patterns": ["schéma ci-contre"]})
    assert own == {"figures_reference": "Voir le schéma ci-contre."}


ENDINGS = [
    ("Note that **this is it", "emphasis is open"),
    ("| a | b |\n|---|---|\n| 1 | 2 |\n| 3", "a row of a table is open"),
    ("It is cold.\n\n## Reasons", "a heading without text"),
    ("It is cold (as we have seen", "a parenthesis is open"),
    ("1. One\n2.", "an item without text"),
    ('He bowed and said, "', "a quotation is open"),
    ('{"a": [1, 2', "a bracket is open"),
    ("We went home. Then the old men walked slowly", "a long sentence without its end"),
    ("With $x = 2$", "a clause without what follows from it"),
    ("Note that **this** is it", None),
    ("| a | b |\n|---|---|\n| 1 | 2 |", None),
    ("The old men walked slowly", None),
    ("We went home. So the old men were right", None),
    ("We went home. Yours truly, the old men", None),
    ("return n ** 2", None),
    ("It lies in (2, 5]", None),
]


@pytest.mark.parametrize(("text", "why"), ENDINGS)
def test_endings(text: str, why: str | None) -> None:
    said = found(text).get("truncation_ending", "")
    assert said.startswith(f"{why}: ") if why else not said


def test_what_a_figure_is_depends_on_the_rest() -> None:
    assert found("可以。", "给定有向图，如何在图中找最短路？") == {}
    assert set(found("可以。", "求图中阴影部分的面积。")) == {"figures_reference"}
    table = "| a | b |\n|---|---|\n| 1 | 2 |\n"
    assert found("By the chart, it is two.", table) == {}
    assert found("In the chart it is two.", table) == {}
    assert set(found("In the chart it is two.")) == {"figures_reference"}


def test_a_rule_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValidationError, match="Input should be 'repetition_characters'"):
        PurifyConfig.model_validate({"off": ["repetition"]})


def slow_stretches(ids: list[int]) -> set[tuple[int, int, int]]:
    """Stretches by comparing each n-gram with all that came before."""
    count = len(ids) - GRAM + 1
    grams = [tuple(ids[i : i + GRAM]) for i in range(count)]
    back = []
    for i, gram in enumerate(grams):
        back.append(next((d for d in range(1, i + 1) if grams[i - d] == gram), 0))
    out, start = set(), 0
    for i in range(1, count + 1):
        if i == count or back[i] != back[start]:
            if back[start]:
                out.add((start - back[start], i + GRAM - 1, back[start]))
            start = i
    return out


@pytest.mark.parametrize("symbols", [1, 2, 3, 50])
def test_stretches_against_a_slow_reference(symbols: int) -> None:
    rng = random.Random(symbols)
    for _ in range(20):
        ids = [rng.randrange(symbols) for _ in range(60)]
        at, period = rng.randrange(40), rng.randrange(1, 12)
        ids[at:at] = ids[at : at + period] * rng.randrange(5)
        assert set(stretches(np.array(ids, dtype=np.uint64))) == slow_stretches(ids)


def test_formulas_are_found_where_they_are() -> None:
    text = (
        "It costs $5 and $10, so $x = 15$; \\$3 is \\(y\\). $$a\n\nb$$ \\[c\\\\[2pt]d\\] "
        "\\begin{align*}e\\end{align*} $\\text{if $n$ is odd}$ US$50. $<<1+1=2>>2 and $ z $. "
        "\\[f\\\\] g\\]"
    )
    got = [(text[one.start : one.stop], one.inner) for one in formulas(text) if one.closed]
    assert got == [
        ("$x = 15$", "x = 15"),
        ("\\(y\\)", "y"),
        ("$$a\n\nb$$", "a\n\nb"),
        ("\\[c\\\\[2pt]d\\]", "c\\\\[2pt]d"),
        ("\\begin{align*}e\\end{align*}", "\\begin{align*}e\\end{align*}"),
        ("$\\text{if $n$ is odd}$", "\\text{if $n$ is odd}"),
        ("$ z $", " z "),
        ("\\[f\\\\] g\\]", "f\\\\] g"),
    ]


# The verdicts of KaTeX 0.16, asked once with tools/measure_purification.py's settings.
VALID = r"""\left(Z_m \subsetneq G \right) ; x'^2 + f''_1 ; {}^{14}_6 C ; a^\frac12 ; \sqrt[3]{2}^2
\left\{x\middle|y\right. ; \frac12\sqrt2 ; \begin{cases}1 & 2\\[2pt] 3\end{cases} ; \not= ; x^{y^z}
\sum\limits_{i}^n ; \{1\} ; \text{a_b & $x$} ; \overbrace{a}^{b} ; \mathbb R^2 ; \substack{a\\b}
\operatorname*{lim}_{x} ; \left.\frac{a}{b}\right|_0^1 ; \binom n2 ; 50\% ; x^\prime ; a_1{}_2"""
INVALID = r"""\frac{1}{2 ; a_b_c ; x^a^b ; \left(x ; x\right) ; \fracc12 ; \beginarray{c}
\begin{pmatrix}1\end{matrix} ; x^ ; \frac{1} ; a & b ; \left x\right) ; {\left(a}\right) ; f^2'
x\limits^2 ; a\hline b ; \sqrt ; }x{ ; \begin{cases}1 ; \end{cases} ; \sqrt[3{2} ; \text{a
x_{i}_{j} ; \middle| ; #1 ; \frac^1 2 ; \begin{matrix}\left(a & b\right)\end{matrix}"""


def formulas_of(table: str) -> list[str]:
    return [one.strip() for line in table.split("\n") for one in line.split(" ; ")]


@pytest.mark.parametrize("formula", formulas_of(VALID) + formulas_of(INVALID))
def test_scanner_agrees_with_katex(formula: str) -> None:
    known = TOP_ENVIRONMENTS | INNER_ENVIRONMENTS
    problem = Scanner(formula, frozenset(), known).run()
    assert (problem is None) == (formula in formulas_of(VALID)), problem


UNITS = [
    *("$ ", "$x ", "$\\text{$", "\\[", "\\( ", "\\begin{align}", "$\\left(", "{", "```\n", "`"),
    *("[asy] ", "![a](", "<img ", "$$\\sqrt[", "in the figure", "the graph of ", "图", "abcdefgh"),
    *(" ", "\n", "\\", "**", "|-", '{"a": "', "~~~ ", "<think>", "如此这般", "12 34 ", "x = ("),
]


@pytest.mark.parametrize("unit", UNITS)
def test_long_hard_texts_take_linear_time(unit: str) -> None:
    """100 KB of each take 0.05 to 0.2 s; what was quadratic once took 9 s."""
    text = unit * (100_000 // len(unit))
    stage = Purify(PurifyConfig())
    start = time.process_time()
    list(stage.findings(record(text, text)))
    assert time.process_time() - start < 3
