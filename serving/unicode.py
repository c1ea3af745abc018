"""JSON can spell what is no text: halves of surrogate pairs, which nothing behind can encode."""

from __future__ import annotations

import re

from fjx.serving.errors import invalid

_SLICE = 1 << 16
"""Bytes looked at in one go, during which no other thread runs."""
_VALID = re.compile(
    rb"[^\\\xed]*+(?:"
    rb"(?:\\u(?:[^dD]|[dD][^89a-fA-F])"
    rb"|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"
    rb"|\xed[\x80-\x9f]"
    rb"|\\[^u]"
    rb")[^\\\xed]*+)*+"
)
"""Text without halves of pairs; an escape, or a pair of them, is whole."""
_LONGEST_PART = 12
"""Bytes of an escaped pair, which the end of a slice may cut in two."""


def check_unicode(body: bytes) -> None:
    """Raise a 400 where a string of a JSON text holds half of a surrogate pair."""
    begin = 0
    while begin < len(body):
        end = min(begin + _SLICE, len(body))
        piece = body[begin:end]
        if b"\\" not in piece and b"\xed" not in piece:
            begin = end
            continue
        found = _VALID.match(body, begin, end)
        until = begin if found is None else found.end()
        if until == begin or until < end - _LONGEST_PART:
            raise invalid(
                "the request body is not valid Unicode: it holds half of a surrogate pair (\\ud800 "
                "to \\udfff)"
            )
        begin = until
