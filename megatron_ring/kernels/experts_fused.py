"""The routed experts' MLPs on Triton kernels: what is launched, and what is kept.

Forward: order the rows, up (gather, GEMM, SwiGLU × probability), down (GEMM), combine. Backward:
one GEMM whose epilogue makes the gradients of pre-activation and probability and the activation
again, one for the input, two for the weights, combine. Kept are the input, the pre-activation and
the order: 2·D bytes a token and 4·F bytes a row in bf16. No host synchronisation, no atomics.

Letters: T tokens · K experts a token · R rows of the padded layout · M blocks of rows · E experts ·
D hidden · F expert width.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from megatron_ring.kernels import experts_layout_triton as layout_kernels
from megatron_ring.kernels import experts_triton as kernels
from megatron_ring.kernels.device import INTERPRET, architecture
from megatron_ring.kernels.main_grad import hand_over, main_grad_of


@dataclass(frozen=True)
class Tile:
    """Block sizes of one GEMM. Rows come in blocks of `Tiles.rows` in all of them."""

    columns: int  # of the output: F or D
    inner: int  # of the sum
    warps: int
    stages: int
    resident: int = 1  # programs that run on one multiprocessor at a time
    chunks: int = 1  # in which the epilogue goes through the columns
    rows: int = 0  # weight gradients only: block of F; `columns` is the block of D


@dataclass(frozen=True)
class Tiles:
    """The block sizes of one architecture; the lint compiles exactly these."""

    rows: int  # BM: each expert's rows begin at a multiple of it
    group: int  # blocks of rows that share their weights in L2
    tma: bool
    up: Tile
    down: Tile
    down_backward: Tile
    up_backward: Tile
    weight: Tile
    weight_add: Tile  # into an fp32 gradient that exists

    def __post_init__(self) -> None:
        for tile in (self.weight, self.weight_add):
            # Their sums go over rows: a step must not reach into the next expert's.
            assert self.rows % tile.inner == 0, f"{tile.inner} rows a step, blocks of {self.rows}"


TILES = {
    90: Tiles(
        rows=128,
        group=16,
        tma=True,
        up=Tile(columns=128, inner=64, warps=8, stages=3),
        down=Tile(columns=256, inner=64, warps=8, stages=3),
        down_backward=Tile(columns=128, inner=64, warps=8, stages=3, chunks=4),
        up_backward=Tile(columns=256, inner=64, warps=8, stages=3),
        weight=Tile(columns=256, rows=128, inner=64, warps=8, stages=3),
        weight_add=Tile(columns=256, rows=128, inner=64, warps=8, stages=3, chunks=4),
    ),
    80: Tiles(
        rows=128,
        group=16,
        tma=False,
        up=Tile(columns=64, inner=32, warps=8, stages=4, resident=2),
        down=Tile(columns=128, inner=32, warps=8, stages=4, resident=2),
        down_backward=Tile(columns=128, inner=32, warps=8, stages=4, chunks=4),
        up_backward=Tile(columns=128, inner=32, warps=8, stages=4),
        weight=Tile(columns=128, rows=128, inner=32, warps=8, stages=4),
        weight_add=Tile(columns=128, rows=128, inner=32, warps=8, stages=4, chunks=2),
    ),
}


def interpreted(tma: bool, rows: int, columns: int, inner: int) -> Tiles:
    """Blocks for Triton's interpreter, which takes as long for a small block as for a large."""
    tile = Tile(columns=columns, inner=inner, warps=4, stages=1)
    weight = replace(tile, rows=columns)
    return Tiles(
        rows=rows,
        group=2,
        tma=tma,
        up=tile,
        down=tile,
        down_backward=replace(tile, chunks=4),
        up_backward=tile,
        weight=weight,
        weight_add=replace(weight, chunks=2),
    )


@functools.cache
def tiles_for(device: torch.device) -> Tiles:
    return interpreted(True, 64, 128, 64) if INTERPRET else TILES[architecture(device)]


@dataclass(frozen=True)
class Layout:
    """Where the rows lie. Rows that nobody has belong to token 0 with probability 0."""

    row_TK: Tensor  # int32: the row of each token's k-th choice
    token_R: Tensor  # int32
    prob_R: Tensor  # float32
    expert_M: Tensor  # int32: the expert of each block of rows
    first_E: Tensor  # int32 [E + 1]: the block where each expert begins; last, how many there are

    @property
    def num_rows(self) -> int:
        """An upper bound that the host knows: R."""
        return len(self.token_R)


def order(experts_TK: Tensor, prob_TK: Tensor, num_experts: int, tiles: Tiles) -> Layout:
    """The layout of tokens that visit `experts_TK` with `prob_TK`, stable in token and k."""
    N, E, device = experts_TK.numel(), num_experts, experts_TK.device
    experts_N = experts_TK.contiguous()
    BE, BN = triton.next_power_of_2(E), layout_kernels.entries_in_a_block(E)
    B = triton.cdiv(N, BN)
    counts_BE = torch.empty(B, E, dtype=torch.int32, device=device)
    counts_E = torch.empty(E, dtype=torch.int32, device=device)
    layout_kernels.count_kernel[(B,)](experts_N, counts_BE, N, E, BN, BE)
    layout_kernels.running_kernel[(E,)](counts_BE, counts_E, B, E, BB=1024)
    layout = _empty_layout(counts_E, experts_TK.shape, tiles)
    layout_kernels.place_kernel[(B,)](
        experts_N, prob_TK.contiguous(), counts_BE, layout.first_E, layout.row_TK, layout.token_R,
        layout.prob_R, N, E, experts_TK.shape[1], tiles.rows, BN, BE,
    )  # fmt: skip
    return layout


def order_sorted(counts_E: Tensor, prob_N: Tensor, tiles: Tiles) -> Layout:
    """The layout of rows that already lie expert after expert."""
    N, E = len(prob_N), len(counts_E)
    counts_E = counts_E.to(prob_N.device, non_blocking=True)  # dispatchers leave it on the host
    layout = _empty_layout(counts_E, torch.Size([N, 1]), tiles)
    BE, BN = triton.next_power_of_2(E), layout_kernels.entries_in_a_block(E)
    layout_kernels.place_sorted_kernel[(triton.cdiv(N, BN),)](
        counts_E, prob_N.contiguous(), layout.first_E, layout.row_TK, layout.token_R,
        layout.prob_R, N, E, tiles.rows, BN, BE,
    )  # fmt: skip
    return layout


def _empty_layout(counts_E: Tensor, shape: torch.Size, tiles: Tiles) -> Layout:
    E, device = len(counts_E), counts_E.device
    # An expert leaves at most BM - 1 rows of its last block empty.
    M = (shape.numel() + min(E, shape.numel()) * (tiles.rows - 1)) // tiles.rows
    R = M * tiles.rows
    first_E = torch.empty(E + 1, dtype=torch.int32, device=device)
    expert_M = torch.empty(M, dtype=torch.int32, device=device)
    BLOCK = 128
    layout_kernels.blocks_kernel[(triton.cdiv(M, BLOCK),)](
        counts_E, first_E, expert_M, M, E, tiles.rows, triton.next_power_of_2(E), BLOCK
    )
    return Layout(
        row_TK=torch.empty(shape, dtype=torch.int32, device=device),
        token_R=torch.zeros(R, dtype=torch.int32, device=device),
        prob_R=torch.zeros(R, dtype=torch.float32, device=device),
        expert_M=expert_M,
        first_E=first_E,
    )


def moe_mlp(
    x_TD: Tensor, prob_TK: Tensor, experts_TK: Tensor, w1_EFD: Tensor, w2_EDF: Tensor
) -> Tensor:
    """See experts.moe_mlp."""
    if not experts_TK.numel():
        return _nothing(x_TD, prob_TK, w1_EFD, w2_EDF)
    tiles = tiles_for(x_TD.device)
    layout = order(experts_TK, prob_TK.detach(), len(w1_EFD), tiles)
    return _Experts.apply(x_TD, prob_TK, w1_EFD, w2_EDF, layout, tiles)


def grouped_mlp(
    x_ND: Tensor, prob_N: Tensor, counts_E: Tensor, w1_EFD: Tensor, w2_EDF: Tensor
) -> Tensor:
    """See experts.grouped_mlp."""
    if not len(x_ND):
        return _nothing(x_ND, prob_N, w1_EFD, w2_EDF)
    tiles = tiles_for(x_ND.device)
    layout = order_sorted(counts_E, prob_N.detach(), tiles)
    return _Experts.apply(x_ND, prob_N.unsqueeze(-1), w1_EFD, w2_EDF, layout, tiles)


def _nothing(x_TD: Tensor, prob: Tensor, w1_EFD: Tensor, w2_EDF: Tensor) -> Tensor:
    """No rows: no kernel, and gradients of zero."""
    zero = w1_EFD.flatten()[:0].sum() + w2_EDF.flatten()[:0].sum() + prob.sum()
    return x_TD + zero.to(x_TD.dtype)


class _Experts(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_TD: Tensor,
        prob_TK: Tensor,
        w1_EFD: Tensor,
        w2_EDF: Tensor,
        layout: Layout,
        tiles: Tiles,
    ) -> Tensor:
        run = _Launcher(w1_EFD, w2_EDF, layout, tiles)
        x_TD = x_TD.contiguous()
        h_2RF, a_RF = run.up(x_TD)
        out_TD = run.combine(run.down(a_RF))
        ctx.save_for_backward(x_TD, h_2RF, w1_EFD, w2_EDF)
        ctx.layout, ctx.tiles = layout, tiles
        # Not the saved tensors: those need not be the objects that carry `main_grad`.
        ctx.weights = (w1_EFD, w2_EDF)
        ctx.prob_dtype = prob_TK.dtype
        return out_TD

    @staticmethod
    def backward(ctx: Any, dy_TD: Tensor) -> tuple[Tensor | None, ...]:
        x_TD, h_2RF, w1_EFD, w2_EDF = ctx.saved_tensors
        run = _Launcher(w1_EFD, w2_EDF, ctx.layout, ctx.tiles)
        dy_TD = dy_TD.contiguous()
        needs_x, needs_prob, needs_w1, needs_w2 = ctx.needs_input_grad[:4]
        dh_2RF, a_RF, dprob_NR = run.down_backward(dy_TD, h_2RF)
        dw2 = run.weight_gradient(a_RF, dy_TD, ctx.weights[1], True) if needs_w2 else None
        del a_RF
        dx_TD = run.combine(run.up_backward(dh_2RF)) if needs_x else None
        dw1 = run.weight_gradient(dh_2RF, x_TD, ctx.weights[0], False) if needs_w1 else None
        dprob_TK = None
        if needs_prob:
            dprob_TK = dprob_NR.sum(0)[ctx.layout.row_TK.long()].to(ctx.prob_dtype)
        return dx_TD, dprob_TK, dw1, dw2, None, None


class _Launcher:
    """One layer's kernels over one layout."""

    def __init__(self, w1_EFD: Tensor, w2_EDF: Tensor, layout: Layout, tiles: Tiles) -> None:
        self.w1, self.w2, self.layout, self.tiles = w1_EFD, w2_EDF, layout, tiles
        self.E, self.D, self.F = w2_EDF.shape
        self.R = layout.num_rows
        self.sizes = {"D": self.D, "F": self.F, "BM": tiles.rows}

    def up(self, x_TD: Tensor) -> tuple[Tensor, Tensor]:
        """Pre-activation [2, R, F] and activation × probability [R, F]."""
        t, at = self.tiles.up, self.layout
        h_2RF = x_TD.new_empty(2, self.R, self.F)
        a_RF = x_TD.new_empty(self.R, self.F)
        stored = [self.tiles.rows, t.columns]
        kernels.up_kernel[self._grid(self.F, t)](
            x_TD,
            self._block(self.w1.view(-1, self.F, self.D), [2, t.columns, t.inner]),
            self._block(h_2RF, stored), self._block(a_RF, stored),
            at.token_R, at.prob_R, at.expert_M, at.first_E, self.E, self.R,
            BF=t.columns, **self._options(t),
        )  # fmt: skip
        return h_2RF, a_RF

    def down(self, a_RF: Tensor) -> Tensor:
        t, at, rows = self.tiles.down, self.layout, self.tiles.rows
        y_RD = a_RF.new_empty(self.R, self.D)
        kernels.down_kernel[self._grid(self.D, t)](
            self._block(a_RF, [rows, t.inner]), self._block(self.w2, [t.columns, t.inner]),
            self._block(y_RD, [rows, t.columns]), at.expert_M, at.first_E, self.E,
            BD=t.columns, **self._options(t),
        )  # fmt: skip
        return y_RD

    def combine(self, y_RD: Tensor) -> Tensor:
        T, K = self.layout.row_TK.shape
        out_TD = y_RD.new_empty(T, self.D)
        BT, BD = (16 if INTERPRET else 1), min(2048, triton.next_power_of_2(self.D))
        kernels.combine_kernel[(triton.cdiv(T, BT), triton.cdiv(self.D, BD))](
            y_RD, self.layout.row_TK, out_TD, T, K, self.D, BT, BD
        )
        return out_TD

    def down_backward(self, dy_TD: Tensor, h_2RF: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gradient of the pre-activation, activation × probability, parts of the probability's."""
        t, at, rows = self.tiles.down_backward, self.layout, self.tiles.rows
        dh_2RF, a_RF = torch.empty_like(h_2RF), torch.empty_like(h_2RF[0])
        blocks = triton.cdiv(self.F, t.columns)
        dprob_NR = torch.empty(blocks, self.R, dtype=torch.float32, device=dy_TD.device)
        chunk = [rows, t.columns // t.chunks]
        kernels.down_backward_kernel[self._grid(self.F, t)](
            dy_TD, self._block(self.w2, [t.inner, t.columns]), self._block(h_2RF, chunk),
            self._block(dh_2RF, chunk), self._block(a_RF, chunk), dprob_NR,
            at.token_R, at.prob_R, at.expert_M, at.first_E, self.E, self.R,
            BF=t.columns, CHUNKS=t.chunks, **self._options(t),
        )  # fmt: skip
        return dh_2RF, a_RF, dprob_NR

    def up_backward(self, dh_2RF: Tensor) -> Tensor:
        t, at, rows = self.tiles.up_backward, self.layout, self.tiles.rows
        dx_RD = dh_2RF.new_empty(self.R, self.D)
        kernels.up_backward_kernel[self._grid(self.D, t)](
            self._block(dh_2RF, [rows, t.inner]), self._block(self.w1, [t.inner, t.columns]),
            self._block(dx_RD, [rows, t.columns]), at.expert_M, at.first_E, self.E, self.R,
            BD=t.columns, **self._options(t),
        )  # fmt: skip
        return dx_RD

    def weight_gradient(
        self, left: Tensor, right: Tensor, weight: Tensor, down: bool
    ) -> Tensor | None:
        """The gradient of w1, or of w2 (`down`); added to `main_grad` where the weight has one."""
        main_grad = main_grad_of(weight)
        add = main_grad is not None
        out = main_grad if add else torch.empty_like(weight)
        t = self.tiles.weight_add if add else self.tiles.weight
        programs = self.E * (1 if down else 2)
        programs *= triton.cdiv(self.F, t.rows) * triton.cdiv(self.D, t.columns)
        options = self._options(t)
        del options["GROUP"]
        kernels.weight_gradient_kernel[(programs,)](
            self._block(left, [t.inner, t.rows]), right, self.layout.token_R, out,
            self.layout.first_E, self.E, self.R,
            BF=t.rows, BD=t.columns, DOWN=down, ADD=add, CHUNKS=t.chunks, **options,
        )  # fmt: skip
        return hand_over(weight, main_grad) if main_grad is not None else out

    def _block(self, tensor: Tensor, block: Sequence[int]) -> Tensor | TensorDescriptor:
        """A tensor as the kernels take it: a descriptor of rows by columns, or itself."""
        if not self.tiles.tma:
            return tensor
        matrix = tensor if len(block) == tensor.dim() else tensor.view(-1, tensor.shape[-1])
        return TensorDescriptor.from_tensor(matrix, list(block))

    def _options(self, t: Tile) -> dict[str, Any]:
        options = {"BK": t.inner, "GROUP": self.tiles.group, "TMA": self.tiles.tma}
        return self.sizes | options | {"num_warps": t.warps, "num_stages": t.stages}

    def _grid(self, width: int, t: Tile) -> tuple[int]:
        """As many programs as run at once, or as there are tiles."""
        tiles = len(self.layout.expert_M) * triton.cdiv(width, t.columns)
        return (min(tiles, t.resident * _processors(self.w1.device)),)


@functools.cache
def _processors(device: torch.device) -> int:
    if device.type != "cuda":
        return 2
    return torch.cuda.get_device_properties(device).multi_processor_count
