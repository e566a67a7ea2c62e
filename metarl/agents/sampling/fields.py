"""Records of arrays that say which axes each of their fields has, so that one function serves all of them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from typing import Any, TypeVar

Self = TypeVar("Self", bound="Fields")


def axes(*names: str) -> Mapping[str, tuple[str, ...]]:
    """Return a dataclass field's ``metadata`` that names its leading axes."""
    return {"axes": names}


PER_TASK = axes("task")
PER_EPISODE = axes("task", "env")
PER_STEP = axes("task", "env", "time")
PER_SAMPLE = axes("task", "sample")


class Fields:
    """Base of frozen dataclasses whose fields are arrays or tensors, or mappings of those whose axes are the same.

    None stands for a field that is absent.

    Every field names its leading axes::

        from dataclasses import dataclass, field

        @dataclass(frozen=True)
        class Marked(Fields):
            marks: np.ndarray = field(metadata=PER_TASK)
            notes: np.ndarray | None = field(default=None, metadata=PER_SAMPLE)

        assert Marked(np.array([1, 2])).map(lambda axes, array: array[:1]).marks == [1]
    """

    def map(self: Self, function: Callable[..., Any], *others: Self) -> Self:
        """Return a record with ``function`` of every field that is there.

        :param function: takes a field's axes, its value, and its value in each of ``others``.
        :param others: records with the same fields.
        """

        def mapped(axes: tuple[str, ...], value: Any, *rest: Any) -> Any:
            if isinstance(value, Mapping):
                return {name: function(axes, part, *(each[name] for each in rest)) for name, part in value.items()}
            return function(axes, value, *rest)

        known = self._axes()
        own = {
            name: mapped(known[name], value, *(getattr(other, name) for other in others))
            for name, value in self.present().items()
        }
        return replace(self, **own)  # type: ignore[type-var]  # subclasses are dataclasses

    def present(self, kind: Mapping[str, tuple[str, ...]] | None = None) -> dict[str, Any]:
        """Return the fields that are there, by name.

        :param kind: such as :data:`PER_SAMPLE`: only fields with exactly these axes.
        """
        names = [name for name, own in self._axes().items() if kind is None or own == kind["axes"]]
        return {name: value for name in names if (value := getattr(self, name)) is not None}

    @classmethod
    @functools.cache
    def _axes(cls) -> dict[str, tuple[str, ...]]:
        """Return the leading axes of each field."""
        return {each.name: each.metadata["axes"] for each in fields(cls)}  # type: ignore[arg-type]  # as above
