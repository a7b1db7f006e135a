"""Keys of models that write: how they are asked, what they may cost, where replies are kept."""

from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from megatron_ring.config.base import Incidental, Part
from megatron_ring.config.curation.endpoint import EndpointConfig

OURS = ("model", "messages", "temperature", "top_p", "max_tokens", "seed", "n", "stream")


class Prices(Part):
    """What an endpoint charges, in any one currency."""

    input: NonNegativeFloat = Field(0.0, description="a million tokens that it reads")
    output: NonNegativeFloat = Field(0.0, description="a million tokens that it writes")


class Budget(Part):
    """What may be spent on all runs that share a folder of replies; absent: no limit.

    A request is sent only if its worst case, max_tokens written, still fits. So count requests of
    processes that died before the answer came. Processes at work at the same time learn of each
    other within a second.
    """

    cost: PositiveFloat | None = Field(None, description="in the currency of `prices`")
    tokens: PositiveInt | None = Field(None, description="read and written")
    requests: PositiveInt | None = Field(None, description="attempts that were sent")


class GeneratorConfig(EndpointConfig):
    """A model that writes, behind an OpenAI-compatible endpoint (vLLM, SGLang, a paid one)."""

    timeout_s: Annotated[PositiveFloat, Incidental()] = Field(
        1800.0, description="seconds for one whole answer"
    )
    retries: Annotated[NonNegativeInt, Incidental()] = Field(
        5, description="after a broken answer or none, HTTP 429 and 5xx; each wait is twice as long"
    )
    replies: Annotated[Path, Incidental()] = Field(
        description="folder where every reply is kept; what is there is not asked again, whatever "
        "became of the run that asked. All runs may share it"
    )
    temperature: NonNegativeFloat = Field(0.6, description="DeepSeek-R1's advice for its own model")
    top_p: float = Field(0.95, gt=0, le=1)
    max_tokens: PositiveInt = Field(
        16_384, description="of an answer with its thought; a row of both stages holds as many"
    )
    seed: NonNegativeInt = Field(1234, description="another one: other answers to all")
    send_seed: Annotated[bool, Incidental()] = Field(
        True, description="false for an endpoint that refuses `seed`; draws differ all the same"
    )
    concurrency: Annotated[PositiveInt, Incidental()] = Field(
        64, description="requests at a time; a server that batches wants as many as it can hold"
    )
    opens_thought: bool = Field(
        False, description="the chat template ends in <think>, so that answers begin behind it"
    )
    give_up_after: Annotated[PositiveInt, Incidental()] = Field(
        20, description="requests in a row that are refused (HTTP 400, ...) end the run"
    )
    extra: dict[str, Any] = Field(
        {}, description="more keys of the request: {chat_template_kwargs: {enable_thinking: true}}"
    )
    prices: Annotated[Prices, Incidental()] = Prices()
    budget: Annotated[Budget, Incidental()] = Budget()

    @field_validator("extra")
    @classmethod
    def _not_ours(cls, extra: dict[str, Any]) -> dict[str, Any]:
        if taken := [key for key in extra if key in OURS]:
            raise ValueError(f"extra.{taken[0]}: this key of a request is set by us; leave it out")
        return extra

    @model_validator(mode="after")
    def _priced(self) -> Self:
        """A limit on what costs nothing would never be reached."""
        if self.budget.cost is not None and self.prices == Prices():
            raise ValueError(
                f"budget.cost={self.budget.cost:g} never stops a run whose prices are 0: "
                "set prices.input and prices.output, or limit budget.tokens"
            )
        return self
