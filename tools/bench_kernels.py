"""Time and memory of one MoE layer and of the small operations around it, ours beside others'.

\b
    python tools/bench_kernels.py                        # a CPU's share: half a minute
    python tools/bench_kernels.py --json kernels.json    # on a GPU: two shapes, 4K to 32K tokens
    python tools/bench_kernels.py --shape ling-lite --tokens 16384 --part experts,stages

Parts: `experts`, the routed experts from tokens and choices to tokens; `stages`, each Triton kernel
of ours by itself; `pointwise`, RMSNorm, the shared experts' SwiGLU, router and rotary embedding.
Candidates of `experts`: loop, one expert after the other; grouped_mm, our torch backend with
torch's grouped GEMMs; compile, the same under torch.compile; liger and moe-ops, where installed;
triton, our kernels. NAME+add adds the weights' gradients to float32 buffers, as training does.

First each candidate's outputs and gradients are compared to a reference in float32, in the norm
(`off` is the worst); one that is wrong, fails or is not there is named with the reason. The others
run turn by turn, each time through several sets of inputs, which no cache holds. Figures are of one
set, medians. On a GPU, launching costs nothing unless a candidate waits for the device.

TFLOP/s count products of tokens and weights: 6 · T · K · D · F forward, 18 both ways. `floor` is
the share of what the data sheet allows to products, or to bytes that must move, if those take
longer. Peak memory, on GPUs only, is what both ways take beyond inputs, weights and buffers.

Liger tries some 200 configurations a shape at first, for minutes, unless in the environment
LIGER_FUSED_MOE_AUTOTUNE=0; then it is slower.
"""

import datetime
import json
import operator
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.nn.functional as F
import typer
from rich.console import Console
from torch import Tensor

from megatron_ring import platform
from megatron_ring.kernels.experts import moe_mlp
from megatron_ring.kernels.rotary import split_and_rotate
from megatron_ring.kernels.router import route
from megatron_ring.metrics import PEAK_TFLOPS
from megatron_ring.platform.contest import (
    Candidate,
    Contest,
    Draw,
    Forward,
    Inputs,
    Operation,
    Row,
    Work,
    compiled,
)
from megatron_ring.platform.timing import machine, make_room_for

app = typer.Typer(add_completion=False, rich_markup_mode=None)
console = Console(highlight=False)
PARTS, ROUTINGS = ("experts", "stages", "pointwise"), ("balanced", "zipf")
# TB/s of the SXM modules, from the same data sheets as PEAK_TFLOPS; A100 of 80 GB.
BANDWIDTH = {"A100": 2.039, "H100": 3.35, "H200": 4.8}
OTHER_MODULES = ("PCI", "NVL", "40GB")  # slower, and not in these tables
# Goals for one Ling-Lite layer of 16,384 tokens, both ways: times as fast as those, and TFLOP/s.
RIVALS, RATES = {"liger": 1.5, "grouped_mm": 1.2}, {"good": 450.0, "stretch": 520.0}


@dataclass(frozen=True)
class Shape:
    D: int
    F: int
    E: int
    K: int
    shared: int  # width of the shared experts' MLP
    heads: int
    groups: int  # key/value heads
    head_size: int


SHAPES = {
    "ling-lite": Shape(2048, 1408, 64, 6, 2816, 16, 4, 128),  # configs/model/ling_lite.yaml
    "ling-mini": Shape(2048, 512, 256, 8, 512, 16, 4, 128),  # inclusionAI/Ling-mini-2.0 config.json
    "tiny": Shape(128, 88, 8, 2, 176, 4, 2, 32),  # configs/model/ling_tiny.yaml
}


@app.command(help=__doc__)
def main(
    part: Annotated[str, typer.Option(help="experts, stages, pointwise; or all")] = "all",
    shape: Annotated[str, typer.Option(help="ling-lite, ling-mini, tiny; empty: as fits")] = "",
    tokens: Annotated[str, typer.Option(help="as in 4096,16384; empty: 4K to 32K, CPU 2048")] = "",
    routing: Annotated[str, typer.Option(help="balanced, zipf (exponent 1); or all")] = "all",
    candidates: Annotated[str, typer.Option(help="names with commas; or all")] = "all",
    repeats: Annotated[int, typer.Option(min=1, help="timed runs of each")] = 10,
    json_file: Annotated[Path | None, typer.Option("--json", help="write all of it here")] = None,
) -> None:
    gpu = torch.cuda.is_available()
    tokens = tokens or ("4096,8192,16384,32768" if gpu else "2048")
    if not all(text.isdecimal() and int(text) for text in tokens.split(",")):
        raise SystemExit(f"error: --tokens {tokens}: numbers from 1, as in 4096,16384")
    sizes = [int(text) for text in tokens.split(",")]
    shapes = choose("shape", shape or ("ling-lite,ling-mini" if gpu else "tiny"), SHAPES)
    parts, routings = choose("part", part, PARTS), choose("routing", routing, ROUTINGS)
    everyone = dict.fromkeys(one.name for many in CANDIDATES.values() for one in many)
    names = choose("candidates", candidates, everyone)
    make_room_for(json_file)
    device, dtype = platform.prepare(), platform.dtype("auto")
    known = peaks(torch.cuda.get_device_name()) if gpu else None
    contest = Contest(device, repeats, names, known)
    about: Row = {"argv": sys.argv[1:], "date": str(datetime.date.today())}
    about |= {"machine": machine(device), "cuda": torch.version.cuda, "peaks": known}
    about |= {"dtype": str(dtype).removeprefix("torch."), "threads": torch.get_num_threads()}
    about |= {"LIGER_FUSED_MOE_AUTOTUNE": os.environ.get("LIGER_FUSED_MOE_AUTOTUNE", "")}
    about |= {"shapes": {name: asdict(SHAPES[name]) for name in shapes}, "rows": [], "goals": []}
    console.print(", ".join(f"{key} {value}" for key, value in about["machine"].items()))
    if known:
        console.print("data sheet: {:g} TFLOP/s, {:g} TB/s".format(*known))
    for a_part, name, T in product(parts, shapes, sizes):
        for a_routing in [""] if a_part == "pointwise" else routings:
            case = {"part": a_part, "shape": name, "tokens": T, "routing": a_routing}
            for rows in rows_of(contest, case, dtype):
                contest.show(rows, console)
                about["rows"] += rows
                about["goals"] = goals(about["rows"])
                if json_file:  # each time: a long run may be cut off
                    json_file.write_text(json.dumps(about, indent=1) + "\n")
    for goal in about["goals"]:
        console.print("goal: {what}: {found:.3g}, wanted {wanted:g}: {verdict}".format(**goal))


def choose(option: str, text: str, known: Any) -> list[str]:
    chosen = list(known) if text == "all" else [name.strip() for name in text.split(",")]
    if strange := [name for name in chosen if name not in known]:
        raise SystemExit(f"error: --{option} {strange[0]}: all, or some of {', '.join(known)}")
    return chosen


def rows_of(contest: Contest, case: Row, dtype: torch.dtype) -> Iterator[list[Row]]:
    """Rows of one case, operation by operation."""
    if contest.device.type == "cuda":
        torch.compiler.reset()  # it allows a number of recompilations
    given = (SHAPES[case["shape"]], case["tokens"], Draw(contest.device, dtype))
    if case["part"] == "pointwise":
        found = (contest.rows(make(*given)) for make in (norm, swiglu, router, rotary))
    elif case["part"] == "experts":
        found = iter([contest.rows(experts(*given, case["routing"]))])
    else:
        make = experts(*given, case["routing"]).make
        found = iter([contest.stages(make, stage_runs, stage_work(*given[:2], dtype.itemsize))])
    return ([case | row for row in rows] for rows in found)


def peaks(device: str) -> tuple[float, float] | None:
    """Peak TFLOP/s in bf16 and TB/s of a device that the tables know."""
    for kind, bandwidth in BANDWIDTH.items():
        if f" {kind}" in device and not any(other in device for other in OTHER_MODULES):
            return PEAK_TFLOPS[kind], bandwidth
    return None


def choices(s: Shape, tokens: int, routing: str, draw: Draw) -> Tensor:
    """K different experts a token: all alike, or the r-th with weight 1 / r (Gumbel's way)."""
    noise_TE = draw.normal(tokens, s.E, dtype=torch.float32)
    score_TE = -noise_TE.exponential_(generator=draw.generator).log()
    if routing == "zipf":
        rank_E = torch.randperm(s.E, generator=draw.generator, device=draw.device) + 1
        score_TE -= rank_E.log()
    return score_TE.topk(s.K).indices


def experts(s: Shape, tokens: int, draw: Draw, routing: str) -> Operation:
    w1 = draw.normal(s.E, 2 * s.F, s.D, scale=s.D**-0.5).requires_grad_()
    w2 = draw.normal(s.E, s.D, s.F, scale=s.F**-0.5).requires_grad_()

    def make() -> Inputs:
        x, dy = draw.normal(tokens, s.D).requires_grad_(), draw.normal(tokens, s.D)
        prob = draw.normal(tokens, s.K, dtype=torch.float32).softmax(-1).requires_grad_()
        leaves = {"x": x, "prob": prob, "w1": w1, "w2": w2}
        return Inputs(leaves, (choices(s, tokens, routing, draw),), (dy,))

    work = stage_work(s, tokens, draw.dtype.itemsize)

    def total(*names: str) -> Work:
        flop, size = zip(*(work[name] for name in names), strict=True)
        return sum(flop), sum(size)

    forward, back = ("up", "down", "combine"), ("down_backward", "up_backward", "combine")
    both = total(*forward, *back, "w1", "w2"), total(*forward, *back, "w1 added", "w2 added")
    return Operation("experts", CANDIDATES["experts"], make, total(*forward), *both)


def norm(s: Shape, tokens: int, draw: Draw) -> Operation:
    w_D, n = draw.normal(s.D).requires_grad_(), tokens * s.D * draw.dtype.itemsize

    def make() -> Inputs:
        x, dy = draw.normal(tokens, s.D).requires_grad_(), draw.normal(tokens, s.D)
        return Inputs({"x": x, "w": w_D}, (), (dy,))

    return Operation("norm", CANDIDATES["norm"], make, (0, 2 * n), (0, 5 * n))


def swiglu(s: Shape, tokens: int, draw: Draw) -> Operation:
    n = tokens * s.shared * draw.dtype.itemsize

    def make() -> Inputs:
        x = draw.normal(tokens, 2 * s.shared).requires_grad_()
        return Inputs({"x": x}, (), (draw.normal(tokens, s.shared),))

    return Operation("swiglu", CANDIDATES["swiglu"], make, (0, 3 * n), (0, 8 * n))


def router(s: Shape, tokens: int, draw: Draw) -> Operation:
    normal = partial(draw.normal, dtype=torch.float32)

    def make() -> Inputs:
        padding_T = torch.zeros(tokens, dtype=torch.bool, device=draw.device)
        dout = (normal(tokens, s.K), normal(s.E), normal(1)[0])
        return Inputs({"logits": normal(tokens, s.E).requires_grad_()}, (padding_T, s.K), dout)

    logits, chosen = 4 * tokens * s.E, 12 * tokens * s.K
    both = (0, 3 * logits + 2 * chosen)
    return Operation("router", CANDIDATES["router"], make, (0, logits + chosen), both)


def rotary(s: Shape, tokens: int, draw: Draw) -> Operation:
    slots, R = s.heads // s.groups + 2, s.head_size
    angles_SR = draw.normal(tokens, 1, R // 2, dtype=torch.float32).repeat(1, 1, 2)

    def make() -> Inputs:
        dout = [draw.normal(tokens, heads, R) for heads in (s.heads, s.groups, s.groups)]
        qkv = draw.normal(tokens, s.groups, slots, R).requires_grad_()
        return Inputs({"qkv": qkv}, (angles_SR.cos(), angles_SR.sin()), tuple(dout))

    n = tokens * s.groups * slots * R * draw.dtype.itemsize + 4 * tokens * R
    return Operation("rotary", CANDIDATES["rotary"], make, (0, 2 * n), (0, 4 * n))


def ours(backend: str) -> Forward:
    return lambda x, prob, w1, w2, chosen: moe_mlp(x, prob, chosen, w1, w2, backend)


def liger_experts(x: Tensor, prob: Tensor, w1: Tensor, w2: Tensor, chosen: Tensor) -> Tensor:
    """Its weights lie as ours do; it wants choices in int32."""
    from liger_kernel.ops.fused_moe import LigerFusedMoEFunction

    return LigerFusedMoEFunction.apply(x, w1, w2, chosen.int(), prob)


def moe_ops_experts(x: Tensor, prob: Tensor, w1: Tensor, w2: Tensor, chosen: Tensor) -> Tensor:
    """Its operations one after the other, SwiGLU by torch; weights lie as ours do."""
    import moe_ops

    rows, place, offsets = moe_ops.permute(x, chosen.int(), 0, len(w1))
    h = eager_swiglu(moe_ops.grouped_gemm(rows, w1, offsets))
    return moe_ops.unpermute(moe_ops.grouped_gemm(h, w2, offsets), place, prob, *chosen.shape)


def torch_norm(x: Tensor, w: Tensor) -> Tensor:
    return F.rms_norm(x, w.shape, w, 1e-6)


def liger_norm(x: Tensor, w: Tensor) -> Tensor:
    """All in float32, as torch does; the gradient in memory of its own, as several read dy."""
    from liger_kernel.ops.rms_norm import LigerRMSNormFunction

    return LigerRMSNormFunction.apply(x, w, 1e-6, 0.0, "gemma", False)


def eager_swiglu(x: Tensor) -> Tensor:
    gate, up = x.chunk(2, dim=-1)
    return F.silu(gate) * up


def megatron_swiglu(x: Tensor) -> Tensor:
    from megatron.core.fusions.fused_bias_swiglu import bias_swiglu_impl

    return bias_swiglu_impl(x, None)


def liger_swiglu(x: Tensor) -> Tensor:
    from liger_kernel.ops.swiglu import LigerSiLUMulFunction

    return LigerSiLUMulFunction.apply(*x.chunk(2, dim=-1))


def liger_fused_swiglu(x: Tensor) -> Tensor:
    from liger_kernel.ops.swiglu import LigerFusedGateUpSiLUMulFunction

    return LigerFusedGateUpSiLUMulFunction.apply(x)


def stage_work(s: Shape, tokens: int, width: int) -> dict[str, Work]:
    """FLOP of each kernel, and bytes that it reads and writes at least: tokens and weights once."""
    rows, x, w = tokens * s.K, tokens * s.D, s.E * s.D * s.F
    gemm, hidden, wide = 2 * rows * s.D * s.F, rows * s.F, rows * s.D
    return {
        "order": (0, 24 * rows),
        "up": (2 * gemm, width * (x + 2 * w + 3 * hidden)),
        "down": (gemm, width * (hidden + w + wide)),
        "combine": (0, width * (wide + x)),
        "down_backward": (gemm, width * (x + w + 5 * hidden)),
        "up_backward": (2 * gemm, width * (2 * hidden + 2 * w + wide)),
        "w1": (2 * gemm, width * (x + 2 * hidden + 2 * w)),
        "w2": (gemm, width * (x + hidden + w)),
        "w1 added": (2 * gemm, width * (x + 2 * hidden) + 8 * 2 * w),
        "w2 added": (gemm, width * (x + hidden) + 8 * w),
    }


def stage_runs(inputs: Inputs) -> dict[str, Callable[[], Any]]:
    """Each kernel of ours over one layer's real tensors."""
    from megatron_ring.kernels import experts_fused as fused

    x, prob, w1, w2 = inputs.leaves.values()
    [chosen], [dy] = inputs.fixed, inputs.dout
    given = (chosen, prob.detach(), len(w1), fused.tiles_for(x.device))
    run = fused._Launcher(w1.detach(), w2.detach(), fused.order(*given), given[-1])
    h, a = run.up(x)
    y, (dh, a_again, _) = run.down(a), run.down_backward(dy, h)
    return {
        "order": lambda: fused.order(*given),
        "up": lambda: run.up(x),
        "down": lambda: run.down(a),
        "combine": lambda: run.combine(y),
        "down_backward": lambda: run.down_backward(dy, h),
        "up_backward": lambda: run.up_backward(dh),
        "w1": lambda: run.weight_gradient(dh, x, run.w1, False),
        "w2": lambda: run.weight_gradient(a_again, dy, run.w2, True),
        "w1 added": lambda: run.weight_gradient(dh, x, w1, False),
        "w2 added": lambda: run.weight_gradient(a_again, dy, w2, True),
    }


def router_of(backend: str) -> Forward:
    outputs = operator.attrgetter("prob_TK", "scores_E", "z")
    return lambda *given: outputs(route(*given, normalise=True, backend=backend))


def goals(rows: list[Row]) -> list[Row]:
    """What is wanted of our kernels and what was measured, where it was."""
    found = []
    for routing in ROUTINGS:
        case = ("experts", "ling-lite", 16384, routing)
        here = [r for r in rows if (r["part"], r["shape"], r["tokens"], r["routing"]) == case]
        both = {row["name"]: row["timings"]["both"] for row in here if not row["failed"]}
        if "triton" not in both:
            continue
        measured = [
            (f"times as fast as {rival}", both[rival]["seconds"] / both["triton"]["seconds"], least)
            for rival, least in RIVALS.items()
            if rival in both
        ]
        measured += [(f"TFLOP/s ({n})", both["triton"]["tflops"], r) for n, r in RATES.items()]
        for what, value, wanted in measured:
            goal = {"what": f"{routing}, {what}", "found": value, "wanted": wanted}
            found.append(goal | {"verdict": "met" if value >= wanted else "not met"})
    return found


def plain_and_fused(torch_one: Forward, triton_one: Forward) -> list[Candidate]:
    return [Candidate("torch", torch_one), Candidate("triton", triton_one, gpu=True)]


LIGER: Row = {"gpu": True, "package": "liger_kernel"}
CANDIDATES = {
    "experts": [
        Candidate("loop", ours("loop")),
        Candidate("grouped_mm", ours("torch")),
        Candidate("grouped_mm+add", ours("torch"), add=True),
        Candidate("compile", compiled(ours("torch")), gpu=True),
        Candidate("liger", liger_experts, **LIGER),
        Candidate("moe-ops", moe_ops_experts, gpu=True, package="moe_ops"),
        Candidate("triton", ours("triton"), gpu=True),
        Candidate("triton+add", ours("triton"), gpu=True, add=True),
    ],
    "norm": [
        Candidate("torch", torch_norm),
        Candidate("compile", compiled(torch_norm), gpu=True),
        Candidate("liger", liger_norm, **LIGER),
    ],
    "swiglu": [
        Candidate("torch", eager_swiglu),
        Candidate("compile", compiled(eager_swiglu), gpu=True),
        Candidate("megatron", megatron_swiglu),
        Candidate("liger", liger_swiglu, **LIGER),
        Candidate("liger-fused", liger_fused_swiglu, **LIGER),
    ],
    "router": plain_and_fused(router_of("torch"), router_of("triton")),
    "rotary": plain_and_fused(split_and_rotate, partial(split_and_rotate, backend="triton")),
}


if __name__ == "__main__":
    app()
