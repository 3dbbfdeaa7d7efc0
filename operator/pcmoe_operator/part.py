"""What every object of the manifest is: frozen, strict, closed; camelCase outside, snake_case inside."""

from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel


class Part(BaseModel):
    """Frozen, strict, closed; camelCase outside, snake_case inside."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, alias_generator=to_camel, validate_default=False
    )
