"""Checked reading of the values that a model file says about itself."""

from __future__ import annotations

import math
import operator
import reprlib
from collections.abc import Mapping
from typing import Any

from fjx.errors import ModelError

MAX_SIZE = 2**31 - 1
"""What an index of a device can count."""


class MetadataFields:
    """Key/values of a config.json or a GGUF header; a null counts as absent.

    Args:
        values: the parsed values.
        where: what the values are called in error messages.
        prefix: put before every name, such as the ``llama.`` of GGUF keys.
    """

    def __init__(self, values: Mapping[str, Any], where: str, prefix: str = "") -> None:
        self.values = values
        self.where = where
        self.prefix = prefix

    def __contains__(self, name: str) -> bool:
        return self.values.get(self.prefix + name) is not None

    def with_defaults(self, **defaults: Any) -> MetadataFields:
        """The same values, completed where absent."""
        given = {name: value for name, value in self.values.items() if value is not None}
        return MetadataFields({**defaults, **given}, self.where, self.prefix)

    def integer(self, name: str, default: int | None = None) -> int:
        """A whole number; without a default the key must be there."""
        value = self._value(name, default)
        if isinstance(value, bool):
            raise self._wrong(name, "a whole number", value)
        try:
            return operator.index(value)
        except TypeError:
            raise self._wrong(name, "a whole number", value) from None

    def size(self, name: str, default: int | None = None, most: int = MAX_SIZE) -> int:
        """A whole number from 1 to ``most``; without a default the key must be there."""
        value = self.integer(name, default)
        if not 1 <= value <= most:
            raise self._wrong(name, f"a whole number from 1 to {most}", value)
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """A finite number; without a default the key must be there."""
        value = self._value(name, default)
        try:
            found = float(value)
        except (TypeError, ValueError, OverflowError):
            raise self._wrong(name, "a number", value) from None
        if not math.isfinite(found):
            raise self._wrong(name, "a finite number", value)
        return found

    def positive(self, name: str, default: float | None = None) -> float:
        """A finite number above 0; without a default the key must be there."""
        value = self.number(name, default)
        if value <= 0:
            raise self._wrong(name, "a number above 0", value)
        return value

    def optional_positive(self, name: str) -> float | None:
        """A finite number above 0, or None where the key is absent."""
        return self.positive(name) if name in self else None

    def flag(self, name: str, default: bool) -> bool:
        """True or false."""
        value = self._value(name, default)
        if not isinstance(value, bool):
            raise self._wrong(name, "true or false", value)
        return value

    def text(self, name: str, default: str | None = None) -> str:
        """A string; without a default the key must be there."""
        value = self._value(name, default)
        if not isinstance(value, str):
            raise self._wrong(name, "a string", value)
        return value

    def mapping(self, name: str) -> Mapping[str, Any]:
        """A nested object; empty where the key is absent."""
        value = self._value(name, {})
        if not isinstance(value, Mapping):
            raise self._wrong(name, "an object", value)
        return value

    def refuse(self, name: str, unless: Any) -> None:
        """Raise ModelError if the key is there with another value than the only supported one."""
        value = self.values.get(self.prefix + name)
        if value is not None and value != unless:
            raise ModelError(
                f"{self.where}: {self.prefix}{name} = {value!r} is not supported, only {unless!r}"
            )

    def _value(self, name: str, default: Any) -> Any:
        value = self.values.get(self.prefix + name)
        value = default if value is None else value
        if value is None:
            raise ModelError(f"{self.where} has no {self.prefix + name!r}")
        return value

    def _wrong(self, name: str, expected: str, value: Any) -> ModelError:
        found = reprlib.repr(value)
        return ModelError(
            f"{self.where}: {self.prefix + name!r} should be {expected}, but is {found}"
        )
