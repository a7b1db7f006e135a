"""Keys of models behind OpenAI-compatible endpoints."""

from pathlib import Path

from pydantic import Field, NonNegativeInt, PositiveFloat, field_validator

from megatron_ring.config.base import Part


class EndpointConfig(Part):
    """A model behind an OpenAI-compatible endpoint."""

    endpoint: str = Field(description="up to /v1: http://localhost:8000/v1")
    model: str = Field(description="its name, as the endpoint knows it")
    key_file: Path | None = Field(
        None, description="file whose first line is the API key; absent: no key is sent"
    )
    timeout_s: PositiveFloat = Field(60.0, description="seconds for one answer")
    retries: NonNegativeInt = Field(3, description="after an answer that did not come, or 429, 5xx")
    retry_wait_s: float = Field(1.0, ge=0, description="before the first retry; then twice as long")

    @field_validator("endpoint")
    @classmethod
    def _is_address(cls, endpoint: str) -> str:
        if not endpoint.startswith(("http://", "https://")):
            raise ValueError(f"{endpoint!r} is no address; it begins with http:// or https://")
        return endpoint
