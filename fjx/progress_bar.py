"""Progress on stderr: a bar on a terminal, a plain line every few seconds elsewhere.

A bar redraws its line with carriage returns, which in a log file, a pipe or a service's journal is
one long line of fragments, mixed with those of others.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

from fjx.wording import format_bytes

_SECONDS_BETWEEN_LINES = 5.0
_LINE = "{desc}: {percentage:.0f}% ({n_fmt}/{total_fmt} {unit}) after {elapsed}, {remaining} left"


def progress_bar(iterable: Iterable[Any] | None = None, **options: Any) -> tqdm[Any]:
    """Show progress towards a known end.

    Args:
        iterable: what to go through, where the progress is that of a loop.
        options: as tqdm takes them; ``total``, where there is no iterable, ``desc`` and ``unit``.
    """
    kind = tqdm if sys.stderr.isatty() else _Lines
    return kind(iterable, **options)


class _Lines(tqdm):  # type: ignore[misc]
    """Shows itself in whole lines, seldom; not at all if it has ended before the first one."""

    disable: bool

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._next = time.monotonic() + _SECONDS_BETWEEN_LINES
        self._shown = False
        self._shown_at: float = 0
        super().__init__(*arguments, **options)

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        """Write a line if it is time for one."""
        if time.monotonic() >= self._next:
            self._write()
        return True

    def close(self) -> None:
        """Write how it has ended, if anything was written before."""
        if self.disable:
            return
        self.disable = True
        self._decr_instances(self)
        if self._shown and self._shown_at != self.n:
            self._write()

    def _write(self) -> None:
        self._next, self._shown = time.monotonic() + _SECONDS_BETWEEN_LINES, True
        self._shown_at = self.n
        figures = self.format_dict | {"bar_format": _LINE, "ncols": None}
        figures["unit"] = _plural(figures["unit"])
        if self.unit == "B":
            figures["bar_format"] = _LINE.replace(
                "{n_fmt}/{total_fmt} {unit}",
                f"{format_bytes(self.n)} of {format_bytes(self.total or 0)}",
            )
        print(self.format_meter(**figures), file=self.fp, flush=True)


def _plural(unit: str) -> str:
    return f"{unit}es" if unit.endswith(("ch", "ss")) else f"{unit}s"
