"""Keys of models behind OpenAI-compatible endpoints."""

from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import Field, NonNegativeInt, PositiveFloat, field_validator

from megatron_ring.config.base import Incidental, Part


class EndpointConfig(Part):
    """A model behind an OpenAI-compatible endpoint."""

    endpoint: Annotated[str, Incidental()] = Field(
        description="up to /v1: http://localhost:8000/v1"
    )
    model: str = Field(description="its name, as the endpoint knows it")
    key_file: Annotated[Path | None, Incidental()] = Field(
        None, description="file whose first line is the API key; absent: no key is sent"
    )
    timeout_s: Annotated[PositiveFloat, Incidental()] = Field(
        60.0, description="seconds for one answer"
    )
    retries: Annotated[NonNegativeInt, Incidental()] = Field(
        3, description="after an answer that did not come, or 429, 5xx"
    )
    retry_wait_s: Annotated[float, Incidental()] = Field(
        1.0, ge=0, description="before the first retry; then twice as long"
    )

    @field_validator("endpoint")
    @classmethod
    def _is_address(cls, endpoint: str) -> str:
        try:
            parts = urlsplit(endpoint)
            good = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        except ValueError:  # half an IPv6 address, a port that is no number
            good = False
        if not good:
            raise ValueError(f"{endpoint!r} is no address; one is http://localhost:8000/v1")
        if "@" in parts.netloc:
            raise ValueError("it holds a user's name, and is shown in logs; use key_file instead")
        return endpoint
