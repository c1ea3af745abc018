"""Typed access to the tables of a parsed TOML or JSON file, with errors that say where."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from fjx.errors import MeshError
from fjx.sharding.toml_source import Path
from fjx.wording import listed, shortened

MakeError = Callable[[Path, str], MeshError]
"""Makes the error for a message about a place in the file."""

_UNITS = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40} | {
    "kB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
}
_NO_DEFAULT: Any = object()


class TableFields:
    """One table of a file: each method reads a key, checks its type and range, or says what to do.

    Args:
        values: The table.
        path: Where it stands.
        name: What messages call it, such as ``[[stage]]``.
        error: Makes the error for a place.

    Raises:
        MeshError: ``values`` is not a table.
    """

    def __init__(self, values: Any, path: Path, name: str, error: MakeError) -> None:
        if not isinstance(values, dict):
            raise error(path, f"{name} must be a table of keys and values, got {values!r}")
        self.values: Mapping[str, Any] = values
        self.path = path
        self.name = name
        self._error = error

    def __contains__(self, key: str) -> bool:
        return key in self.values

    def error(self, key: str | None, message: str) -> MeshError:
        """An error about one key, or about the table."""
        return self._error(self.path if key is None else (*self.path, key), message)

    def only(self, known: Iterable[str]) -> None:
        """Refuse keys that are not known.

        Raises:
            MeshError: there is one; the message names the nearest known key.
        """
        known = list(known)
        for key in self.values:
            if key not in known:
                near = difflib.get_close_matches(key[:64], known, n=1)
                mend = f"did you mean {near[0]!r}?" if near else f"known are {listed(known)}"
                raise self.error(key, f"unknown key {shortened(key)!r} in {self.name}; {mend}")

    def get(self, key: str, default: Any = _NO_DEFAULT) -> Any:
        """The value as it is.

        Raises:
            MeshError: the key is missing and has no default.
        """
        if key not in self.values and default is _NO_DEFAULT:
            raise self.error(None, f"{self.name} has no {key!r}; add it")
        return self.values.get(key, default)

    def text(self, key: str, default: Any = _NO_DEFAULT) -> Any:
        """A text that is not empty."""
        value = self.get(key, default)
        if value is default or (isinstance(value, str) and value):
            return value
        raise self.error(key, f"{key} must be a text in quotes, got {value!r}")

    def flag(self, key: str, default: bool) -> bool:
        """True or false."""
        value = self.get(key, default)
        if not isinstance(value, bool):
            raise self.error(key, f"{key} must be true or false, got {value!r}")
        return value

    def integer(self, key: str, default: Any = _NO_DEFAULT, *, least: int = 0) -> Any:
        """A whole number of at least ``least``."""
        value = self.get(key, default)
        if value is default or (is_integer(value) and value >= least):
            return value
        raise self.error(key, f"{key} must be a whole number of at least {least}, got {value!r}")

    def number(self, key: str, default: Any = _NO_DEFAULT, *, zero: bool = False) -> Any:
        """A number above zero, or from zero if ``zero``; infinity is one."""
        value = self.get(key, default)
        if value is default:
            return value
        if is_number(value) and (value > 0 or (zero and value == 0)):
            return float(value)
        bound = "of at least 0" if zero else "above 0"
        raise self.error(key, f"{key} must be a number {bound}, got {value!r}")

    def table(self, key: str, default: Any = _NO_DEFAULT) -> TableFields:
        """A table within this one."""
        return TableFields(self.get(key, default), (*self.path, key), f"[{key}]", self._error)

    def tables(self, key: str, default: Any = _NO_DEFAULT) -> tuple[TableFields, ...]:
        """A list of tables, in the order of the file."""
        values = self.get(key, default)
        if not isinstance(values, list):
            raise self.error(key, f"{key} must be a list of tables, written [[{key}]]")
        return tuple(
            TableFields(value, (*self.path, key, index), f"[[{key}]]", self._error)
            for index, value in enumerate(values)
        )


def errors_of(label: str) -> MakeError:
    """Makes the errors of parsed JSON: led by what messages call it, and by the place in it."""

    def error(path: Path, message: str) -> MeshError:
        where = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in path)
        return MeshError(
            f"{label}, {where.lstrip('.')}: {message}" if where else f"{label}: {message}"
        )

    return error


def is_integer(value: Any) -> bool:
    """Whether a parsed value is a whole number (true and false are not)."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Whether a parsed value is a number other than NaN."""
    return is_integer(value) or (isinstance(value, float) and not math.isnan(value))


def parse_size(value: Any) -> int | None:
    """Bytes from a whole number or from a text such as ``"1.5 GiB"``; None: neither."""
    if is_integer(value):
        return int(value) if value >= 0 else None
    if not isinstance(value, str):
        return None
    words = value.split()
    if len(words) != 2 or words[1] not in _UNITS:
        return None
    try:
        size = float(words[0]) * _UNITS[words[1]]
    except ValueError:
        return None
    return int(size) if math.isfinite(size) and size >= 0 else None
