"""Keys of a profile: which steps of which ranks are recorded, operator by operator."""

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from megatron_ring.config.base import Part

MOST_STEPS = 20


class ProfileConfig(Part):
    """A trace of a few steps. Off unless `steps` is set, and then free."""

    steps: tuple[PositiveInt, PositiveInt] | None = Field(
        None,
        description="first and last step to record, numbered as in the log; [10, 12] are three. "
        "The first steps of a run also warm up: begin later",
    )
    ranks: tuple[NonNegativeInt, ...] = Field(
        (0,), min_length=1, description="each writes RUN/profile/rank-N-steps-A-B.json.gz"
    )
    memory: bool = Field(
        False, description="also who allocates what on the GPU, for pytorch.org/memory_viz"
    )

    @model_validator(mode="after")
    def _consistent(self) -> "ProfileConfig":
        if self.steps is None:
            if self.memory:
                raise ValueError(
                    "memory=true, but steps says of which steps: set profile.steps=[10,12]"
                )
            return self
        first, last = self.steps
        if first > last:
            raise ValueError(
                f"steps=[{first}, {last}] ends before it begins; write the lower first"
            )
        if (count := last - first + 1) > MOST_STEPS:
            raise ValueError(
                f"steps=[{first}, {last}] are {count} steps, at most {MOST_STEPS} are recorded: a "
                "step of the tiny model with two rows is 23,000 events, of Ling-Lite's 28 layers "
                "hundreds of thousands, and viewers give up on some millions; three steps say as "
                "much"
            )
        return self
