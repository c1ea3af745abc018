"""What may fail without harm to any request: it is off from then on."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Generic, TypeVar

logger = logging.getLogger(__name__)

On = TypeVar("On")
Off = TypeVar("Off")
Answer = TypeVar("Answer")


class Guarded(Generic[On, Off]):
    """An object, and the null object that takes its place where it fails."""

    def __init__(self, name: str, on: On | None, off: Off) -> None:
        """
        Args:
            name: how the log calls it.
            on: does the work; None: it is off from the start.
            off: answers the same calls and does nothing.
        """
        self._name = name
        self._off = off
        self.on = on
        """The guarded object; None once it is off."""

    @property
    def unguarded(self) -> On | Off:
        """The object in use, for calls whose errors the caller handles."""
        on = self.on  # once: another thread may ask while this one turns it off
        return self._off if on is None else on

    def ask(self, call: Callable[[On | Off], Answer]) -> Answer:
        """Call something of the object; where that fails, of the null object, now and later."""
        try:
            return call(self.unguarded)
        except Exception:
            if self.on is None:
                raise
            logger.exception("%s failed, and is off from now on", self._name)
            self.on = None
            return call(self._off)
