"""Reading the text files that prompts and traces come in."""

from __future__ import annotations

import gzip
import io
import json
import lzma
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fjx.errors import UserError


def read_lines(path: Path) -> Iterator[str]:
    """Yield the lines of a text file, unpacking ``.gz`` and ``.xz``; ``-`` is standard input.

    Raises:
        UserError: the file cannot be read, or is not UTF-8 text.
    """
    try:
        if str(path) == "-":
            yield from io.TextIOWrapper(sys.stdin.buffer, encoding="utf-8")
            return
        with _open(path) as file:
            yield from file
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text: {error}") from error
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot read {path}: {reason}") from error
    except ValueError as error:  # a name that no file can have
        raise UserError(f"cannot read {str(path)!r}: {error}") from error


def _open(path: Path) -> io.TextIOWrapper:
    if path.suffix == ".gz":
        return io.TextIOWrapper(gzip.open(path, "rb"), encoding="utf-8")
    if path.suffix == ".xz":
        return io.TextIOWrapper(lzma.open(path, "rb"), encoding="utf-8")
    return path.open(encoding="utf-8")


def read_json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number from 1, object) for each line that is not blank.

    Raises:
        UserError: the file cannot be read, or a line is not a JSON object; the message names it.
    """
    for number, line in enumerate(read_lines(path), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(
                f"{path} line {number}: not JSON: {error.msg} at column {error.colno}"
            ) from error
        if not isinstance(value, dict):
            raise UserError(
                f"{path} line {number}: expected a JSON object, got {type(value).__name__}"
            )
        yield number, value
