"""What the tables of a scenario file have in common."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

INCOMPATIBLE = "incompatible"
Probability = Annotated[float, Field(ge=0.0, le=1.0)]
Beta = Annotated[float, Field(ge=0.0, lt=1.0)]
Share = Annotated[float, Field(gt=0.0, le=1.0)]


class Section(BaseModel):
    """A table of the scenario file: strict types, no unknown keys."""

    model_config = ConfigDict(
        extra="forbid", strict=True, validate_default=True, allow_inf_nan=False
    )


class OpenSection(Section):
    """A table that carries further parameters of the part it names; that part checks them."""

    model_config = ConfigDict(
        extra="allow", strict=True, validate_default=True, allow_inf_nan=False
    )

    def parameters(self) -> dict[str, Any]:
        """The keys beyond the section's own."""
        return dict(self.model_extra or {})


def incompatible(text: str) -> PydanticCustomError:
    """The error of settings that are right one by one and cannot go together."""
    return PydanticCustomError(INCOMPATIBLE, "{reason}", {"reason": text})
