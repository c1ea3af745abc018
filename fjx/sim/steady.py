"""Requests that only decode: where they stand, without a look at each of them in every step."""

from __future__ import annotations

import heapq
from typing import Any, NamedTuple

import numpy as np

from fjx.cache.page_pool import PagePool
from fjx.engine.request import Request


class _Place(NamedTuple):
    """Of a request when it was put here."""

    step: int
    """The step that was the last one sent."""
    known: int
    """Tokens that the device knew after it."""
    part: int
    """Of the plan's microbatches."""
    last: int
    """The step that brings its last token."""


class Steady:
    """Requests that get one row in every step, counted together.

    Step ``i`` brings each of them its next token. Their context grows by one a step, so what all
    have together is a line in ``i``; what happens to one of them (a page is full, the last token
    comes) is known beforehand and waits in a calendar.
    """

    def __init__(self, microbatches: int, page_size: int) -> None:
        self._microbatches = microbatches
        self._page_size = page_size
        self._places: dict[Request, _Place] = {}
        self._rows = np.zeros(microbatches, np.int64)
        self._offset = np.zeros(microbatches)
        self._pages: dict[int, list[Request]] = {}
        self._ends: dict[int, list[Request]] = {}
        self._next_ends: list[int] = []
        self.decoding = 0
        """Requests that still want rows."""

    def __len__(self) -> int:
        return len(self._places)

    @property
    def next_end(self) -> int:
        """The next step that brings a last token."""
        return self._next_ends[0]

    def add(self, request: Request, index: int) -> bool:
        """Take a request whose token the step of this index brings; False: it is its last one.

        Requests must come in the order in which the scheduler has them.
        """
        known = request.known
        wanted = request.max_len - known
        self._places[request] = _Place(
            index, known, request.slot % self._microbatches, index + max(wanted, 0)
        )
        if wanted <= 0:
            return False
        self._count(request)
        return True

    def _count(self, request: Request) -> None:
        index, known, part, last = self._places[request]
        self.decoding += 1
        self._rows[part] += 1
        self._offset[part] += known - 1 - index
        self._at(self._ends, last, request)
        if len(self._ends[last]) == 1:
            heapq.heappush(self._next_ends, last)
        room = len(request.pages) * self._page_size
        self._plan_page(request, index + 2 + room - known, last)

    def _plan_page(self, request: Request, index: int, last: int) -> None:
        if index <= last:
            self._at(self._pages, index, request)

    @staticmethod
    def _at(calendar: dict[int, list[Request]], index: int, request: Request) -> None:
        calendar.setdefault(index, []).append(request)

    def batch(self, index: int) -> tuple[Any, Any, Any, Any]:
        """Rows of the step, how many of them choose a token, tokens that they attend to, and
        context, by microbatch."""
        context = self._offset + self._rows * index
        return self._rows.copy(), self._rows.copy(), context, context.copy()

    def due(self, index: int) -> list[Request]:
        """Requests that need another page for this step."""
        return self._pages.get(index, [])

    def grow(self, due: list[Request], index: int, pool: PagePool) -> None:
        """Give them one."""
        if not due:
            return
        for request in due:
            request.pages += pool.take(1)
            self._plan_page(request, index + self._page_size, self._places[request].last)
        del self._pages[index]

    def end(self, index: int) -> list[Request]:
        """Requests whose last token this step brings; they want no more rows."""
        ended = self._ends.pop(index, [])
        if ended:
            heapq.heappop(self._next_ends)
        for request in ended:
            place = self._places[request]
            self.decoding -= 1
            self._rows[place.part] -= 1
            self._offset[place.part] -= place.known - 1 - place.step
        return ended

    def pop(self, request: Request) -> None:
        """Its last token was read."""
        del self._places[request]

    def show_all(self, index: int, unread: bool, token: int) -> list[Request]:
        """All requests as they are after the step of this index, in order; this object ends.

        Args:
            index: of the last step sent.
            unread: whether the host has not read it yet.
            token: what their tokens are.
        """
        for request, place in self._places.items():
            known = min(place.known + index - place.step, request.max_len)
            request.unread = int(unread)
            request.tokens += [token] * (known - request.unread - len(request.tokens))
            request.computed = known - 1
        return list(self._places)

    def take_over(self, other: Steady) -> None:
        """Count the requests of another plan's microbatches, while no step is in flight."""
        for request, place in other._places.items():
            part = request.slot % self._microbatches
            self._places[request] = place._replace(part=part)
            self._count(request)
