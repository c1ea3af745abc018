"""How much there is in a JSON text, found out before anything is made of it."""

from __future__ import annotations

from itertools import islice

_SLICE = 1 << 16
"""Bytes looked at in one go, during which no other thread runs: about a millisecond at most."""
_STRUCTURE = 20
"""What a list, an object or a name in one counts: they cost so much more than a number to read and
to check."""
_STRING = 4
"""What another string counts: the garbage collector visits each in a place of its own."""


def json_weight(text: bytes, limit: int) -> int:
    """How much there is to make of a JSON text: its values, where a string counts four, a list, an
    object and a name in one twenty. How long strings and numbers are does not matter.

    Args:
        text: UTF-8; need not be valid JSON.
        limit: stop counting beyond it.

    Returns:
        The weight, or some number above ``limit``.
    """
    weight, begin, inside = 1, 0, False
    while begin < len(text) and weight <= limit:
        piece = text[begin : begin + _SLICE]
        if (len(piece) - len(piece.rstrip(b"\\"))) % 2:  # do not cut an escape in two
            piece = text[begin : begin + len(piece) + 1]
        begin += len(piece)
        plain = piece.replace(b"\\\\", b"").replace(b'\\"', b"")
        parts = plain.split(b'"')
        outside = b"".join(islice(parts, inside, None, 2))
        inside ^= len(parts) % 2 == 0
        weight += outside.count(b",") + _STRING // 2 * (len(parts) - 1)
        weight += _STRUCTURE * sum(outside.count(mark) for mark in (b"[", b"{"))
        weight += (_STRUCTURE - _STRING) * outside.count(b":")
    return weight
