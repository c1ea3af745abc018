"""Short routes: placements whose stages hop between nodes and racks as seldom as can be.

A placement is a walk of the stages over nodes. It stays on a node for a *run* of rows, then goes on
to another one in the same rack or elsewhere. The walks of the first so many rows that end on a node
after a run of some length are one class, of which the best is kept: dynamic programming over rows,
for all nodes at once, by a sum of hops and prices. A run pays for the cheapest devices of its node,
each kind of row by itself; once it is known which nodes the rows are on, an assignment says which
devices they get there, exactly.

To use no node twice, each walk knows where it was, and is followed only by nodes that are new. As
only the best of each class goes on, the walk that is found need not be the best of all. Walks that
may come back to a node are a superset of all placements, with the same cost or less: the best of
them is a bound, and where it costs as much as what was found, that is proven to be best.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.optimize import linear_sum_assignment

from fjx.sharding.placement.rows import NEVER, Hop, Rows
from fjx.sharding.topology.fleet import Booleans, Floats, Integers

_SOURCES = 4
"""Walks that are tried as the way to a node, of each rack and of the whole fleet."""
_TRIES = 4
"""Walks to look for where the devices of a node turn out to be too few."""
_LARGEST = 1 << 59
"""Of a walk's key, so that with a step that cannot be it is still an int64."""


@dataclass(frozen=True, eq=False)
class Route:
    """Devices of the rows, and what they come to."""

    devices: Integers
    travel: int
    """Picoseconds that a microbatch spends between stages."""
    price: int


class Routes:
    """The walks of one plan on whose rows none takes longer than a limit."""

    def __init__(self, rows: Rows, limit: int, price: Floats) -> None:
        """
        Args:
            rows: What is to be placed.
            limit: Picoseconds of the slowest row.
            price: Whole numbers, [rows, D].
        """
        self.rows, self.limit = rows, limit
        self.price = price.astype(np.int64)
        fleet = rows.fleet
        self._begins = np.searchsorted(fleet.node, np.arange(len(fleet.hosts)))
        counts = np.bincount(fleet.node)
        self._width = int(min(len(rows.stages), counts.max()))
        self._ways: dict[int, Hop] = {way.target: way for way in rows.ways}
        self._least = np.array([0] + [self._way(r).fastest for r in range(1, len(rows.stages))])
        self._tables()
        by_rack = np.argsort(fleet.rack, kind="stable")
        self._rack_begins = np.searchsorted(fleet.rack[by_rack], np.arange(fleet.rack.max() + 1))
        self._racks_matter = len(self._rack_begins) < len(fleet.hosts)

    def found(self, devices: Integers) -> Route:
        """What these devices come to."""
        price = int(self.price[np.arange(len(devices)), devices].sum())
        return Route(devices, self.rows.travel(devices), price)

    @cached_property
    def weight(self) -> int:
        """Price of a picosecond between stages at which no price is worth a longer way, as far as
        whole numbers reach."""
        times = [
            {way.within, way.rack, way.between, *(time for *_, time in way.pairs)} - {NEVER}
            for way in self.rows.ways
        ]
        gaps = [b - a for each in times for a in each for b in each if b > a]
        most = sum(max(each) - min(each) for each in times if each)
        prices = int(self._spread.sum())
        if not gaps:
            return 0
        return max(min(prices // min(gaps) + 1, (_LARGEST - prices) // most), 0)

    def key(self, route: Route, weight: int) -> int:
        """What a route costs where a picosecond costs so much, above the least there can be."""
        travel = route.travel - int(self._least.sum())
        return weight * travel + route.price - int(self._cheapest.sum())

    def best(self, weight: int) -> Route | None:
        """A route of a low key, by walks that come to no node twice."""
        rooms = self._rooms.copy()
        for _ in range(_TRIES):
            walk = self._walk(weight, rooms, distinct=True)
            nodes = walk[1]
            if nodes is None:
                return None
            devices = self._assigned(nodes)
            if devices is not None:
                return self.found(devices)
            for node in self._too_full(nodes):
                rooms[node] = np.count_nonzero(nodes == node) - 1
        return None

    def bound(self, weight: int) -> int:
        """No placement has a lower key."""
        return self._walk(weight, self._rooms, distinct=False)[0]

    def travel_of(self, key: int) -> int:
        """No placement travels less if none has a lower key, with `weight`, than this one."""
        longer = -(-(key - int(self._spread.sum())) // self.weight)
        return int(self._least.sum()) + max(longer, 0)

    @cached_property
    def least_travel(self) -> int:
        """No placement spends less between stages: there must be enough nodes and racks for all
        rows, and from each to the next there is a way."""
        rows, fleet, ways = self.rows, self.rows.fleet, self.rows.ways
        least = int(self._least.sum())
        if fleet.pairs or any(not way.within <= way.rack <= way.between for way in ways):
            return least
        for rooms, steps in (
            (self._rooms, [way.rack - way.within for way in ways]),
            (np.bincount(fleet.rack, self._rooms), [way.between - way.rack for way in ways]),
        ):
            filled = np.cumsum(-np.sort(-rooms))
            needed = int(np.searchsorted(filled, len(rows.stages)))
            least += sum(sorted(steps)[:needed])
        return least

    def _way(self, row: int) -> Hop:
        return self._ways.get(row, _TOGETHER)

    def _tables(self) -> None:
        """What devices each row may use, and at what price, node by node."""
        rows, fleet, begins = self.rows, self.rows.fleet, self._begins
        nodes, stages = len(fleet.hosts), rows.stages
        usable = np.zeros(len(fleet.devices), np.bool_)
        self._kinds: list[int] = []
        self._ladders: list[Integers] = []
        """For each kind of row, prices of a node's devices from the cheapest, [N, width]."""
        self._bases = np.empty((len(stages), nodes), np.int64)
        """Price of the cheapest device of a node, above the cheapest of all."""
        self._by_stay = np.ones((len(stages), nodes), np.bool_)
        """Whether a row is in time on a node if it comes from there."""
        self._by_rack = np.ones((len(stages), nodes), np.bool_)
        """Whether a row is in time on a node if it comes from another node of the rack."""
        self._by_far = np.ones((len(stages), nodes), np.bool_)
        self._cheapest = np.zeros(len(stages), np.int64)
        self._spread = np.zeros(len(stages), np.int64)
        seen: list[Integers] = []
        for row, stage in enumerate(stages):
            # All shards of a stage get their input the way that the first one does.
            way = self._way(stages.index(stage))
            allowed = rows.compute[row] <= self.limit - way.fastest
            usable |= allowed
            prices = np.where(allowed, self.price[row], NEVER)
            known = self.price[row][allowed]
            if len(known):
                self._cheapest[row] = known.min()
                self._spread[row] = known.max() - known.min()
            base = np.minimum.reduceat(prices, begins)
            shape = np.where(allowed, prices - base[fleet.node], NEVER)
            self._bases[row] = np.where(base < NEVER, base - self._cheapest[row], NEVER)
            if row in self._ways:
                shards = stages.count(stage)
                for time, table in (
                    (way.within, self._by_stay),
                    (way.rack, self._by_rack),
                    (way.between, self._by_far),
                ):
                    in_time = rows.compute[row] <= self.limit - time
                    table[row] = np.add.reduceat(in_time, begins, dtype=np.int64) >= shards
            same = (kind for kind, each in enumerate(seen) if np.array_equal(each, shape))
            kind = next(same, len(seen))
            if kind == len(seen):
                seen.append(shape)
                self._ladders.append(self._ladder(shape))
            self._kinds.append(kind)
        self._rooms: Integers = np.add.reduceat(usable, begins, dtype=np.int64)

    def _ladder(self, shape: Integers) -> Integers:
        node = self.rows.fleet.node
        order = np.lexsort((shape, node))
        rank = np.arange(len(order)) - self._begins[node]
        ladder = np.full((len(self._begins), self._width), NEVER)
        kept = rank < self._width
        ladder[node[kept], rank[kept]] = shape[order][kept]
        return ladder

    def _walk(self, weight: int, rooms: Integers, *, distinct: bool) -> tuple[int, Integers | None]:
        """The least key, and the node of each row; None: there is no walk, or nobody asked."""
        count, nodes, width = len(self._kinds), len(self._begins), self._width
        full = np.arange(1, width + 1) > rooms[:, None]
        keys = np.full((nodes, width), NEVER)
        keys[:, 0] = self._bases[0] + self._ladders[self._kinds[0]][:, 0]
        keys[full] = NEVER
        passed = _Passed(count, nodes) if distinct else None
        for row in range(1, count):
            way, kind = self._way(row), self._kinds[row]
            run = self._kinds[max(0, row - width + 1) : row][::-1]
            before = np.cumsum([each == kind for each in run], dtype=np.int64)
            prices = self._bases[row][:, None] + self._ladders[kind]
            new = np.full_like(keys, NEVER)
            stays = _capped(weight * (way.within - way.fastest))
            new[:, 1 : len(run) + 1] = keys[:, : len(run)] + prices[:, before] + stays
            if way is not _TOGETHER:
                new[:, 0] = self._arrivals(row, keys, weight, passed) + prices[:, 0]
            new[~self._by_stay[row], 1:] = NEVER
            new[full] = NEVER
            keys = np.minimum(new, NEVER)
        key = int(keys.min())
        if key >= NEVER or passed is None:
            return key, None
        node, length = np.unravel_index(keys.argmin(), keys.shape)
        return key, passed.walk(count - 1 - int(length), int(node))

    def _arrivals(self, row: int, keys: Integers, weight: int, passed: _Passed | None) -> Integers:
        """The least key of walks that come to each node for a row, [N]."""
        fleet, way, nodes = self.rows.fleet, self._way(row), len(keys)
        lasts, starts = keys.min(axis=1), row - 1 - keys.argmin(axis=1)
        found = _Offers(np.full(nodes, NEVER), np.zeros(nodes, np.int64))
        sources = _SOURCES if passed is not None else 2  # the other, where one may not stay
        if self._racks_matter:
            order = np.lexsort((lasts, fleet.rack))
            places = np.arange(nodes) - self._rack_begins[fleet.rack[order]]
            cost = _capped(weight * (way.rack - way.fastest))
            for place in range(sources):
                chosen = order[places == place]
                of_rack = np.full(len(self._rack_begins), -1)
                of_rack[fleet.rack[chosen]] = chosen
                source = of_rack[fleet.rack]
                open_nodes = self._by_rack[row] & (source >= 0)
                open_nodes[chosen] = False
                if passed is not None:
                    open_nodes[passed.by(chosen, starts[chosen], fleet.rack)] = False
                found.offer(source, lasts[source] + cost, open_nodes)
        cost = _capped(weight * (way.between - way.fastest))
        for last in np.argsort(lasts, kind="stable")[:sources]:
            open_nodes = self._by_far[row].copy()
            open_nodes[last] = False
            if passed is not None:
                open_nodes[passed.by(last[None], starts[last][None])] = False
            found.offer(np.full(nodes, last), np.full(nodes, lasts[last] + cost), open_nodes)
        for first, second, time in way.pairs:
            in_time = self.rows.compute[row][fleet.node == second] <= self.limit - time
            seen = () if passed is None else passed.by(np.array([first]), starts[[first]])
            if in_time.any() and second not in seen:
                key = lasts[first] + _capped(weight * (time - way.fastest))
                found.offer_one(second, first, int(key))
        if passed is not None:
            passed.arrive(row, found.sources, starts[found.sources])
        return np.minimum(found.keys, NEVER)

    def _assigned(self, nodes: Integers) -> Integers | None:
        """The cheapest devices where the node of each row is known; None: they are too few."""
        node, price = self.rows.fleet.node, self.price
        columns = np.flatnonzero(np.isin(node, nodes))
        allowed = self._in_time(nodes)[:, columns] & (node[columns] == nodes[:, None])
        try:
            costs = np.where(allowed, price[:, columns], np.inf)
            devices: Integers = columns[linear_sum_assignment(costs)[1]]
        except ValueError:
            return None
        return devices

    def _in_time(self, nodes: Integers) -> Booleans:
        rows = self.rows
        waits = np.zeros(len(nodes), np.int64)
        for row, stage in enumerate(rows.stages):
            way = self._way(rows.stages.index(stage))
            if way is not _TOGETHER:
                waits[row] = way.seen_from(nodes[way.source], rows.fleet)[nodes[way.target]]
        in_time: Booleans = rows.compute <= self.limit - waits[:, None]
        return in_time

    def _too_full(self, nodes: Integers) -> list[int]:
        """Nodes whose rows find too few devices there."""
        in_time, node, full = self._in_time(nodes), self.rows.fleet.node, []
        for each in np.unique(nodes):
            costs = np.where(in_time[nodes == each][:, node == each], 0.0, np.inf)
            try:
                fits = costs.shape[0] <= costs.shape[1]
                linear_sum_assignment(costs)
            except ValueError:
                fits = False
            if not fits:
                full.append(int(each))
        return full


_TOGETHER = Hop(0, 0, 0, NEVER, NEVER)
"""Of shards, and of the first row."""


class _Offers:
    """Ways to come to each node: the least key is taken."""

    def __init__(self, keys: Integers, sources: Integers) -> None:
        self.keys, self.sources = keys, sources

    def offer(self, sources: Integers, keys: Integers, open_nodes: Booleans) -> None:
        better = open_nodes & (keys < self.keys)
        self.keys[better], self.sources[better] = keys[better], sources[better]

    def offer_one(self, node: int, source: int, key: int) -> None:
        if key < self.keys[node]:
            self.keys[node], self.sources[node] = key, source


class _Passed:
    """The nodes to which walks came so far."""

    def __init__(self, rows: int, nodes: int) -> None:
        self._nodes = np.full((rows, nodes, rows), -1, np.int32)
        """Of the best walk that came to a node for a row: where it came to for each row, [rows, N,
        rows]; -1 where it stayed."""
        self._all = np.arange(nodes)
        self._nodes[0, :, 0] = self._all

    def arrive(self, row: int, sources: Integers, starts: Integers) -> None:
        """Walks come to each node from those, where they had come to for the rows `starts`."""
        self._nodes[row] = self._nodes[starts, sources]
        self._nodes[row, self._all, row] = self._all

    def by(self, lasts: Integers, starts: Integers, rack: Integers | None = None) -> Integers:
        """Nodes passed by walks; by each in the rack of its last node only, where racks are
        given."""
        nodes = self._nodes[starts, lasts].astype(np.int64)
        known = nodes >= 0
        if rack is not None:
            known &= rack[nodes] == rack[lasts][:, None]
        return nodes[known]

    def walk(self, start: int, last: int) -> Integers:
        """Node of each row."""
        nodes = self._nodes[start, last].astype(np.int64)
        came = np.maximum.accumulate(np.where(nodes >= 0, np.arange(len(nodes)), 0))
        walk: Integers = nodes[came]
        return walk


def _capped(cost: int) -> int:
    return min(cost, NEVER)
