"""Names of parts: fedtune's own, and those that other packages add by entry point."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any

from pydantic import AfterValidator, GetJsonSchemaHandler
from pydantic_core import PydanticCustomError

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
    return points[0].load() if points else None
