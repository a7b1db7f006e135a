"""Are two runs the same run? If not: where do they part, in what, and how far do they drift?

python tools/compare_runs.py runs/a runs/b
python tools/compare_runs.py runs/a runs/b --rtol 1e-5 --keys loss,grad_norm --plot difference.png
"""

import math
import sys
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from megatron_ring import run_folder

# What depends on the machine, not on what is computed.
APART = {"step", "time", "mfu", "memory_gib", "step_seconds", "tflops_per_device", "goodput"}
APART_BEGINNINGS = ("tokens_per_second", "seconds/")
# Numbers of the step itself; the others of a training line are of all steps since the line before.
OF_THE_STEP = ("lr", "grad_norm", "skipped", "queued", "dropped")
FIRST_NAMED = ("loss", "grad_norm", "lr")  # of several keys that part at the same step
MOST_KEYS, MOST_CONFIG = 8, 20

Values = dict[str, Any]  # numbers by key, all lines of a step together


class Run(NamedTuple):
    """What a run's folder says, by step."""

    folder: Path
    steps: dict[int, Values]
    begins: dict[int, int]  # step of a training line -> the step after which its interval begins
    maps: dict[int, int]  # the same of the heat map's lines, which have intervals of their own
    config: dict[str, Any]


class Difference(NamedTuple):
    """Where two values of a key differ."""

    step: int
    key: str
    a: Any
    b: Any

    @property
    def size(self) -> float:
        """Absolute difference; infinite where one is not a number."""
        try:
            size = abs(self.a - self.b)
        except TypeError:  # texts
            return math.inf
        return math.inf if math.isnan(size) else size

    @property
    def relative(self) -> float:
        return self.size / max(abs(self.a), abs(self.b)) if math.isfinite(self.size) else math.inf


def read(folder: Path) -> Run:
    """A run's lines put together by step; ValueError when there are none or they are damaged."""
    steps: dict[int, Values] = {}
    logged: list[int] = []
    maps: list[int] = []
    for line in run_folder.read_lines(folder):
        steps.setdefault(line["step"], {}).update(_numbers(line))
        if "loss" in line:
            logged.append(line["step"])
        if "expert_load" in line:
            maps.append(line["step"])
    if not any(steps.values()):
        raise ValueError(f"{folder}/metrics.jsonl has no line yet")
    starts = [e["step"] for e in run_folder.read_events(folder) if e["kind"] == "resume"]
    config = run_folder.flatten(run_folder.read_config(folder))
    return Run(folder, steps, _intervals(logged, starts), _intervals(maps, starts), config)


def _numbers(line: run_folder.Line) -> Values:
    """What of a line is compared; the heat map becomes a number for each layer and expert."""
    kept = {
        key: value
        for key, value in line.items()
        if key not in APART and not key.startswith(APART_BEGINNINGS)
    }
    for number, layer in enumerate(kept.pop("expert_load", []), kept.pop("first_layer", 1)):
        kept |= {f"expert_load/layer {number}/expert {e}": load for e, load in enumerate(layer)}
    return kept


def _intervals(logged: list[int], resumed: list[int]) -> dict[int, int]:
    """For each training line the step after which the steps begin that it sums up.

    That is the line before, or where the run was resumed: what a killed run had summed is gone.
    """
    begins, before = {}, 0
    for step in sorted(set(logged)):
        # A line is of the last start that came by: later ones that began after it left it alone.
        own = next((start for start in reversed(resumed) if start < step), 0)
        begins[step], before = max(before, own), step
    return begins


def common(a: Run, b: Run, wanted: list[str] | None) -> dict[int, list[str]]:
    """The keys that can be compared at each step that both have, in the order they are named.

    Where two lines sum up different steps, only what is of the step itself can be.
    """
    found = {}
    for step in sorted(a.steps.keys() & b.steps.keys()):
        keys = a.steps[step].keys() & b.steps[step].keys()
        if a.begins.get(step) != b.begins.get(step):
            keys = {key for key in keys if _of_the_step(key) or _is_map(key)}
        if a.maps.get(step) != b.maps.get(step):
            keys = {key for key in keys if not _is_map(key)}
        if wanted is not None:
            keys &= set(wanted)
        if keys:
            found[step] = sorted(keys, key=_place)
    return found


def _of_the_step(key: str) -> bool:
    return key in OF_THE_STEP or key.startswith(("grad_norm/", "valid_", "eval/", "spike_"))


def _is_map(key: str) -> bool:
    return key.startswith("expert_load/")


def _place(key: str) -> tuple[int, bool, str]:
    """Sorts keys: what people look at first, then by name, the heat map's many last."""
    first = FIRST_NAMED.index(key) if key in FIRST_NAMED else len(FIRST_NAMED)
    return first, _is_map(key), key


def same(a: Any, b: Any, rtol: float) -> bool:
    """Equal, both nan, or at most `rtol` of the larger apart."""
    if a == b or (a != a and b != b):
        return True
    numbers = isinstance(a, int | float) and isinstance(b, int | float)
    return numbers and rtol > 0 and abs(a - b) <= rtol * max(abs(a), abs(b)) < math.inf


def differences(a: Run, b: Run, keys: dict[int, list[str]], rtol: float) -> list[Difference]:
    """Everything that differs, by step and in the order the keys are named."""
    found = []
    for step, names in keys.items():
        for key in names:
            one, other = a.steps[step][key], b.steps[step][key]
            if not same(one, other, rtol):
                found.append(Difference(step, key, one, other))
    return found


def listed(names: list[str]) -> str:
    """Names with commas; of many only how many more there are, the heat map's as one."""
    heat = sum(map(_is_map, names))
    shown = [name for name in names if not _is_map(name)]
    shown += [f"expert_load of {heat} experts"] * (heat > 0)
    more = len(shown) - 2 * MOST_KEYS
    return ", ".join(shown[: 2 * MOST_KEYS]) + (f" and {more} more" if more > 0 else "")


def introduction(a: Run, b: Run) -> list[str]:
    """What the two runs are, in what their configurations differ, and which is longer."""
    said = []
    for name, run in (("A", a), ("B", b)):
        said.append(
            f"{name}  {run.folder}: {_steps(len(run.steps))} logged, the last {max(run.steps)}"
        )
    if a.config and b.config:
        missing = "(not there)"
        names = sorted(a.config.keys() | b.config.keys())
        pairs = [(k, a.config.get(k, missing), b.config.get(k, missing)) for k in names]
        apart = [f"  {k}: {one} | {other}" for k, one, other in pairs if one != other]
        said.append("configurations (A | B):" if apart else "configurations: the same")
        said += apart[:MOST_CONFIG]
        said += [f"  and {len(apart) - MOST_CONFIG} more"] * (len(apart) > MOST_CONFIG)
    else:
        lacking = " and in ".join(str(run.folder) for run in (a, b) if not run.config)
        said.append(f"configurations: not compared, there is no config.yaml in {lacking}")
    shorter, longer, name = (a, b, "B") if max(a.steps) < max(b.steps) else (b, a, "A")
    if extra := [step for step in longer.steps if step > max(shorter.steps)]:
        said.append(
            f"{name} is longer: {_steps(len(extra), 'logged ')} after step {max(shorter.steps)}"
        )
    return said


def coverage(a: Run, b: Run, keys: dict[int, list[str]], wanted: list[str] | None) -> list[str]:
    """What of the common steps is not compared, and why."""
    said = []
    both = a.begins.keys() & b.begins.keys()
    if uneven := [step for step in sorted(both) if a.begins[step] != b.begins[step]]:
        said.append(
            f"at {_steps(len(uneven))}, the first {uneven[0]}, the lines sum up different steps "
            f"(after {a.begins[uneven[0]]} in A, after {b.begins[uneven[0]]} in B: log.every, or a "
            "restart between lines); there only what is of the step itself is compared"
        )
    if wanted is None:
        for name, run, other in (("A", a, b), ("B", b, a)):
            every = [step for step in keys if step in run.begins and step in other.begins]
            own = {k for step in every for k in run.steps[step].keys() - other.steps[step].keys()}
            said += [f"only in {name}: {listed(sorted(own, key=_place))}"] * bool(own)
    said.append("times, speeds, memory and goodput are not compared")
    return said


def verdict(keys: dict[int, list[str]], found: list[Difference], rtol: float) -> list[str]:
    """Identical over what, or where they part, and how far they drift."""
    names = sorted({name for step in keys for name in keys[step]}, key=_place)
    span = f"{_steps(len(keys), 'common ')}, {min(keys)} to {max(keys)}"
    if not found:
        how = "identical" if rtol == 0 else f"equal within {rtol:g} (relative)"
        return [f"{how}: {span}, {_count(len(names), 'key')}: {listed(names)}"]
    first = [one for one in found if one.step == found[0].step]
    said = [f"they part at step {first[0].step}, in {_told(first[0])}"]
    said += [f"  there also {_told(one)}" for one in first[1:MOST_KEYS]]
    said += [f"  and {len(first) - MOST_KEYS} more keys"] * (len(first) > MOST_KEYS)
    if before := sum(step < first[0].step for step in keys):
        word = "identical" if rtol == 0 else "equal"
        verb = "is" if before == 1 else "are"
        said.append(f"the {_steps(before, 'common ')} before {verb} {word}")
    said.append(f"largest differences ({span}):")
    drift = {}
    for one in found:
        if one.key not in drift or one.size > drift[one.key].size:
            drift[one.key] = one
    worst = sorted(drift.values(), key=lambda one: _place(one.key))
    heat = [one for one in worst if _is_map(one.key)]
    worst = [one for one in worst if one not in heat]
    worst += [max(heat, key=lambda one: one.size)] if heat else []  # one for the whole map
    said += [f"  {one.key}: {one.size:.6g} at step {one.step} ({_relative(one)})" for one in worst]
    equal = [name for name in names if name not in drift]
    return said + [f"equal throughout: {listed(equal)}"] * bool(equal)


def _steps(count: int, kind: str = "") -> str:
    return _count(count, f"{kind}step")


def _count(count: int, of: str) -> str:
    return f"{count:,} {of}{'s' * (count != 1)}"


def _told(one: Difference) -> str:
    return f"{one.key}: A {one.a!r}, B {one.b!r}, difference {one.size:.6g} ({_relative(one)})"


def _relative(one: Difference) -> str:
    return f"relative {one.relative:.3g}"


def plot(a: Run, b: Run, keys: dict[int, list[str]], output: Path) -> None:
    """A PNG: both losses (or the first key) above, differences of the first keys below."""
    import matplotlib

    matplotlib.use("Agg")  # draws without a screen
    import matplotlib.pyplot as plt

    names = sorted({name for step in keys for name in keys[step]}, key=_place)[:4]
    figure, (top, bottom) = plt.subplots(2, 1, figsize=(8, 6), sharex=True, layout="constrained")
    for run, style in ((a, "-"), (b, "--")):
        steps = [step for step in sorted(run.steps) if names[0] in run.steps[step]]
        values = [run.steps[step][names[0]] for step in steps]
        top.plot(steps, values, style, label=str(run.folder))
    for name in names:
        steps = [step for step in keys if name in keys[step]]
        pairs = [(a.steps[step][name], b.steps[step][name]) for step in steps]
        sizes = [0 if same(*pair, 0) else Difference(0, name, *pair).size for pair in pairs]
        bottom.plot(steps, sizes, label=name)
    top.set_ylabel(names[0])
    bottom.set_yscale("symlog", linthresh=1e-8)  # a logarithm that has a 0
    bottom.set(xlabel="step", ylabel="absolute difference", ylim=(0, None))
    for axes in (top, bottom):
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(output, dpi=120)
    plt.close(figure)


def compare(a: Run, b: Run, rtol: float, wanted: list[str] | None) -> tuple[list[str], bool]:
    """What to say, and whether the runs are the same; ValueError when nothing can be compared."""
    for key in wanted or []:
        for run in (a, b):
            if not any(key in values for values in run.steps.values()):
                known = sorted({k for values in run.steps.values() for k in values}, key=_place)
                raise ValueError(
                    f"--keys {key}: {run.folder} has no such key; it has {listed(known)}"
                )
    keys = common(a, b, wanted)
    if not keys:
        raise ValueError(
            f"nothing can be compared: {a.folder} and {b.folder} have no step at which both logged "
            f"{' or '.join(wanted) if wanted else 'the same keys'} over the same steps; compare "
            "runs with the same log.every, or --keys grad_norm,lr"
        )
    found = differences(a, b, keys, rtol)
    said = introduction(a, b) + coverage(a, b, keys, wanted) + verdict(keys, found, rtol)
    return said, not found


def main(
    a: Annotated[Path, typer.Argument(help="a run's folder")],
    b: Annotated[Path, typer.Argument(help="another's")],
    rtol: Annotated[
        float, typer.Option(help="how far apart still counts as equal, relative", min=0.0)
    ] = 0.0,
    keys: Annotated[
        str | None, typer.Option(help="compare only these, with commas: loss,grad_norm")
    ] = None,
    output: Annotated[Path | None, typer.Option("--plot", help="a PNG of the differences")] = None,
) -> None:
    """Compare what two runs logged, step by step.

    Says "identical" and over what, or the first step and metric at which they part, and how far
    they drift. A change that is meant to alter no numbers shows it with this: two runs of the same
    configuration and seed, before and after. So does a run that was killed and resumed, beside one
    that was not. Times, speeds, memory and goodput are not compared; nan equals nan.

    Exit status: 0 the same, 1 they part, 2 they cannot be compared.

    Example: python tools/compare_runs.py runs/before runs/after --keys loss,grad_norm
    """
    try:
        one, other = read(a), read(b)
        wanted = [key.strip() for key in keys.split(",") if key.strip()] if keys else None
        said, identical = compare(one, other, rtol, wanted)
        if output is not None:
            plot(one, other, common(one, other, wanted), output)
            said.append(f"wrote {output}")
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(2) from None
    print("\n".join(said))
    raise typer.Exit(0 if identical else 1)


if __name__ == "__main__":
    typer.run(main)
