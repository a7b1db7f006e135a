import pytest

from megatron_ring.convert.ops import (
    Block,
    ConversionError,
    Piece,
    check_names_and_shapes,
    concat,
    copy,
    group_qkv,
    inverse,
    stack,
)


def test_qkv_rows_by_hand() -> None:
    """Two groups of two heads, head size 1. Hugging Face rows: Q0 Q1 Q2 Q3 K0 K1 V0 V1."""
    rule = group_qkv("qkv", "hf", heads=4, kv_heads=2, head_size=1, width=7)
    assert rule.shape == (8, 7)
    hf_rows = [b.hf_row + i for b in rule.blocks for i in range(b.rows)]
    assert hf_rows == [0, 1, 4, 6, 2, 3, 5, 7]  # Q0 Q1 K0 V0, Q2 Q3 K1 V1


def test_qkv_keeps_the_rows_of_a_head_together() -> None:
    rule = group_qkv("qkv", "hf", heads=2, kv_heads=1, head_size=3, width=1)
    hf_rows = [b.hf_row + i for b in rule.blocks for i in range(b.rows)]
    assert hf_rows == list(range(12))  # one group: Q K V is what it was


def test_gate_lies_over_up() -> None:
    rule = concat("fc1", 5, [("gate", 3), ("up", 3)])
    assert rule == ("fc1", (6, 5), (Block(0, 3, "gate"), Block(3, 3, "up")))


def test_experts_are_stacked_in_order() -> None:
    rule = stack("w1", 5, [[("g0", 2), ("u0", 2)], [("g1", 2), ("u1", 2)]])
    assert rule.shape == (2, 4, 5)
    assert [(b.hf, b.row) for b in rule.blocks] == [("g0", 0), ("u0", 2), ("g1", 4), ("u1", 6)]


def test_inverse_finds_shapes_and_places() -> None:
    rules = [copy("norm", (4,), "n"), stack("w2", 3, [[("d0", 2)], [("d1", 2)]])]
    assert inverse(rules) == {
        "n": ((4,), [Piece(0, 4, "norm", 0)]),
        "d0": ((2, 3), [Piece(0, 2, "w2", 0)]),
        "d1": ((2, 3), [Piece(0, 2, "w2", 2)]),
    }


def test_all_differences_are_named_at_once() -> None:
    expected = {"a": (1,), "b": (2, 3), "c": (4,), "d": (5,), "e": (6,), "f": (7,)}
    with pytest.raises(ConversionError) as error:
        check_names_and_shapes({"a": (1,), "b": (3, 2), "x": (1,)}, expected, "FOLDER", "Look.")
    assert str(error.value) == (
        "FOLDER does not hold the tensors its configuration asks for (6); "
        "4 missing: c, d, e, …; 1 left over: x; "
        "1 of another shape: b is [3, 2], should be [2, 3]. Look."
    )


def test_equal_tensors_pass() -> None:
    check_names_and_shapes({"a": (1,)}, {"a": (1,)}, "FOLDER", "Look.")
