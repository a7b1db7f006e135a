"""Keys of what a run does with a batch whose loss or gradient jumps."""

from typing import Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from megatron_ring.config.base import Part


class SpikesConfig(Part):
    """Spikes as the Ling team treats them: skip, keep, try again, slow down (arXiv 2503.05139).

    The report gives no numbers; these are ours, the reasons in spikes.py.
    """

    action: Literal["stop", "skip"] = Field(
        "stop",
        description="skip: a batch that spikes changes nothing and comes again later; stop: only a "
        "gradient that is not finite is refused, and ends the run",
    )
    window: PositiveInt = Field(
        128, description="updates whose losses and gradient norms say what is usual"
    )
    warmup: PositiveInt = Field(
        64, description="updates before a finite value may be a spike; what is not finite always is"
    )
    threshold: PositiveFloat = Field(
        6.0, description="robust standard deviations (of logarithms) above the median"
    )
    max_retries: NonNegativeInt = Field(
        2, description="a batch that spikes again this many times is dropped"
    )
    lower_after: PositiveInt = Field(
        3, description="from this many spikes within a window the learning rate is lowered"
    )
    lr_factor: PositiveFloat = Field(
        0.5, le=1, description="lowered to this share, from which it recovers over a window"
    )
    stop_after: PositiveInt = Field(
        16, description="this many spikes within a window end the run, saved, with a report"
    )

    @model_validator(mode="after")
    def _consistent(self) -> "SpikesConfig":
        if self.warmup > self.window:
            raise ValueError(
                f"warmup={self.warmup} exceeds window={self.window}, the most updates that are "
                "remembered; no spike would ever be seen"
            )
        if self.stop_after > self.window:
            raise ValueError(
                f"stop_after={self.stop_after} exceeds window={self.window}, in which spikes are "
                "counted; the run would never stop"
            )
        return self
