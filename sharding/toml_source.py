"""A TOML file that knows on which line each of its keys stands.

`tomllib` gives no positions, so a line is found with the parser itself: prefixes of the file are
parsed, and a key stands at the end of the shortest one that has it. Whatever way of writing TOML
has (dotted keys, inline tables, arrays over several lines, comments), parser and locator agree.
"""

from __future__ import annotations

import re
import tomllib
from typing import Any

from fjx.errors import MeshError, error_at

Path = tuple[str | int, ...]
"""Keys and list indices from the top of the file, such as ``("stage", 1, "devices")``."""

_CLOSERS = ("", "\n]", "\n]]")
"""What completes a prefix that ends inside an array, so that its items have lines of their own."""


class TomlSource:
    """A parsed TOML text.

    Args:
        label: What messages call the file, such as ``mesh file tp4.toml``.
        text: Its contents.

    Raises:
        MeshError: the text is not TOML; the message names the line.
    """

    def __init__(self, label: str, text: str) -> None:
        self.label = label
        self.text = text
        try:
            self.content: dict[str, Any] = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise MeshError(self._syntax_message(str(error))) from None

    def line_of(self, path: Path) -> int:
        """The line, from 1, on which a key or item begins.

        A path that the file does not hold has the line of its nearest parent that it does hold.
        """
        while path:
            line = _line_of(self.text, path)
            if line is not None:
                return line
            path = path[:-1]
        return 1

    def error(self, path: Path, message: str) -> MeshError:
        """An error about a key, its message led by file and line."""
        return error_at(self.label, self.line_of(path) if path else None, message)

    def _syntax_message(self, message: str) -> str:
        position = re.search(r" \(at (?:line (\d+), column (\d+)|end of document)\)$", message)
        if position is None:
            return f"{self.label} is not TOML: {message}"
        reason = message[: position.start()]
        if position[1] is None:
            return f"{self.label}, last line: not TOML: {reason}"
        return f"{self.label}, line {position[1]}: not TOML: {reason} (column {position[2]})"


def _line_of(text: str, path: Path) -> int | None:
    lines = text.replace("\r\n", "\n").split("\n")
    content: dict[str, Any] | None

    # What a prefix holds, a longer one holds, so that the first one that does is found by halves.
    low, high = 1, len(lines) + 1
    while low < high:
        end = middle = (low + high) // 2
        while (content := _parse_prefix("\n".join(lines[:end]))) is None and end < len(lines):
            end += 1
        if content is not None and _holds(content, path):
            high = middle
        else:
            low = end + 1
    if low > len(lines):
        return None
    before = low - 1
    while before and _parse_prefix("\n".join(lines[:before])) is None:
        before -= 1
    return next(
        number
        for number, line in enumerate(lines[before:], start=before + 1)
        if line.strip() and not line.lstrip().startswith("#")
    )


def _parse_prefix(prefix: str) -> dict[str, Any] | None:
    for closer in _CLOSERS:
        try:
            return tomllib.loads(prefix + closer)
        except tomllib.TOMLDecodeError:
            pass
    return None


def _holds(content: Any, path: Path) -> bool:
    for key in path:
        try:
            content = content[key]
        except (KeyError, IndexError, TypeError):
            return False
    return True
