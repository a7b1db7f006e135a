"""Randomized ablations: which runs have which changes is decided by coins, and written down.

Runs that are to be compared share a seed, so that what the seed does is no difference between
them. The plan is a pure function of its recipe: `read` tosses again and finds what was altered.
"""

import random
import shlex
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from megatron_ring import config as configuration
from megatron_ring.config.base import ConfigError
from megatron_ring.config.effects import PlanConfig
from megatron_ring.curation.shards import writing

PLAN, COMMANDS = "plan.yaml", "commands.txt"
LEAST = 3  # runs of an arm, below which nothing can be said of how runs vary
Arms = dict[str, int]  # 0 or 1 by intervention


@dataclass(frozen=True)
class Planned:
    """One run of a plan."""

    run: str
    seed: int  # shared by the runs that are compared with each other
    coin: int  # seed of the coins that decided this run and those beside it
    arms: Arms
    overrides: dict[str, Any]
    command: str


@dataclass(frozen=True)
class Plan:
    """All runs in the order in which they are to start."""

    config: PlanConfig
    runs: list[Planned]

    @property
    def randomized(self) -> bool:
        """Whether coins alone decided."""
        return self.config.chance is None


def make(config: PlanConfig) -> Plan:
    """Toss all coins. ConfigError where an arm gets too few runs, or a text cannot be filled in."""
    runs = []
    for seed in range(config.first_seed, config.first_seed + config.num_seeds):
        coin = random.Random(f"{config.seed} {config.name} {seed}").randrange(2**31)
        rng = random.Random(coin)
        settings = {key: rng.choice(values) for key, values in config.settings.items()}
        for arms in _block(config, settings, rng):
            runs.append(_planned(config, len(runs), seed, coin, arms, settings))
    _check_commands(config, runs)
    if config.chance is None:
        _check_arms(config, runs)
    return Plan(config, runs)


def write(plan: Plan) -> Path:
    """plan.yaml, and commands.txt with a shell command a line; returns the latter.

    ConfigError where another plan is there: coins are tossed once, before a result is known.
    """
    folder = plan.config.output
    text = yaml.safe_dump(_told(plan), sort_keys=False, allow_unicode=True, width=100)
    path = folder / PLAN
    if path.is_file() and path.read_text(encoding="utf-8") != text:
        raise ConfigError(
            f"{path} is another plan than this recipe makes; its coins are tossed, and choosing "
            "between plans is choosing results: give `output` another folder"
        )
    with writing(path) as file:
        file.write(text.encode())
    with writing(folder / COMMANDS) as file:
        file.write("".join(f"{run.command}\n" for run in plan.runs).encode())
    return folder / COMMANDS


def read(path: Path) -> Plan:
    """A plan that `write` wrote; ConfigError where it is not what its coins say."""
    path = path / PLAN if path.is_dir() else path
    try:
        told = yaml.safe_load(path.read_text(encoding="utf-8"))
        recipe, runs = told["recipe"], told["runs"]
    except OSError as error:
        raise ConfigError(f"cannot read the plan {path}: {error.strerror}") from None
    except (yaml.YAMLError, TypeError, KeyError) as error:
        raise ConfigError(f"{path} is no plan that tools/effects.py plan wrote: {error}") from None
    plan = make(configuration.build(PlanConfig, recipe))
    for again, line in zip(_told(plan)["runs"], runs, strict=False):
        if again != line:
            raise ConfigError(
                f"{path}: {again['run']} is not as its coin {again['coin']} decided; it was "
                "altered after the toss, and is no randomized run any more"
            )
    if len(runs) != len(plan.runs):
        raise ConfigError(
            f"{path} lists {len(runs)} runs, its coins made {len(plan.runs)}: restore what was "
            "left out, or leave results out by themselves"
        )
    return plan


def _told(plan: Plan) -> dict[str, Any]:
    """As plain values; also what YAML gives back."""
    return {
        "recipe": plan.config.model_dump(mode="json"),
        "randomized": plan.randomized,
        "runs": [asdict(run) for run in plan.runs],
    }


def _block(config: PlanConfig, settings: dict[str, Any], rng: random.Random) -> Iterator[Arms]:
    """The arms of all runs of one seed, in random order."""
    names = list(config.interventions)
    if config.design == "coin":
        chance = 0.5
        if config.chance is not None:
            drawn = config.settings[config.chance.setting].index(settings[config.chance.setting])
            chance = config.chance.chances[drawn]
        yield {name: int(rng.random() < chance) for name in names}
        return
    signs = _signs(config.design, len(names), rng)
    rng.shuffle(signs)
    for row in signs:
        yield dict(zip(names, row, strict=True))


def _signs(design: str, count: int, rng: random.Random) -> list[list[int]]:
    """Rows of 0 and 1, a column an intervention; each column has as many of both.

    `fraction`: columns of a two-level design of resolution III, entry (row, mask) being the parity
    of row & mask (Box, Hunter and Hunter, Statistics for Experimenters, ch. 6). Which intervention
    gets which mask, and which level is 1, is drawn anew for each seed, so that over seeds no main
    effect stays aliased with an interaction.
    """
    if design == "pairs":
        drawn = [rng.randrange(2) for _ in range(count)]
        return [drawn, [1 - one for one in drawn]]
    bits = count if design == "full" else count.bit_length()
    masks = [1 << bit for bit in range(count)]
    if design == "fraction":
        masks = rng.sample(range(1, 1 << bits), count)  # so many span all bits: no row comes twice
    flips = [rng.randrange(2) for _ in masks]
    return [
        [((row & mask).bit_count() + flip) % 2 for mask, flip in zip(masks, flips, strict=True)]
        for row in range(1 << bits)
    ]


def _planned(
    config: PlanConfig, number: int, seed: int, coin: int, arms: Arms, settings: dict[str, Any]
) -> Planned:
    run = f"{config.name}-{number:03}"
    values: dict[str, Any] = {"run": run, "seed": seed, **arms}
    merged = {**config.overrides, **settings}
    claimed = dict.fromkeys(settings, "settings")
    for name, arm in arms.items():
        change = config.interventions[name]
        for key in {**change.present, **change.absent}:
            if key in claimed:
                raise ConfigError(
                    f"interventions.{name} sets {key}, and so does {claimed[key]}; put it into "
                    f"`overrides`, with {{{name}}} in its text"
                )
            claimed[key] = f"interventions.{name}"
        merged |= change.present if arm else change.absent
    filled = {key: _filled(value, values, f"overrides.{key}") for key, value in merged.items()}
    typed = " ".join(shlex.quote(f"{key}={_typed(value)}") for key, value in filled.items())
    command = _filled(config.command, {**values, "overrides": typed}, "command")
    return Planned(run, seed, coin, arms, filled, command)


def _filled(value: Any, values: dict[str, Any], where: str) -> Any:
    """Texts with their placeholders filled in, at any depth."""
    if isinstance(value, list):
        return [_filled(one, values, where) for one in value]
    if isinstance(value, dict):
        return {key: _filled(one, values, where) for key, one in value.items()}
    if not isinstance(value, str):
        return value
    try:
        return value.format_map(values)
    except (KeyError, ValueError, IndexError) as error:
        known = ", ".join(f"{{{name}}}" for name in values)
        raise ConfigError(f"{where}={value!r} cannot be filled in ({error}); known: {known}") from (
            None
        )


def _typed(value: Any) -> str:
    """As one types it behind key=."""
    if isinstance(value, str):
        return value
    return yaml.safe_dump(value, default_flow_style=True, width=10**6).removesuffix("...\n").strip()


def _check_commands(config: PlanConfig, runs: list[Planned]) -> None:
    """Each run must get its own command, or runs of different arms would be the same run."""
    by_command: dict[str, str] = {}
    for run in runs:
        twin = by_command.setdefault(run.command, run.run)
        if twin != run.run:
            names = ", ".join(f"{{{name}}}" for name in config.interventions)
            raise ConfigError(
                f"command={config.command!r} is the same for {twin} and {run.run}: write {{run}} "
                f"or {{overrides}} into it, and {names} where `overrides` do not tell them"
            )


def _check_arms(config: PlanConfig, runs: list[Planned]) -> None:
    for name in config.interventions:
        counts = [sum(run.arms[name] == arm for run in runs) for arm in (0, 1)]
        if min(counts) < LEAST:
            more = "raise num_seeds"
            if config.design == "coin":
                more += ", or take design=pairs, which gives both arms as many"
            raise ConfigError(
                f"{name}: {counts[1]} runs with it and {counts[0]} without; {LEAST} of each are "
                f"the least from which an effect has an interval: {more}"
            )
