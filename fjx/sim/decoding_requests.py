"""Requests that only decode: where they stand, without a look at each of them in every step."""

from __future__ import annotations

import heapq
from typing import NamedTuple

from fjx.scheduling.page_pool import PagePool
from fjx.scheduling.request import Request


class _Place(NamedTuple):
    """Of a request when it was put here."""

    step: int
    """The group's step that was the last one sent."""
    known: int
    """Tokens that the device knew after it."""
    last: int
    """The step that brings its last token."""


class DecodingRequests:
    """Requests of one group that get one row in each of its steps, counted together.

    The group's step ``i`` brings each of them its next token. Their context grows by one a step, so
    what all have together is a line in ``i``; what happens to one of them (a page is full, the last
    token comes) is known beforehand and waits in a calendar.
    """

    def __init__(self, page_size: int) -> None:
        self._page_size = page_size
        self._places: dict[Request, _Place] = {}
        self._offset = 0
        self._pages: dict[int, list[Request]] = {}
        self._ends: dict[int, list[Request]] = {}
        self._next_ends: list[int] = []
        self.index = 0
        """Steps of the group so far."""
        self.rows = 0
        """Requests that still want rows."""

    def __len__(self) -> int:
        return len(self._places)

    @property
    def steps_before_end(self) -> int:
        """How many steps can be made before one brings a last token."""
        return self._next_ends[0] - self.index - 1

    @property
    def context(self) -> int:
        """Tokens that all have after the next step."""
        return self._offset + self.rows * (self.index + 1)

    @property
    def due(self) -> int:
        """Requests that need another page for the next step."""
        return len(self._pages.get(self.index + 1, ()))

    def step(self, pool: PagePool) -> list[Request]:
        """Count the next step; the requests whose last token it brings, and which want no more
        rows."""
        self.advance(1, pool)
        ended = self._ends.pop(self.index, [])
        if ended:
            heapq.heappop(self._next_ends)
        for request in ended:
            place = self._places[request]
            self.rows -= 1
            self._offset -= place.known - 1 - place.step
        return ended

    def advance(self, steps: int, pool: PagePool) -> None:
        """Count steps that bring no last token, and take the pages for them."""
        for _ in range(steps):
            self.index += 1
            for request in self._pages.pop(self.index, ()):
                request.pages += pool.take(1)
                self._plan_page(request, self.index + self._page_size, self._places[request].last)

    def add(self, request: Request) -> bool:
        """Take a request whose token the last step brings; False: it is its last one.

        Requests must come in the order in which the scheduler has them.
        """
        known = request.known
        wanted = max(request.max_len - known, 0)
        last = self.index + wanted
        self._places[request] = _Place(self.index, known, last)
        if not wanted:
            return False
        self.rows += 1
        self._offset += known - 1 - self.index
        self._ends.setdefault(last, []).append(request)
        if len(self._ends[last]) == 1:
            heapq.heappush(self._next_ends, last)
        room = len(request.pages) * self._page_size
        self._plan_page(request, self.index + 2 + room - known, last)
        return True

    def _plan_page(self, request: Request, index: int, last: int) -> None:
        if index <= last:
            self._pages.setdefault(index, []).append(request)

    def pop(self, request: Request) -> None:
        """Its last token was read."""
        del self._places[request]

    def show_all(self, unread: bool, token: int) -> list[Request]:
        """All requests as they are after the last step, in order; this object ends.

        Args:
            unread: whether the host has not read that step yet.
            token: what their tokens are.
        """
        for request, place in self._places.items():
            known = min(place.known + self.index - place.step, request.max_len)
            request.unread = int(unread)
            request.tokens += [token] * (known - request.unread - len(request.tokens))
            request.computed = known - 1
        return list(self._places)
