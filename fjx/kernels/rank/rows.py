"""What a rank depends on beside the products."""

from __future__ import annotations

from typing import Any, NamedTuple


class DraftedRows(NamedTuple):
    """The drafted token of each of T rows, and by what noise it competes; NumPy arrays on the host,
    traced ones in a program."""

    drafted: Any
    """[T] int32, the column of the drafted token; -1: none."""
    temperature: Any
    """[T] float32; 0: greedy."""
    seed: Any
    """[T, 2] uint32, see `SamplingRows`."""
    position: Any
    """[T] int32, of the token that the row chooses."""
