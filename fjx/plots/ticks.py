"""The scales of charts, and their ticks: 1, 2 or 5 times a power of ten apart."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Scale:
    """From values to shares of an axis."""

    low: float
    high: float
    ticks: tuple[float, ...]
    log: bool = False
    """By powers of ten."""

    def share(self, value: float) -> float:
        """Where a value lies, from 0 to 1; what is outside lies at the nearer end."""
        low, high = self.low, self.high
        if self.log:
            low, high, value = math.log10(low), math.log10(high), math.log10(max(value, low))
        return min(max((value - low) / (high - low), 0.0), 1.0)

    def labels(self) -> list[tuple[float, str]]:
        """The ticks with what they read."""
        if self.log or len(self.ticks) < 2:
            return [(tick, f"{tick:,.15g}") for tick in self.ticks]
        step = self.ticks[1] - self.ticks[0]
        decimals = max(0, -math.floor(math.log10(step) + 1e-9))
        return [(tick, f"{tick:,.{decimals}f}") for tick in self.ticks]


def round_step(least: float) -> float:
    """The smallest of 1, 2, 5 times a power of ten that is not below ``least``."""
    exponent = math.floor(math.log10(least))
    for factor in (1, 2, 5, 10):
        # A power below one is divided by, so that 0.3 is 3 / 10 and not 0.30000000000000004.
        step = factor * 10.0**exponent if exponent >= 0 else factor / 10.0**-exponent
        if step >= least * (1 - 1e-9):
            return step
    raise AssertionError("ten times a power of ten is not below what lies under the next one")


def scale_to(high: float, *, most: int = 5, whole: bool = False, exact: bool = False) -> Scale:
    """A scale from zero to ``high``.

    Args:
        high: The greatest value; the scale goes on to the next tick.
        most: Steps between ticks, at most.
        whole: Whether ticks are whole numbers.
        exact: End at ``high``, wherever the last tick is.
    """
    high = high if math.isfinite(high) and high > 0 else 1.0
    step = round_step(max(high / most, 1.0 if whole else 0.0))
    count = math.floor(high / step + 1e-9) if exact else math.ceil(high / step - 1e-9)
    count = count if exact else max(count, 1)
    ticks = tuple(_multiple(step, number) for number in range(count + 1))
    return Scale(0.0, high if exact else ticks[-1], ticks)


def log_scale(values: Iterable[float]) -> Scale:
    """A scale by powers of ten around the values that are above zero."""
    positive = [value for value in values if value > 0 and math.isfinite(value)] or [1.0]
    low = math.floor(math.log10(min(positive)) + 1e-9)
    high = max(math.ceil(math.log10(max(positive)) - 1e-9), low + 1)
    between = range(low, high + 1, 1 + (high - low) // 6)
    return Scale(10.0**low, 10.0**high, tuple(_power(exponent) for exponent in between), log=True)


def time_unit(seconds: float) -> tuple[str, float]:
    """The unit for an axis as long as that: its name, and how many of it a second has."""
    for name, scale in (("s", 1.0), ("ms", 1e3), ("us", 1e6)):
        if seconds * scale >= 1:
            return name, scale
    return "ns", 1e9


def _multiple(step: float, number: int) -> float:
    """Without what rounding adds to the product."""
    return number * step if step >= 1 else number / round(1 / step, 9)


def _power(exponent: int) -> float:
    return 10.0**exponent if exponent >= 0 else 1 / 10.0**-exponent
