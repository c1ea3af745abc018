"""Notices lost workers."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping

from fjx.cluster.actor import Call, Member
from fjx.errors import StageLostError

logger = logging.getLogger(__name__)

_BEATS = 8
"""Signs of life that are asked for within the limit."""


class Watch:
    """Asks all workers for signs of life, in a thread of its own."""

    def __init__(self, members: Mapping[str, Member], seconds: float) -> None:
        """
        Args:
            members: those to watch; may change meanwhile.
            seconds: without a sign of life after which a worker counts as lost.
        """
        self._members, self._seconds = members, seconds
        self._asked: dict[Member, tuple[Call, float]] = {}
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin."""
        self._thread = threading.Thread(target=self._run, name="fjx-watch", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while not self._stopped.wait(self._seconds / _BEATS):
            members = list(self._members.values())
            now = time.monotonic()
            self._asked = {
                member: self._asked.get(member) or (member.beat(), now)
                for member in members
                if member.started and member.lost is None
            }
            for member in list(self._asked):
                self._look(member)

    def _look(self, member: Member) -> None:
        asked, when = self._asked[member]
        if asked.done:
            del self._asked[member]
            try:
                member.steps = asked.result(1.0)
            except StageLostError as error:
                member.lose(str(error))
        elif time.monotonic() - when > self._seconds:
            member.lose(f"{member} gave no sign of life for {self._seconds:g} s")
