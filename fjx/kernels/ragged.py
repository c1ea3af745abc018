"""The ragged batch as a program sees it: rows of many requests side by side."""

from __future__ import annotations

from typing import NamedTuple

from jaxtyping import Array, Int32


class RaggedRows(NamedTuple):
    """Which request each row belongs to, and where that request's keys and values live.

    T rows (padded), R requests (padded), P pages per request. The rows of request r are
    ``query_start[r] : query_start[r + 1]`` and are its last ones: row i of n has position
    ``context_len[r] - n + i``. Prefill, decode and verification differ only in n. Padded requests
    have no rows, padded rows belong to no request.
    """

    positions: Int32[Array, " T"]
    """Position of each row in its request; 0 where padded."""
    request_of: Int32[Array, " T"]
    """Index of each row's request; -1 where padded."""
    query_start: Int32[Array, " R+1"]
    """First row of each request; padded requests repeat the last value."""
    context_len: Int32[Array, " R"]
    """Tokens of each request after this step, its rows included."""
    page_table: Int32[Array, "R P"]
    """Logical page of each ``page_size`` tokens of context; unused entries are 0."""
