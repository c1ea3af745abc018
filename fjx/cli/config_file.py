"""The TOML configuration file: a table for each config dataclass, keys as its fields."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fjx.cli.fields import FieldSpec
from fjx.cli.foreign import meaning, nearest
from fjx.errors import UserError


def read_config_file(
    path: Path, tables: Mapping[str, Sequence[FieldSpec]]
) -> dict[str, dict[str, Any]]:
    """Read a configuration file and check all of it.

    Args:
        path: The file.
        tables: Table name to its fields.

    Returns:
        Table to field to converted value, for what the file holds.

    Raises:
        UserError: the file cannot be read; a table or key is unknown, and the message names the
            nearest known one; or a value has the wrong type.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not TOML: {error}") from error
    except ValueError as error:  # a name that no file can have
        raise UserError(f"cannot read {str(path)!r}: {error}") from error
    return {table: _read_table(path, table, values, tables) for table, values in content.items()}


def _read_table(
    path: Path, table: str, values: object, tables: Mapping[str, Sequence[FieldSpec]]
) -> dict[str, Any]:
    if not isinstance(values, dict):
        owners = [name for name, specs in tables.items() if any(s.name == table for s in specs)]
        where = f"[{owners[0]}]" if owners else f"one of {_tables(tables)}"
        raise UserError(f"{path}: key {table!r} stands outside a table; put it under {where}")
    if table not in tables:
        raise UserError(f"{path}: unknown table [{table}]; expected one of {_tables(tables)}")
    specs = {spec.name: spec for spec in tables[table]}
    converted = {}
    for key, value in values.items():
        if key not in specs:
            raise UserError(f"{path}: unknown key {key!r} in [{table}]{_hint(key, specs)}")
        try:
            converted[key] = specs[key].from_toml(value)
        except ValueError as error:
            raise UserError(f"{path}: [{table}] {key}: {error}") from error
    return converted


def _tables(tables: Iterable[str]) -> str:
    return ", ".join(f"[{table}]" for table in tables)


def _hint(key: str, known: Iterable[str]) -> str:
    meant = meaning(f"--{key}")
    if meant is not None:
        return f": {meant} (as a key, without -- and with _ for -)"
    near = nearest(key, known)
    return "" if near is None else f"; the nearest known one is {near!r}"
