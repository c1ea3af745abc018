"""The TOML configuration file: a table for each config dataclass, keys as its fields."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fjx.cli.fields import FieldSpec
from fjx.cli.foreign import meaning, nearest
from fjx.errors import UserError
from fjx.sharding.toml_source import TomlSource


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
            nearest known one; or a value has the wrong type. The message names the line.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not TOML: {error}") from error
    except ValueError as error:  # a name that no file can have
        raise UserError(f"cannot read {str(path)!r}: {error}") from error
    source = TomlSource(str(path), text)
    return {
        table: _read_table(source, table, values, tables)
        for table, values in source.content.items()
    }


def _read_table(
    source: TomlSource, table: str, values: object, tables: Mapping[str, Sequence[FieldSpec]]
) -> dict[str, Any]:
    if not isinstance(values, dict):
        owners = [name for name, specs in tables.items() if any(s.name == table for s in specs)]
        where = f"[{owners[0]}]" if owners else f"one of {_tables(tables)}"
        raise source.error((table,), f"key {table!r} stands outside a table; put it under {where}")
    if table not in tables:
        expected = f"expected one of {_tables(tables)}"
        raise source.error((table,), f"unknown table [{table}]; {expected}")
    specs = {spec.name: spec for spec in tables[table]}
    converted = {}
    for key, value in values.items():
        if key not in specs:
            hint = _hint(key, specs)
            raise source.error((table, key), f"unknown key {key!r} in [{table}]{hint}")
        try:
            converted[key] = specs[key].from_toml(value)
        except ValueError as error:
            raise source.error((table, key), f"[{table}] {key}: {error}") from error
    return converted


def _tables(tables: Iterable[str]) -> str:
    return ", ".join(f"[{table}]" for table in tables)


def _hint(key: str, known: Iterable[str]) -> str:
    meant = meaning(f"--{key}")
    if meant is not None:
        return f": {meant} (as a key, without -- and with _ for -)"
    near = nearest(key, known)
    return "" if near is None else f"; the nearest known one is {near!r}"
