"""Named tensors that lie one after another in a vector."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from math import prod

from torch import Tensor

Key = tuple[tuple[str, tuple[int, ...]], ...]


class Places:
    """Where tensors lie in a vector.

    Args:
        shapes: of the tensors by name, in their order.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.shapes = dict(shapes)

    @cached_property
    def key(self) -> Key:
        """Names and shapes: vectors of equal keys can be subtracted."""
        return tuple(self.shapes.items())

    @cached_property
    def sizes(self) -> list[int]:
        """Number of elements of each."""
        return [prod(shape) for shape in self.shapes.values()]

    def split(self, flat: Tensor) -> dict[str, Tensor]:
        """Views of the tensors in a (..., d) tensor, each (..., *shape).

        One split operation, so that its gradient is one concatenation.
        """
        parts, lead = flat.split(self.sizes, dim=-1), flat.shape[:-1]
        named = zip(self.key, parts, strict=True)
        return {name: part.view((*lead, *shape)) for (name, shape), part in named}


class Packed(Mapping[str, Tensor]):
    """Tensors that are views of one vector; they are made when one is looked at.

    Args:
        places: where each lies.
        vector: (d,), all of them.
    """

    __slots__ = ("_views", "places", "vector")

    def __init__(self, places: Places, vector: Tensor) -> None:
        self.places, self.vector = places, vector
        self._views: dict[str, Tensor] | None = None

    def __getitem__(self, name: str) -> Tensor:
        if self._views is None:
            self._views = self.places.split(self.vector)
        return self._views[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.places.shapes)

    def __len__(self) -> int:
        return len(self.places.shapes)

    def __contains__(self, name: object) -> bool:
        return name in self.places.shapes

    def __or__(self, other: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {**self, **other}

    def __ror__(self, other: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {**other, **self}

    def __reduce__(self) -> tuple[type[Packed], tuple[Places, Tensor]]:
        return Packed, (self.places, self.vector)
