"""The search for devices between which a microbatch travels little, and of those the cheapest.

First the short walks over nodes of `placement_walk`, which are quick on any fleet and mostly proven
to be short, more seldom to be cheap. Where they are not, and the fleet is so small that all pairs
of nodes can be looked at, the branch and bound of `placement_search` goes on from there.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property

import numpy as np

from fjx.sharding.placement.rows import NEVER, Rows
from fjx.sharding.placement.search import SearchResult, cheapest
from fjx.sharding.placement.walk import Route, Routes
from fjx.sharding.topology.fleet import Booleans, Floats, Integers

_CELLS = 1 << 12
"""Rows times nodes times assignments that the branch and bound solves at most."""
_QUICK_EFFORT = 2
"""Assignments that show whether the cheapest devices keep to all limits by themselves."""
_WEIGHTS = 4
"""Walks to look for between the shortest and the cheapest."""


class Router:
    """Places one plan so that no row takes longer than a limit."""

    def __init__(
        self, rows: Rows, limit: int, price: Floats, effort: int, known: Integers | None
    ) -> None:
        """
        Args:
            rows: What is to be placed.
            limit: Picoseconds.
            price: Whole numbers, [rows, D].
            effort: Most assignments that one search solves.
            known: Devices that keep to the limit, where there are any.
        """
        used: Booleans = np.any(rows.compute <= limit, axis=0)
        if np.count_nonzero(used) < len(rows.stages):
            used[:] = True
        self._used = np.flatnonzero(used)
        self._rows, self._limit, self._price = rows.only(used), limit, price[:, used]
        self._effort = effort
        cells = len(rows.stages) * len(self._rows.fleet.hosts)
        self._small_effort = min(effort, _CELLS // cells)
        self._known = None if known is None else np.searchsorted(self._used, known)

    def shortest(self) -> SearchResult:
        """The devices between which a microbatch travels least; the value is picoseconds."""
        return self._in_fleet(self._shortest)

    def cheapest(self, travel: int) -> SearchResult:
        """The devices with the least sum of prices between which a microbatch travels at most so
        many picoseconds."""
        return self._in_fleet(self._cheapest if travel >= NEVER else self._within(travel))

    def _in_fleet(self, found: SearchResult) -> SearchResult:
        return found if found.devices is None else replace(found, devices=self._used[found.devices])

    @cached_property
    def _routes(self) -> Routes:
        return Routes(self._rows, self._limit, self._price)

    @cached_property
    def _same(self) -> bool:
        """Whether a microbatch travels as long on any devices: the links are alike, or there is no
        time to leave a node."""
        compute = self._rows.compute
        return all(
            way.fastest == way.slowest
            or self._limit - int(compute[way.target].min()) < way.off_node
            for way in self._rows.ways
        )

    @cached_property
    def _cheapest(self) -> SearchResult:
        """The cheapest devices, however far apart."""
        return cheapest(self._rows, self._limit, self._price, self._effort)

    @cached_property
    def _quick(self) -> SearchResult:
        """The cheapest devices, where little effort finds them."""
        if self._same:
            return self._cheapest
        return cheapest(self._rows, self._limit, self._price, _QUICK_EFFORT)

    @cached_property
    def _start(self) -> Route | None:
        """The shortest that is found at once."""
        routes = self._routes
        known = [each for each in (self._known, self._quick.devices) if each is not None]
        found = [routes.found(each) for each in known]
        walk = None if self._same else routes.best(routes.weight)
        if walk is not None:
            found.append(walk)
        if not found and self._cheapest.devices is not None:
            found.append(routes.found(self._cheapest.devices))
        return min(found, key=lambda each: (each.travel, each.price), default=None)

    @cached_property
    def _shortest(self) -> SearchResult:
        start = self._start
        if start is None:
            return SearchResult(None, float("inf"), self._cheapest.proven)
        devices, travel = start.devices, start.travel
        proven = self._same or travel <= self._least_travel(travel)
        free = np.zeros_like(self._price)
        while not proven and self._small_effort:
            found = cheapest(
                self._rows, self._limit, free, self._small_effort, first=True, travel=travel - 1
            )
            if found.devices is None:
                proven = found.proven
                break
            devices, travel = found.devices, self._rows.travel(found.devices)
        return SearchResult(devices, travel, proven)

    def _least_travel(self, found: int) -> int:
        """No placement travels less; only as well as is needed for what was found."""
        routes = self._routes
        if found <= routes.least_travel or not routes.weight:
            return routes.least_travel
        return max(routes.least_travel, routes.travel_of(self._bound))

    @cached_property
    def _bound(self) -> int:
        return self._routes.bound(self._routes.weight)

    def _within(self, travel: int) -> SearchResult:
        quick, routes = self._quick, self._routes
        near = quick.devices is None or self._rows.travel(quick.devices) <= travel
        if near and (quick.proven or self._same):
            return quick
        options = [] if self._start is None else [self._start, *self._lighter(travel)]
        known = (each for each in (self._shortest.devices, self._known) if each is not None)
        options += [routes.found(each) for each in known]
        best = min(
            (each for each in options if each.travel <= travel),
            key=lambda each: (each.price, each.travel),
            default=None,
        )
        if best is None:
            return SearchResult(None, float("inf"), self._shortest.proven)
        if best.travel == travel and routes.key(best, routes.weight) == self._bound:
            return SearchResult(best.devices, best.price, True)
        if not self._small_effort:
            return SearchResult(best.devices, best.price, False)
        return cheapest(
            self._rows,
            self._limit,
            self._price,
            self._small_effort,
            travel=travel,
            known=best.devices,
        )

    def _lighter(self, travel: int) -> list[Route]:
        """Routes that may be longer than the shortest and cheaper, within a limit."""
        routes, start = self._routes, self._start
        if start is None or start.travel >= travel:
            return []
        low, high, found = 0.0, float(routes.weight.bit_length()), []
        for _ in range(_WEIGHTS):
            middle = (low + high) / 2
            walk = routes.best(int(2**middle))
            if walk is not None and walk.travel <= travel:
                found.append(walk)
                high = middle
            else:
                low = middle
        return found
