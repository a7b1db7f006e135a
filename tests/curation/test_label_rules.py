"""Phrases that give a task away, and look-alikes that must not."""

import pytest

from megatron_ring.curation.label.rules import RULES, find_rule
from megatron_ring.curation.taxonomy import load_taxonomy


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("Write a Python function to merge two dictionaries.", "code/generation"),
        ("Implement a function that finds the longest path in a tree.", "code/generation"),
        ("Create a C++ program which prints a calendar.", "code/generation"),
        ("编写一个程序，输出前 100 个质数。", "code/generation"),
        (
            "You have n coins.\n\nInput\nThe first line contains n.\n\nOutput\nPrint one number.",
            "code/generation",
        ),
        ("Translate the following Java code to Python:", "code/translation"),
        ("Convert this function from C++ into Rust.", "code/translation"),
        ("Write unit tests for the class Stack.", "code/testing"),
        ("Fix the bug in the code below.", "code/repair"),
        ("Debug the following Python program.", "code/repair"),
        ("Refactor this class so that it is easier to test.", "code/refactoring"),
        ("Optimize the following query for large tables.", "code/optimization"),
        ("Review the following code for security problems.", "code/review"),
        ("What is the output of this program?\n```\nprint(1)\n```", "code/output_prediction"),
        ("Explain what the following code does.", "code/explanation"),
        ("Write an SQL query that lists all customers.", "code/sql_and_data"),
        ('import math\n\ndef area(r):\n    """Area of a circle."""\n', "code/completion"),
    ],
)
def test_tasks_are_recognised(text: str, path: str) -> None:
    assert find_rule(text).path == path


@pytest.mark.parametrize(
    "text",
    [
        "Write the function f(x) = x^2 + 4x in vertex form.",
        "Convert 0.75 to a fraction.",
        "Convert the polar equation to rectangular form.",
        "Find the output of an amplifier with a gain of 10 if the input is 2 V.",
        "Translate this sentence to French.",
        "Explain the following passage.",
        "Which class of drugs is used against a fever?",
        "A company reviews the dress code. Is it discrimination?",
        "Let f be a function that satisfies f(x + y) = f(x) + f(y).",
        "The program of the party was written in 1912.",
        "写出命题的否定，并求函数的最小值。",
        "Implement the treaty: which program of aid follows?",
    ],
)
def test_look_alikes_are_left_to_the_text(text: str) -> None:
    assert find_rule(text) is None


def test_rules_point_into_the_taxonomy() -> None:
    own = load_taxonomy()
    assert all(not own.node(rule.path).children for rule in RULES)
    assert len({rule.name for rule in RULES}) == len(RULES)
