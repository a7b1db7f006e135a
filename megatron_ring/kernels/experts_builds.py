"""The experts' kernels as the lint compiles them: Ling-Lite's and Ling-mini's sizes in bf16."""

from typing import Any

from megatron_ring.kernels import experts_triton as kernels
from megatron_ring.kernels.build import Build
from megatron_ring.kernels.experts_fused import TILES, Tile, Tiles

SHAPES = {"Ling-Lite": (2048, 1408, 6), "Ling-mini": (2048, 512, 8)}  # D, F, K


def builds(arch: int) -> list[Build]:
    """Every configuration that `TILES[arch]` can launch."""
    return [
        build
        for name, (D, F, K) in SHAPES.items()
        for build in (*_gemms(name, D, F, TILES[arch]), _combine(name, D, K))
    ]


def _gemms(name: str, D: int, F: int, tiles: Tiles) -> list[Build]:
    BM = tiles.rows

    def buffer(*block: int) -> str:
        return f"tensordesc<bf16{list(block)}>" if tiles.tma else "*bf16"

    def build(kernel: Any, t: Tile, blocks: dict[str, str], label: str = "", **sizes: Any) -> Build:
        common = {"D": D, "F": F, "BM": BM, "BK": t.inner, "CHUNKS": t.chunks}
        sizes = common | {"GROUP": tiles.group, "TMA": tiles.tma} | sizes
        types = INDICES | blocks
        return Build(
            name=f"{kernel.__name__}{label} {name}",
            kernel=kernel,
            signature={key: types[key] for key in kernel.arg_names if key in types},
            constexprs={key: sizes[key] for key in kernel.arg_names if key in sizes},
            warps=t.warps,
            stages=t.stages,
            tensor_cores=True,
            tma=tiles.tma,
        )

    t = tiles.up
    stored = buffer(BM, t.columns)
    weight = buffer(2, t.columns, t.inner)
    up = {"x": "*bf16", "w1": weight, "h": stored, "a": stored}
    found = [build(kernels.up_kernel, t, up, BF=t.columns)]

    t = tiles.down
    down = {"a": buffer(BM, t.inner), "w2": buffer(t.columns, t.inner)}
    down["y"] = buffer(BM, t.columns)
    found.append(build(kernels.down_kernel, t, down, BD=t.columns))

    t = tiles.down_backward
    chunk = buffer(BM, t.columns // t.chunks)
    back = {"dy": "*bf16", "w2": buffer(t.inner, t.columns), "h": chunk, "dh": chunk, "a": chunk}
    found.append(build(kernels.down_backward_kernel, t, back, BF=t.columns))

    t = tiles.up_backward
    back = {"dh": buffer(BM, t.inner), "w1": buffer(t.inner, t.columns)}
    back["dx"] = buffer(BM, t.columns)
    found.append(build(kernels.up_backward_kernel, t, back, BD=t.columns))

    for add, t in ((False, tiles.weight), (True, tiles.weight_add)):
        given = {"left": buffer(t.inner, t.rows), "right": "*bf16"}
        given["out"] = "*fp32" if add else "*bf16"
        for down in (False, True):
            label = f" of {'w2' if down else 'w1'}{', added' if add else ''}"
            sizes = {"BF": t.rows, "BD": t.columns, "DOWN": down, "ADD": add}
            found.append(build(kernels.weight_gradient_kernel, t, given, label, **sizes))
    return found


def _combine(name: str, D: int, K: int) -> Build:
    return Build(
        name=f"combine_kernel {name}",
        kernel=kernels.combine_kernel,
        signature={"y": "*bf16", "row_TK": "*i32", "out": "*bf16", "T": "i32"},
        constexprs={"K": K, "D": D, "BT": 1, "BD": 2048},
        warps=4,
        stages=3,
    )


INDICES = {
    "dprob_NR": "*fp32",
    "token_R": "*i32",
    "prob_R": "*fp32",
    "expert_M": "*i32",
    "first_E": "*i32",
    "E": "i32",
    "R": "i32",
}
