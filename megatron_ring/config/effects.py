"""Keys of a plan of runs: what is changed by a coin, and how often."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BeforeValidator,
    Field,
    NonNegativeInt,
    PositiveInt,
    StringConstraints,
    model_validator,
)

from megatron_ring.config.base import Part

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
Word = Annotated[str, StringConstraints(pattern=r"^[A-Za-z][A-Za-z0-9_]*$")]
MOST_FULL = 6  # interventions of a full design: 64 runs a seed
FILLED = ("run", "seed", "overrides")  # of templates, beside the interventions


def dotted(value: Any, prefix: str = "") -> Any:
    """Nested keys as one types them: {"optim": {"lr": 1}} -> {"optim.lr": 1}."""
    if not isinstance(value, dict):
        return value
    found: dict[str, Any] = {}
    for key, one in value.items():
        if isinstance(one, dict) and one:
            found |= dotted(one, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = one
    return found


Overrides = Annotated[dict[str, Any], BeforeValidator(dotted)]
Choices = Annotated[dict[str, list[Any]], BeforeValidator(dotted)]


class InterventionConfig(Part):
    """A change of which the effect is asked."""

    about: str = Field("", description="in a few words, for the report")
    # Not on and off: YAML takes these for true and false.
    present: Overrides = Field({}, description="overrides of a run with it")
    absent: Overrides = Field({}, description="overrides of a run without it")


class ChanceConfig(Part):
    """A history made up on purpose: what else a run was decides how likely the change was."""

    setting: str = Field(description="one of `settings`")
    chances: list[Annotated[float, Field(ge=0, le=1)]] = Field(
        description="chance of each intervention, for each value of that setting"
    )


class PlanConfig(Part):
    """What tools/effects.py plan does: interventions, a design and coins -> runs."""

    name: Name = Field(description="runs are NAME-000, NAME-001, ...")
    output: Path = Field(description="folder of the plan")
    seed: NonNegativeInt = Field(description="of the coins: the same seed, the same plan")
    interventions: dict[Word, InterventionConfig] = Field(min_length=1)
    design: Literal["full", "fraction", "pairs", "coin"] = Field(
        "pairs",
        description="what one seed is used for. full: every combination. fraction: as few runs as "
        "keep interventions apart from each other (2 for one, 4 for 2 or 3, 8 for 4 to 7). pairs: "
        "a combination by coins and its opposite. coin: one run by coins",
    )
    num_seeds: PositiveInt = Field(description="each is used for as many runs as the design says")
    first_seed: NonNegativeInt = Field(1, description="the others follow it")
    overrides: Overrides = Field(
        {},
        description="of all runs; in texts {run}, {seed} and {INTERVENTION} (0 or 1) are filled in",
    )
    settings: Choices = Field(
        {}, description="overrides with one of these values, drawn once a seed"
    )
    chance: ChanceConfig | None = Field(
        None, description="only with design=coin; the plan is a made-up history then, no experiment"
    )
    command: str = Field(
        description="of a run, for a shell (sbatch JOB {overrides}); {run}, {seed}, {INTERVENTION} "
        "and {overrides} are filled in. A shell's variable is written $NAME, without braces"
    )

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.design == "full" and len(self.interventions) > MOST_FULL:
            raise ValueError(
                f"design=full with {len(self.interventions)} interventions is "
                f"{2 ** len(self.interventions):,} runs a seed; {MOST_FULL} are the most: "
                "design=fraction or pairs needs far fewer"
            )
        if clash := [name for name in self.interventions if name in FILLED]:
            raise ValueError(
                f"an intervention cannot be called {clash[0]}: {{{clash[0]}}} means another"
            )
        if empty := [key for key, values in self.settings.items() if not values]:
            raise ValueError(f"settings.{empty[0]} has no values to draw from")
        if self.chance is not None:
            self._chance_fits(self.chance)
        return self

    def _chance_fits(self, chance: ChanceConfig) -> None:
        if self.design != "coin":
            raise ValueError(
                f"chance goes with design=coin, not {self.design}: the others give every "
                "intervention to half of the runs"
            )
        if chance.setting not in self.settings:
            known = ", ".join(self.settings) or "none"
            raise ValueError(f"chance.setting={chance.setting} is no setting; there are: {known}")
        values = self.settings[chance.setting]
        if len(chance.chances) != len(values):
            raise ValueError(
                f"chance.chances has {len(chance.chances)} chances, settings.{chance.setting} "
                f"{len(values)} values; give one for each"
            )
