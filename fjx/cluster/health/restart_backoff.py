"""How soon what is lost again and again is replaced again."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Protocol

WELL_SECONDS = 60.0
"""After which a replacement was not in vain, also if nothing was asked of it."""
_LONGEST = 30.0
"""The longest pause, in first ones."""


class Serving(Protocol):
    """What is lost and replaced: a `ClusterExecutor`."""

    brought: bool
    """Whether any of its steps has brought tokens."""
    opened: float
    """When it began to serve, in seconds of `time.monotonic`."""


class RestartBackoff:
    """Counts replacements that were in vain: they failed, or were lost before they had served."""

    def __init__(self, pause: float, clock: Callable[[], float] = time.monotonic) -> None:
        """
        Args:
            pause: seconds after the first one in vain; it doubles with each further one.
            clock: in seconds.
        """
        self._first, self._clock = pause, clock
        self._vain = 0
        self._replacements: Sequence[Serving] = ()

    def failed(self) -> None:
        """An attempt to replace what is lost has failed."""
        self._vain += 1

    def replaced(self, replacements: Sequence[Serving]) -> None:
        """These serve now; whether in vain will be seen."""
        self._replacements = tuple(replacements)

    def lost(self, each: Sequence[Serving]) -> None:
        """These are lost."""
        self._vain = 0 if self._have_served(each) else self._vain + 1
        self._replacements = ()

    @property
    def vain(self) -> int:
        """How many in a row were in vain so far; 0 as soon as one has served."""
        served = self._replacements and self._have_served(self._replacements)
        return 0 if served else self._vain

    @property
    def pause(self) -> float:
        """Seconds until the next one shall begin; 0: none was in vain."""
        doublings = min(self._vain - 1, 10)
        return self._first * min(2.0**doublings, _LONGEST) if self._vain else 0.0

    def _have_served(self, each: Sequence[Serving]) -> bool:
        now = self._clock()
        return all(one.brought or now - one.opened > WELL_SECONDS for one in each)
