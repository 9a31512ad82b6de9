"""Names of parts: fedtune's own, and those that other packages add by entry point."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any, get_type_hints

from pydantic import AfterValidator, GetJsonSchemaHandler, TypeAdapter, ValidationError
from pydantic_core import PydanticCustomError

from fedtune.errors import ScenarioError, first_line

RULES_GROUP, ADAPTERS_GROUP = "fedtune.rules", "fedtune.adapters"


@dataclass(frozen=True)
class Named:
    """Annotation of a string that must name a part.

    Attributes:
        group: of entry points.
        own: fedtune's names.
    """

    group: str
    own: tuple[str, ...]

    @property
    def names(self) -> list[str]:
        """All names, `auto` among them where it is allowed."""
        return [*self.own, *sorted(foreign(self.group))]

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        """Check the name."""
        return AfterValidator(self._check).__get_pydantic_core_schema__(source, handler)

    def __get_pydantic_json_schema__(self, schema: Any, handler: GetJsonSchemaHandler) -> Any:
        """For editors: the names that are known here."""
        return {**handler(schema), "enum": self.names}

    def _check(self, name: str) -> str:
        if name not in self.own and name not in self.names:
            quoted = [f"'{known}'" for known in self.names]
            expected = f"{', '.join(quoted[:-1])} or {quoted[-1]}"
            raise PydanticCustomError(
                "literal_error", "Input should be {expected}", {"expected": expected}
            )
        return name


def foreign(group: str) -> set[str]:
    """Names that installed packages add."""
    return {point.name for point in entry_points(group=group)}


def load(group: str, name: str) -> Any:
    """What a package adds under a name, or None."""
    points: Sequence[Any] = list(entry_points(group=group, name=name))
    if not points:
        return None
    try:
        return points[0].load()
    except Exception as error:  # whatever another package does when it is imported
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise ScenarioError(f"{group} {name!r}: {points[0].value}: {reason}") from None


def check_types(key: str, made: Any, given: Mapping[str, Any]) -> None:
    """Refuse parameters of another type or range than the constructor's annotations say.

    Args:
        key: that the parameters follow.
        made: the class.

    Raises:
        ScenarioError: for the first one.
    """
    hints = get_type_hints(made.__init__, include_extras=True)
    for name, value in given.items():
        try:
            TypeAdapter(hints.get(name, Any)).validate_python(value, strict=True)
        except ValidationError as error:
            reason = error.errors()[0]["msg"]
            raise ScenarioError(
                f"{key}.{name} = {value!r}: {reason[0].lower()}{reason[1:]}"
            ) from None
