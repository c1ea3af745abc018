"""The colours of all pictures, for a light background.

The colours of data are those of Okabe and Ito (Color Universal Design, 2008), which people with any
kind of colour vision tell apart, with two changes: the vermilion is a little darker, so that white
text on it can be read, and the purple is Tol's darker one, which is not as light as the orange
where a picture is printed grey. In one picture a colour means one thing, and the legend says which.
"""

from __future__ import annotations

PAPER = "#ffffff"
INK = "#1f2933"
FAINT = "#56616d"
"""Text of less weight, and marks of axes."""
GRID = "#d9dee4"
EDGE = "#b4bcc6"
"""Around boxes."""

BLUE, ORANGE, GREEN = "#0072b2", "#e69f00", "#009e73"
VERMILION, PURPLE, SKY = "#cc5500", "#aa3377", "#56b4e9"

FREE = "#e6eaee"
"""Memory or a device that nobody uses."""
PARAMETERS = BLUE
KV = ORANGE
ACTIVATIONS = PURPLE
COMPUTE = GREEN
RECEIVE = SKY
"""Time in which a stage receives its input."""
WARNING = VERMILION
"""What waits, was aborted or is wrong."""
CATEGORIES = (BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY)
"""Things of one kind, such as the lines of a chart, in their order."""

_SHADES = 8


def mixed(color: str, other: str, share: float) -> str:
    """A colour ``#rrggbb`` with a share, 0 to 1, of another."""
    pairs = zip(_parts(color), _parts(other), strict=True)
    return "#" + "".join(f"{round(a + (b - a) * share):02x}" for a, b in pairs)


def shades(color: str, count: int) -> tuple[str, ...]:
    """Colours for ``count`` things that follow one another, from dark to light.

    There are at most eight different ones: neighbours share one where there are more things.
    """
    different = min(max(count, 1), _SHADES)
    dark, light = mixed(color, "#000000", 0.4), mixed(color, "#ffffff", 0.65)
    if different == 1:
        return (color,) * count
    steps = [mixed(dark, light, i / (different - 1)) for i in range(different)]
    return tuple(steps[i * different // count] for i in range(count))


def ink_on(color: str) -> str:
    """Dark or white, whichever stands out more from a colour ``#rrggbb``."""
    light = _luminance(color)
    on_dark, on_light = 1.05 / (light + 0.05), (light + 0.05) / (_luminance(INK) + 0.05)
    return "#ffffff" if on_dark > on_light else INK


def _luminance(color: str) -> float:
    """Relative luminance, as the Web Content Accessibility Guidelines define it."""
    parts = [part / 255 for part in _parts(color)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _parts(color: str) -> list[int]:
    return [int(color[i : i + 2], 16) for i in (1, 3, 5)]
