"""Words and numbers as messages, logs and pictures write them."""

from __future__ import annotations

from collections.abc import Iterable

_UNITS = (("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10))


def listed(names: Iterable[object], *, last: str = "and") -> str:
    """Join names for a message: ``a, b and c``."""
    words = [str(name) for name in names]
    return f" {last} ".join(filter(None, [", ".join(words[:-1]), words[-1]])) if words else "none"


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """A number with its noun: ``1 device``, ``2 devices``."""
    return f"{number} {noun if number == 1 else plural or noun + 's'}"


def shortened(text: str, most: int = 60) -> str:
    """A user's own words as a message repeats them: whole, or their beginning."""
    return text if len(text) <= most else f"{text[: most - 3]}..."


def format_bytes(size: float) -> str:
    """Bytes for people, in three digits: ``1.50 GiB``."""
    for unit, scale in _UNITS:
        # From 1000 of the next smaller unit on, so that three digits do.
        if size >= 1000 * scale // 1024:
            return f"{size / scale:.3g} {unit}"
    return f"{size:.0f} B"


def format_seconds(seconds: float) -> str:
    """A duration for people, in three digits: ``1.25 ms``."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= scale:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds * 1e9:.3g} ns" if seconds else "0 s"
