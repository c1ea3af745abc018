"""JSON can spell what is no text: halves of surrogate pairs, which nothing behind can encode."""

from __future__ import annotations

import re

from fjx.serving.errors import invalid

_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F][0-9a-fA-F]{2}|\xed[\xa0-\xbf]")
_WHOLE = re.compile(rb"\\\\|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}")
"""An escaped backslash, or a pair."""


def check_unicode(body: bytes) -> None:
    """Raise a 400 where a string of a JSON text holds half of a surrogate pair."""
    if _SURROGATE.search(body) and _SURROGATE.search(_WHOLE.sub(b" ", body)):
        raise invalid(
            "the request body is not valid Unicode: it holds half of a surrogate pair (\\ud800 to "
            "\\udfff)"
        )
