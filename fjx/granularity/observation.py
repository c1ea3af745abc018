"""What the granularity policy sees of the engine, as numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from fjx.errors import UserError
from fjx.granularity.arrivals import WindowFigures
from fjx.sharding.table_fields import is_number

ORDINARY_CV = 1.0
"""Of independent arrivals (a Poisson process); assumed where there are too few to measure."""


@dataclass(frozen=True, kw_only=True)
class Observation:
    """The engine at one moment.

    Raises:
        UserError: a number is out of its range; the message names it.
    """

    now: float
    """Seconds from any fixed moment."""
    serving: str | None
    """Name of the rung that serves; None: the plan that serves is not on the ladder."""
    switching: bool = False
    """Whether a change of plan is under way, from the moment it is ordered to its end. When it is
    over, `serving` tells whether it was done or aborted."""
    windows: tuple[WindowFigures, ...] = ()
    """From `ArrivalWindows.observe`: the shortest first."""
    queue_depth: int = 0
    """Requests that wait for their first step."""
    running: int = 0
    """Requests in the batch. The scorers do not use it: it is for whoever reads the log."""
    kv_usage: float = 0.0
    """Share of KV pages that requests hold, 0 to 1. Cached pages that nobody holds are free."""
    step_seconds: float = 0.0
    """Median of the recent steps. The scorers do not use it: how long a step takes says little
    without its rows."""
    ttft_seconds: float | None = None
    """95th percentile of the recent times to first token; None: there were none."""
    itl_seconds: float | None = None
    """95th percentile of the recent times from token to token; None: there were none."""
    preemptions: int = 0
    """Requests that lost their pages since the last observation."""
    tokens_per_request: float | None = None
    """Mean tokens of recent requests, prompt and output; None: none has ended."""

    def __post_init__(self) -> None:
        counts = ("queue_depth", "running", "preemptions", "step_seconds")
        check_numbers("observation", self, ("now",), least=-math.inf)
        check_numbers("observation", self, counts)
        check_numbers("observation", self, ("kv_usage",), most=1.0)
        optional = ("ttft_seconds", "itl_seconds", "tokens_per_request")
        known = [name for name in optional if getattr(self, name) is not None]
        check_numbers("observation", self, known)

    @property
    def rate(self) -> float:
        """Arrivals a second in the busiest window: a short one feels a rise at once, a long one
        remembers it."""
        return max((window.rate for window in self.windows), default=0.0)

    @property
    def burstiness(self) -> float:
        """Coefficient of variation over the longest window that has one; 1 where none has."""
        known = [window.cv for window in self.windows if window.cv is not None]
        return known[-1] if known else ORDINARY_CV


def check_numbers(
    owner: str,
    values: object,
    names: Iterable[str],
    *,
    least: float = 0.0,
    most: float = math.inf,
    above: bool = False,
) -> None:
    """Check that attributes are finite numbers in a range.

    Args:
        owner: What messages begin with.
        values: Has the attributes.
        names: Of the attributes.
        least: The smallest value.
        most: The largest value.
        above: Whether ``least`` itself is too small.

    Raises:
        UserError: one is not; the message names it, its value and the range.
    """
    for name in names:
        value = getattr(values, name)
        finite = is_number(value) and math.isfinite(value)
        if not finite or not least <= value <= most or (above and value == least):
            bounds = [f"{'above' if above else 'of at least'} {least:g}"] * (least > -math.inf)
            bounds += [f"at most {most:g}"] * (most < math.inf)
            wanted = " ".join(["a finite number", " and ".join(bounds)]).strip()
            raise UserError(f"{owner}: {name} must be {wanted}, got {value!r}")
