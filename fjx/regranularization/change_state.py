"""Where a change of plan stands, and the thread that prepares it: the same wherever plans run."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from fjx.errors import RegranularizationError
from fjx.outputs import SwitchState

logger = logging.getLogger(__name__)


class ChangeState:
    """Goes through the states of `fjx.regranularization.change`, and counts the time in each."""

    def __init__(self, number: int, prepare: Callable[[], None]) -> None:
        """
        Args:
            number: of the change.
            prepare: what its thread does; what it raises aborts the change.
        """
        self._number, self._prepare = number, prepare
        self.name: SwitchState = "planned"
        self.error: str | None = None
        """Why it was aborted, or will be."""
        self._entered = time.perf_counter()
        self._seconds: dict[str, float] = {}
        self._abort: str | None = None
        self._thread = threading.Thread(target=self._run, name="fjx-regranularize")

    def start(self) -> None:
        """Begin; what fails from here on ends in the state ``aborted``."""
        self._thread.start()

    def wait(self, seconds: float | None) -> None:
        """Wait a while for the thread, for an idle engine; None: until it has ended."""
        self._thread.join(seconds)

    def abort(self, reason: str) -> None:
        """Ask for an end without a switch."""
        self._abort = self._abort or reason

    @property
    def prepares(self) -> bool:
        """Whether its thread is at work."""
        return self._thread.is_alive()

    @property
    def ended(self) -> bool:
        """Whether it is done or aborted."""
        return self.name in ("done", "aborted")

    @property
    def seconds(self) -> dict[str, float]:
        """Time spent in each state so far."""
        seconds = dict(self._seconds)
        if not self.ended:
            seconds[self.name] = time.perf_counter() - self._entered
        return seconds

    def enter(self, state: SwitchState) -> None:
        """Go on to the next state."""
        now = time.perf_counter()
        self._seconds[self.name] = self._seconds.get(self.name, 0.0) + now - self._entered
        self.name, self._entered = state, now

    def check_wanted(self) -> None:
        """Return if the change is still to be made.

        Raises:
            RegranularizationError: it is not, or cannot be.
        """
        if self.error is not None:
            raise RegranularizationError(self.error)
        if self._abort is not None:
            raise RegranularizationError(self._abort)
        if not threading.main_thread().is_alive():
            raise RegranularizationError("the interpreter ends, and waits for this thread")

    def give_up(self, error: Exception) -> None:
        """It ends without a switch."""
        self.error = str(error) or repr(error)
        logger.warning(
            "change of plan %d aborted while %s: %s; the old plan serves on",
            self._number,
            self.name,
            self.error,
        )
        self.enter("aborted")

    def _run(self) -> None:
        try:
            self._prepare()
        except Exception as error:
            logger.debug("preparing a regranularization failed", exc_info=True)
            self.error = str(error) or repr(error)
