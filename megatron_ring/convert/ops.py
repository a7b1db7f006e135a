"""Weight conversion as data: which rows of a Hugging Face tensor are which rows of a Megatron one.

Everything a conversion does to Ling-Lite is moving whole rows: renaming, interleaving Q, K and V,
laying gate over up, stacking experts. So a rule is a list of blocks of rows, and both directions
read the same list: forward and inverse cannot disagree, any slice of any tensor can be made from
the rows it needs, and no arithmetic touches the values.

A tensor is seen as [rows, *width]: a matrix [R, W] has R rows, a vector [R] has R rows of one
number, a stack [E, R, W] has E * R rows, expert after expert.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from megatron_ring.config import ConfigError

Shape = tuple[int, ...]


class ConversionError(ConfigError):
    """A checkpoint that cannot be converted; the message names tensor or file, and the remedy."""


class Block(NamedTuple):
    """`rows` rows of Hugging Face tensor `hf`, verbatim, in one Megatron tensor."""

    row: int  # first row in the Megatron tensor
    rows: int
    hf: str
    hf_row: int = 0  # first row in the Hugging Face tensor


class Rule(NamedTuple):
    """One Megatron tensor and the blocks that fill it, in the order of its rows, without gaps."""

    key: str
    shape: Shape
    blocks: tuple[Block, ...]


class Piece(NamedTuple):
    """A block as seen from its Hugging Face tensor: rows `hf_row` ff. are `key`'s `row` ff."""

    hf_row: int
    rows: int
    key: str
    row: int


def copy(key: str, shape: Shape, hf: str) -> Rule:
    """The same tensor under another name."""
    return Rule(key, shape, (Block(0, shape[0], hf),))


def concat(key: str, width: int, parts: Sequence[tuple[str, int]]) -> Rule:
    """(name, rows) one below the other: gate [F, D] over up [F, D] is linear_fc1 [2F, D]."""
    blocks = tuple(_below_each_other(parts))
    return Rule(key, (sum(rows for _, rows in parts), width), blocks)


def stack(key: str, width: int, experts: Sequence[Sequence[tuple[str, int]]]) -> Rule:
    """One `concat` an expert, stacked: E times ([F, D], [F, D]) is [E, 2F, D]."""
    rows = sum(rows for _, rows in experts[0])
    blocks = tuple(_below_each_other([part for parts in experts for part in parts]))
    return Rule(key, (len(experts), rows, width), blocks)


def group_qkv(key: str, hf: str, heads: int, kv_heads: int, head_size: int, width: int) -> Rule:
    """Rows [all Q | all K | all V] -> for each KV group [its Qs ; its K ; its V].

    Megatron-Core keeps a KV group together so that tensor parallelism cuts between groups. The
    wrong order has the right shape: only numbers show the mistake.
    """
    queries = heads // kv_heads * head_size
    first_k = heads * head_size
    first_v = first_k + kv_heads * head_size
    blocks: list[Block] = []
    for group in range(kv_heads):
        row = group * (queries + 2 * head_size)
        blocks += [
            Block(row, queries, hf, group * queries),
            Block(row + queries, head_size, hf, first_k + group * head_size),
            Block(row + queries + head_size, head_size, hf, first_v + group * head_size),
        ]
    return Rule(key, ((heads + 2 * kv_heads) * head_size, width), tuple(blocks))


def inverse(rules: Sequence[Rule]) -> dict[str, tuple[Shape, list[Piece]]]:
    """Hugging Face name -> its shape, and its rows' places on the Megatron side, in row order."""
    pieces: dict[str, list[Piece]] = {}
    widths: dict[str, Shape] = {}
    for rule in rules:
        for block in rule.blocks:
            pieces.setdefault(block.hf, []).append(
                Piece(block.hf_row, block.rows, rule.key, block.row)
            )
            widths[block.hf] = rule.shape[-1:] if len(rule.shape) > 1 else ()
    for of_one in pieces.values():
        of_one.sort()
    return {
        name: ((sum(piece.rows for piece in of_one), *widths[name]), of_one)
        for name, of_one in pieces.items()
    }


def check_names_and_shapes(
    found: Mapping[str, Shape], expected: Mapping[str, Shape], where: str, remedy: str
) -> None:
    """Raise ConversionError unless `found` has exactly the expected tensors in their shapes."""
    missing = [name for name in expected if name not in found]
    left_over = [name for name in found if name not in expected]
    misshapen = [
        f"{name} is {list(found[name])}, should be {list(shape)}"
        for name, shape in expected.items()
        if name in found and tuple(found[name]) != tuple(shape)
    ]
    problems = [
        f"{len(names)} {what}: {', '.join(names[:3])}{', …' if len(names) > 3 else ''}"
        for what, names in (
            ("missing", missing),
            ("left over", left_over),
            ("of another shape", misshapen),
        )
        if names
    ]
    if problems:
        raise ConversionError(
            f"{where} does not hold the tensors its configuration asks for "
            f"({len(expected)}); {'; '.join(problems)}. {remedy}"
        )


def _below_each_other(parts: Sequence[tuple[str, int]]) -> Iterator[Block]:
    row = 0
    for hf, rows in parts:
        yield Block(row, rows, hf)
        row += rows
