"""Loss curves of one or more runs, from their metrics.jsonl.

python tools/plot_loss.py runs/quickstart/stage1
python tools/plot_loss.py runs/a runs/b --output compared.png
"""

import sys
from pathlib import Path
from typing import Annotated

import matplotlib
import numpy as np
import typer

matplotlib.use("Agg")  # draws without a screen
import matplotlib.pyplot as plt  # noqa: E402

from megatron_ring.report.curves import smooth  # noqa: E402
from megatron_ring.run_folder import Line, curve, read_lines  # noqa: E402


def plot(runs: dict[str, list[Line]], output: Path) -> None:
    """Write the PNG: training loss faint and smoothed, held-out points, learning rate below."""
    figure, (top, bottom) = plt.subplots(
        2, 1, figsize=(8, 6), sharex=True, height_ratios=[4, 1], layout="constrained"
    )
    for index, (name, lines) in enumerate(runs.items()):
        colour = f"C{index}"
        steps, loss = curve(lines, "loss")
        top.plot(steps, loss, color=colour, alpha=0.25, linewidth=0.8)
        window = len(loss) // 50 | 1  # odd, so that it lies evenly around each step
        top.plot(steps, smooth(np.array(loss), window), color=colour, label=f"{name}, training")
        if any("valid_loss" in line for line in lines):
            top.plot(*curve(lines, "valid_loss"), "o--", color=colour, label=f"{name}, held out")
        bottom.plot(*curve(lines, "lr"), color=colour)
    top.set_ylabel("loss (nats)")
    top.grid(alpha=0.3)
    top.legend()
    bottom.set(xlabel="step", ylabel="learning rate")
    bottom.grid(alpha=0.3)
    figure.savefig(output, dpi=120)
    plt.close(figure)


def summary(lines: list[Line]) -> str:
    """First and last values of the losses; ValueError when there is no step to speak of."""
    steps, loss = curve(lines, "loss")
    if not steps:
        raise ValueError('there is no line with a "loss" yet')
    said = f"{steps[-1]} steps, training loss {loss[0]:.3f} -> {np.mean(loss[-10:]):.3f}"
    held_out = curve(lines, "valid_loss")[1]
    return said + (f", held out {held_out[0]:.3f} -> {held_out[-1]:.3f}" if held_out else "")


def main(
    runs: Annotated[list[Path], typer.Argument(help="run folders, each with a metrics.jsonl")],
    output: Annotated[Path | None, typer.Option(help="the PNG [RUN/loss.png]")] = None,
) -> None:
    """Plot the losses of runs and say where they began and ended.

    Example: python tools/plot_loss.py runs/a runs/b --output compared.png
    """
    output = output or runs[0] / "loss.png"
    read_runs = {}
    for run in runs:
        try:
            read_runs[str(run)] = read_lines(run)
            print(f"{run}: {summary(read_runs[str(run)])}")
        except ValueError as error:
            sys.exit(str(error) if str(run) in str(error) else f"{run}: {error}")
    plot(read_runs, output)
    print(f"wrote {output}")


if __name__ == "__main__":
    typer.run(main)
