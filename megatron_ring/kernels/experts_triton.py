"""Triton kernels of the routed experts' MLPs: grouped GEMMs over a padded layout.

The algorithm is SonicMoE's (arXiv 2512.14080): the gather of tokens is part of the GEMMs that read
them, SwiGLU and its derivative are epilogues, and only the input and the pre-activation are kept.
Rows lie as experts_layout_triton.py orders them: each expert's rows begin at a multiple of BM, so
that a block of BM rows belongs to one expert, stores need no mask, and padding rows carry
probability 0, by which they vanish from every gradient.

With TMA (sm_90), weights and buffers of the layout are tensor descriptors; without, pointers. What
is gathered always goes by pointers: Hopper's TMA cannot gather.

Letters: T tokens · R rows of the layout · E experts · D hidden · F expert width. h and dh are
[2, R, F]: all gates, then all ups.
"""

import triton
import triton.language as tl


@triton.jit
def _locate(tile, expert_M, first_E, COLUMNS: tl.constexpr, GROUP: tl.constexpr):
    """(expert, block of rows, block of columns) of a tile number.

    Expert by expert, GROUP blocks of rows at a time, rows fastest: the tiles in flight share one
    expert's weights and rows, which fit in L2.
    """
    e = tl.load(expert_M + tile // COLUMNS)
    first = tl.load(first_E + e)
    blocks = tl.load(first_E + e + 1) - first
    inside = tile - first * COLUMNS
    group = inside // (GROUP * COLUMNS)
    size = tl.minimum(blocks - group * GROUP, GROUP)
    inside -= group * GROUP * COLUMNS
    return e, first + group * GROUP + inside % size, inside // size


@triton.jit
def _halves(x, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """The left and the right half of the columns of a block."""
    return x.reshape(ROWS, 2, COLUMNS // 2).permute(0, 2, 1).split()


@triton.jit
def _gathered(x, row, column, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """x[row, column:column + BLOCK], zeros beyond WIDTH."""
    c = column + tl.arange(0, BLOCK)
    at = x + row.to(tl.int64)[:, None] * WIDTH + c[None, :]
    if WIDTH % BLOCK == 0:
        return tl.load(at)
    else:
        return tl.load(at, mask=(c < WIDTH)[None, :], other=0.0)


@triton.jit
def _transposed(x, row, column, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """The same the other way round: [BLOCK, rows].

    A block that is turned in registers cannot be copied asynchronously to shared memory on sm_80.
    """
    c = column + tl.arange(0, BLOCK)
    at = x + row.to(tl.int64)[None, :] * WIDTH + c[:, None]
    if WIDTH % BLOCK == 0:
        return tl.load(at)
    else:
        return tl.load(at, mask=(c < WIDTH)[:, None], other=0.0)


@triton.jit
def _at(matrix, first, row, column, COLUMNS: tl.constexpr, BR: tl.constexpr, BC: tl.constexpr):
    """Pointers to a block of a matrix that begins at row `first` of a taller one."""
    r = (first + row + tl.arange(0, BR)).to(tl.int64)
    return matrix + r[:, None] * COLUMNS + (column + tl.arange(0, BC))[None, :]


@triton.jit
def _inside(row, column, ROWS: tl.constexpr, COLUMNS: tl.constexpr, BR: tl.constexpr,
            BC: tl.constexpr):  # fmt: skip
    r, c = row + tl.arange(0, BR), column + tl.arange(0, BC)
    return (r < ROWS)[:, None] & (c < COLUMNS)[None, :]


@triton.jit
def _load(matrix, first, row, column, ROWS: tl.constexpr, COLUMNS: tl.constexpr, BR: tl.constexpr,
          BC: tl.constexpr, STEP: tl.constexpr, TMA: tl.constexpr):  # fmt: skip
    """Block [row…, column…] of the ROWS × COLUMNS matrix that begins at row `first` of `matrix`.

    Beyond COLUMNS it is zeros; STEP is what the caller goes through the columns by: where it
    divides them, no block is cut. Beyond ROWS it is zeros or, by TMA, whatever follows: rows that
    the caller multiplies by zeros or does not store.
    """
    if TMA:
        return matrix.load([first + row, column])
    else:
        at = _at(matrix, first, row, column, COLUMNS, BR, BC)
        if ROWS % BR == 0 and COLUMNS % STEP == 0:
            return tl.load(at)
        else:
            return tl.load(at, mask=_inside(row, column, ROWS, COLUMNS, BR, BC), other=0.0)


@triton.jit
def _store(matrix, row, column, block, COLUMNS: tl.constexpr, BR: tl.constexpr, BC: tl.constexpr,
           STEP: tl.constexpr, TMA: tl.constexpr):  # fmt: skip
    """Write a block of a buffer of the layout, whose rows never run out. STEP as in `_load`."""
    if TMA:
        matrix.store([row, column], block.to(matrix.dtype))
    else:
        at = _at(matrix, row, 0, column, COLUMNS, BR, BC)
        block = block.to(matrix.dtype.element_ty)
        if COLUMNS % STEP == 0:
            tl.store(at, block)
        else:
            tl.store(at, block, mask=_inside(0, column, BR, COLUMNS, BR, BC))


@triton.jit
def _gate_and_up(w1, e, f, d, F: tl.constexpr, D: tl.constexpr, BF: tl.constexpr, BK: tl.constexpr,
                 TMA: tl.constexpr):  # fmt: skip
    """Rows f… of an expert's gate over rows f… of its up, columns d…: [2 BF, BK].

    One box of a rank-3 descriptor, so that one product of 2 BF columns makes both and the weight
    keeps its plain order.
    """
    if TMA:
        return w1.load([2 * e, f, d]).reshape(2 * BF, BK)
    else:
        c = tl.arange(0, 2 * BF)
        row = f + c % BF
        k = d + tl.arange(0, BK)
        at = w1 + ((2 * e + c // BF) * F + row).to(tl.int64)[:, None] * D + k[None, :]
        if F % BF == 0 and D % BK == 0:
            return tl.load(at)
        else:
            return tl.load(at, mask=(row < F)[:, None] & (k < D)[None, :], other=0.0)


@triton.jit
def up_kernel(
    x, w1, h, a, token_R, prob_R, expert_M, first_E, E, R,
    D: tl.constexpr, F: tl.constexpr, BM: tl.constexpr, BF: tl.constexpr, BK: tl.constexpr,
    GROUP: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    """h = x[token] @ w1.T and a = prob · silu(gate) · up, of gates and ups as stored."""
    columns: tl.constexpr = (F + BF - 1) // BF
    total = tl.load(first_E + E) * columns
    for tile in tl.range(tl.program_id(0), total, tl.num_programs(0), flatten=True):
        e, m, n = _locate(tile, expert_M, first_E, columns, GROUP)
        rows = m * BM + tl.arange(0, BM)
        token = tl.load(token_R + rows)
        acc = tl.zeros((BM, 2 * BF), tl.float32)
        for k in range(0, D, BK):
            left = _gathered(x, token, k, D, BK)
            right = _gate_and_up(w1, e, n * BF, k, F, D, BF, BK, TMA)
            acc = tl.dot(left, right.T, acc, input_precision="ieee")
        gate, up = _halves(acc, BM, 2 * BF)
        # The backward computes a again from the stored h: rounded first, it finds the same bits.
        gate = gate.to(x.dtype.element_ty)
        up = up.to(x.dtype.element_ty)
        _store(h, m * BM, n * BF, gate, F, BM, BF, BF, TMA)
        _store(h, R + m * BM, n * BF, up, F, BM, BF, BF, TMA)
        gate = gate.to(tl.float32)
        product = gate * tl.sigmoid(gate) * up.to(tl.float32)
        prob = tl.load(prob_R + rows)[:, None]
        _store(a, m * BM, n * BF, product * prob, F, BM, BF, BF, TMA)


@triton.jit
def down_kernel(
    a, w2, y, expert_M, first_E, E,
    D: tl.constexpr, F: tl.constexpr, BM: tl.constexpr, BD: tl.constexpr, BK: tl.constexpr,
    GROUP: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    """y = a @ w2.T, rows as in the layout."""
    columns: tl.constexpr = (D + BD - 1) // BD
    total = tl.load(first_E + E) * columns
    for tile in tl.range(tl.program_id(0), total, tl.num_programs(0), flatten=True):
        e, m, n = _locate(tile, expert_M, first_E, columns, GROUP)
        acc = tl.zeros((BM, BD), tl.float32)
        for k in range(0, F, BK):
            left = _load(a, m * BM, 0, k, BM, F, BM, BK, BK, TMA)
            right = _load(w2, e * D, n * BD, k, D, F, BD, BK, BK, TMA)
            acc = tl.dot(left, right.T, acc, input_precision="ieee")
        _store(y, m * BM, n * BD, acc, D, BM, BD, BD, TMA)


@triton.jit
def combine_kernel(
    y, row_TK, out, T, K: tl.constexpr, D: tl.constexpr, BT: tl.constexpr, BD: tl.constexpr
):
    """out[t] = Σ_k y[row of (t, k)], added in fp32 in the order of k."""
    t = tl.program_id(0) * BT + tl.arange(0, BT)
    d = tl.program_id(1) * BD + tl.arange(0, BD)
    inside = (t < T)[:, None] & (d < D)[None, :]
    acc = tl.zeros((BT, BD), tl.float32)
    for k in tl.static_range(K):
        row = tl.load(row_TK + t * K + k, mask=t < T, other=0).to(tl.int64)
        acc += tl.load(y + row[:, None] * D + d[None, :], mask=inside, other=0.0).to(tl.float32)
    at = out + t.to(tl.int64)[:, None] * D + d[None, :]
    tl.store(at, acc.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _activation_backward(
    da, h, dh, a, m, column, R, prob,
    F: tl.constexpr, BM: tl.constexpr, BC: tl.constexpr, STEP: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    """Stores dh and a of BC columns; returns their part of the probability's gradient."""
    gate = _load(h, m * BM, 0, column, BM, F, BM, BC, STEP, TMA).to(tl.float32)
    up = _load(h, R + m * BM, 0, column, BM, F, BM, BC, STEP, TMA).to(tl.float32)
    sigmoid = tl.sigmoid(gate)
    product = gate * sigmoid * up
    _store(a, m * BM, column, product * prob, F, BM, BC, STEP, TMA)
    of_prob = tl.sum(da * product, axis=1)
    da = da * prob
    dgate = da * up * (sigmoid + gate * sigmoid * (1 - sigmoid))
    _store(dh, m * BM, column, dgate, F, BM, BC, STEP, TMA)
    _store(dh, R + m * BM, column, da * gate * sigmoid, F, BM, BC, STEP, TMA)
    return of_prob


@triton.jit
def _chunks_backward(
    da, h, dh, a, m, column, R, prob,
    F: tl.constexpr, BM: tl.constexpr, BC: tl.constexpr, STEP: tl.constexpr,
    CHUNKS: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    """The same in CHUNKS chunks of columns, one after the other, to spare registers."""
    if CHUNKS == 1:
        return _activation_backward(da, h, dh, a, m, column, R, prob, F, BM, BC, STEP, TMA)
    else:
        one, two = _halves(da, BM, BC)
        half: tl.constexpr = BC // 2
        of_prob = _chunks_backward(
            one, h, dh, a, m, column, R, prob, F, BM, half, STEP, CHUNKS // 2, TMA
        )
        column += half
        return of_prob + _chunks_backward(
            two, h, dh, a, m, column, R, prob, F, BM, half, STEP, CHUNKS // 2, TMA
        )


@triton.jit
def down_backward_kernel(
    dy, w2, h, dh, a, dprob_NR, token_R, prob_R, expert_M, first_E, E, R,
    D: tl.constexpr, F: tl.constexpr, BM: tl.constexpr, BF: tl.constexpr, BK: tl.constexpr,
    GROUP: tl.constexpr, CHUNKS: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    """With da = dy[token] @ w2: dh through SwiGLU, a again, and Σ da · silu(gate) · up.

    The last is the probability's gradient, one part for each block of columns.
    """
    columns: tl.constexpr = (F + BF - 1) // BF
    total = tl.load(first_E + E) * columns
    for tile in tl.range(tl.program_id(0), total, tl.num_programs(0)):
        e, m, n = _locate(tile, expert_M, first_E, columns, GROUP)
        rows = m * BM + tl.arange(0, BM)
        token = tl.load(token_R + rows)
        acc = tl.zeros((BM, BF), tl.float32)
        for k in range(0, D, BK):
            left = _gathered(dy, token, k, D, BK)
            right = _load(w2, e * D, k, n * BF, D, F, BK, BF, BF, TMA)
            acc = tl.dot(left, right, acc, input_precision="ieee")
        prob = tl.load(prob_R + rows)[:, None]
        of_prob = _chunks_backward(acc, h, dh, a, m, n * BF, R, prob, F, BM, BF, BF, CHUNKS, TMA)
        tl.store(dprob_NR + n.to(tl.int64) * R + rows, of_prob)


@triton.jit
def up_backward_kernel(
    dh, w1, dx, expert_M, first_E, E, R,
    D: tl.constexpr, F: tl.constexpr, BM: tl.constexpr, BD: tl.constexpr, BK: tl.constexpr,
    GROUP: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    """dx = dh @ w1, rows as in the layout; gates first, then ups."""
    columns: tl.constexpr = (D + BD - 1) // BD
    half: tl.constexpr = (F + BK - 1) // BK
    total = tl.load(first_E + E) * columns
    for tile in tl.range(tl.program_id(0), total, tl.num_programs(0), flatten=True):
        e, m, n = _locate(tile, expert_M, first_E, columns, GROUP)
        acc = tl.zeros((BM, BD), tl.float32)
        for k in range(0, 2 * half):
            plane, f = k // half, k % half * BK
            left = _load(dh, plane * R + m * BM, 0, f, BM, F, BM, BK, BK, TMA)
            right = _load(w1, (2 * e + plane) * F, f, n * BD, F, D, BK, BD, BD, TMA)
            acc = tl.dot(left, right, acc, input_precision="ieee")
        _store(dx, m * BM, n * BD, acc, D, BM, BD, BD, TMA)


@triton.jit
def weight_gradient_kernel(
    left, right, token_R, out, first_E, E, R,
    D: tl.constexpr, F: tl.constexpr, BM: tl.constexpr, BF: tl.constexpr, BD: tl.constexpr,
    BK: tl.constexpr, DOWN: tl.constexpr, ADD: tl.constexpr, CHUNKS: tl.constexpr,
    TMA: tl.constexpr,
):  # fmt: skip
    """Σ over an expert's rows of left[row] ⊗ right[token[row]], written or added to `out`.

    w1: left is dh (two planes), right is x, out [E, 2, F, D]. w2 (DOWN): left is a, right is dy,
    out [E, D, F]. An expert without rows gets zeros.
    """
    planes: tl.constexpr = 1 if DOWN else 2
    across: tl.constexpr = (D + BD - 1) // BD
    per_plane: tl.constexpr = (F + BF - 1) // BF * across
    for tile in tl.range(tl.program_id(0), E * planes * per_plane, tl.num_programs(0)):
        e = tile // (planes * per_plane)
        plane = tile // per_plane % planes
        f, d = tile % per_plane // across * BF, tile % across * BD
        start = tl.load(first_E + e) * BM
        end = tl.load(first_E + e + 1) * BM
        k = tl.arange(0, BK)
        if DOWN:
            acc = tl.zeros((BD, BF), tl.float32)
        else:
            acc = tl.zeros((BF, BD), tl.float32)
        # One step ahead: a gather's addresses must be known when its copies are issued.
        token = tl.load(token_R + start + k, mask=start + k < end, other=0)
        for row in range(start, end, BK):
            next_token = tl.load(token_R + row + BK + k, mask=row + BK + k < end, other=0)
            if TMA:
                one = _load(left, plane * R + row, 0, f, BK, F, BK, BF, BF, TMA)
                two = _gathered(right, token, d, D, BD)
                if DOWN:
                    acc = tl.dot(two.T, one, acc, input_precision="ieee")
                else:
                    acc = tl.dot(one.T, two, acc, input_precision="ieee")
            elif DOWN:
                one = _load(left, plane * R + row, 0, f, BK, F, BK, BF, BF, TMA)
                two = _transposed(right, token, d, D, BD)
                acc = tl.dot(two, one, acc, input_precision="ieee")
            else:
                one = _transposed(left, plane * R + row + k, f, F, BF)
                two = _gathered(right, token, d, D, BD)
                acc = tl.dot(one, two, acc, input_precision="ieee")
            token = next_token
        if DOWN:
            _store_weight(acc, out, e * D, d, f, D, F, BD, BF, ADD, CHUNKS)
        else:
            _store_weight(acc, out, (2 * e + plane) * F, f, d, F, D, BF, BD, ADD, CHUNKS)


@triton.jit
def _store_weight(
    acc, out, first, row, column, ROWS: tl.constexpr, COLUMNS: tl.constexpr, BR: tl.constexpr,
    BC: tl.constexpr, ADD: tl.constexpr, CHUNKS: tl.constexpr,
):  # fmt: skip
    """Write or add a block of a weight's gradient, in CHUNKS chunks of columns."""
    if CHUNKS == 1:
        at = _at(out, first, row, column, COLUMNS, BR, BC)
        inside = _inside(row, column, ROWS, COLUMNS, BR, BC)
        if ADD:
            acc += tl.load(at, mask=inside, other=0.0)
        tl.store(at, acc.to(out.dtype.element_ty), mask=inside)
    else:
        one, two = _halves(acc, BR, BC)
        half: tl.constexpr = BC // 2
        _store_weight(one, out, first, row, column, ROWS, COLUMNS, BR, half, ADD, CHUNKS // 2)
        column += half
        _store_weight(two, out, first, row, column, ROWS, COLUMNS, BR, half, ADD, CHUNKS // 2)
