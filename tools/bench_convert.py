"""Show that converting takes no more memory for a deeper model.

Makes random checkpoints of 4 and 16 layers, converts each both ways in a process of its own, and
prints how far its peak memory rose above that of the loaded program.

    python tools/bench_convert.py compare
    python tools/bench_convert.py compare --layers 4 --layers 28 --hidden 2048 --experts 64
"""

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table

from megatron_ring.config import ModelConfig
from megatron_ring.convert.synthetic import write_random_model
from megatron_ring.convert.transfer import export_checkpoint, import_checkpoint

app = typer.Typer(help=__doc__, no_args_is_help=True, rich_markup_mode=None, add_completion=False)
MIB = 1024**2

Hidden = Annotated[int, typer.Option(help="Width of the model.")]
Experts = Annotated[int, typer.Option(help="Routed experts a layer.")]


@app.command("compare")
def compare(
    layers: Annotated[list[int], typer.Option(help="Depths to compare.")] = [4, 16],  # noqa: B006
    hidden: Hidden = 512,
    experts: Experts = 32,
    folder: Annotated[
        Path | None, typer.Option(help="Where to write; default: a temporary.")
    ] = None,
) -> None:
    """Convert models of several depths and print a table."""
    table = Table("layers", "weights MiB", "program MiB", "import +MiB", "export +MiB")
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        for depth in layers:
            where = Path(temporary) / str(depth)
            size = write_random_model(where / "hf", _model(depth, hidden, experts), torch.bfloat16)
            loaded, imported = _in_child("import", where)
            _, exported = _in_child("export", where)
            rows = (size / MIB, loaded, imported - loaded, exported - loaded)
            table.add_row(str(depth), *(f"{number:.0f}" for number in rows))
    Console().print(table)


@app.command("step")
def step(
    name: Annotated[str, typer.Argument(help="import: FOLDER/hf to FOLDER/ckpt. export: to out.")],
    folder: Path,
) -> None:
    """Convert once; print the peak memory of this process in MiB, before and after."""
    loaded = _peak_of_this_process()
    if name == "import":
        import_checkpoint(folder / "hf", folder / "ckpt")
    else:
        export_checkpoint(folder / "ckpt", folder / "out")
    print(loaded, _peak_of_this_process())


def _model(layers: int, hidden: int, experts: int) -> ModelConfig:
    """Ling-Lite's proportions, roughly: most of the weights are routed experts."""
    return ModelConfig(
        vocab_size=16 * hidden,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=hidden // 128,
        intermediate_size=4 * hidden,
        moe_intermediate_size=hidden // 2,
        num_experts=experts,
        num_experts_per_tok=2,
        num_shared_experts=2,
        norm_topk_prob=True,
        norm_head=True,
        rms_norm_eps=1e-6,
        rope_theta=1e4,
        max_position_embeddings=4096,
    )


def _in_child(name: str, folder: Path) -> tuple[float, float]:
    command = [sys.executable, __file__, "step", name, str(folder)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    loaded, peak = done.stdout.split()
    return float(loaded), float(peak)


def _peak_of_this_process() -> float:
    """MiB, from Linux. Not getrusage: its peak survives exec, so a child would report the larger
    of its own and its parent's."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


if __name__ == "__main__":
    app()
