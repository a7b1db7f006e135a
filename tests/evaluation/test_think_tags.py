"""Names of what is wrong with think tags, on texts written by hand."""

import pytest

from megatron_ring.evaluation.think_tags import tag_errors


@pytest.mark.parametrize(
    ("answer", "errors"),
    [
        ("<think>a\nb</think>c", []),
        ("\n<think>\na\n</think>\n\nc\n", []),
        ("a\n</think>\nc", ["missing_open"]),
        ("<think>\na\nc", ["missing_close"]),
        ("a\nc", ["missing_open", "missing_close"]),
        ("", ["missing_open", "missing_close"]),
        ("<think>\n<think>\na\n</think>\nc", ["redundant"]),
        ("<think>\na\n</think>\n</think>\nc", ["redundant"]),
        ("<think>\na\n</think>\nc\n</think>", ["redundant"]),
        ("<think>\na\n</think>\n<think>\nb\n</think>\nc", ["redundant"]),
        ("well,\n<think>\na\n</think>\nc", ["misplaced"]),
        ("</think>\na\n<think>\nc", ["misplaced"]),
        ("</think><think>a</think>c", ["redundant", "misplaced"]),
        ("<think>\n</think>\nc", ["empty"]),
        ("<think>\na\n</think>\n", ["empty"]),
        ("a\n</think>", ["missing_open", "empty"]),
        ("<think></think>", ["empty"]),
        ("<think> </think></think> a", ["redundant", "empty"]),
        ("<thinking>a</thinking>c", ["missing_open", "missing_close"]),
    ],
)
def test_by_hand(answer: str, errors: list[str]) -> None:
    assert tag_errors(answer) == errors
