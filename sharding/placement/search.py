"""The search for devices: branch and bound over racks, then nodes, with an assignment at each step.

Forget for a moment that a stage's input takes longer from far away: then the rows want different
devices with the least sum of prices, which is the assignment problem, solved exactly in about a
millisecond (Jonker and Volgenant 1987, as in SciPy). Its sum is a bound for what is really asked.
Where its solution keeps every *hop* (the way from a row to a later one) within the limit, and all
of them together within theirs, it is the answer. Where not, a row of a hop must be in some rack,
and there on some node: each choice is a smaller problem of the same kind, and once the node is
known it is known which devices the hop may reach, and what it adds to the sum.

Times are whole picoseconds, prices whole numbers, so that ties are ties.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment

from fjx.sharding.placement.rows import NEVER, Hop, Rows
from fjx.sharding.topology.fleet import Booleans, Floats, Integers


@dataclass(frozen=True)
class SearchResult:
    """What a search came to."""

    devices: Integers | None
    """The device of each row; None: no placement was found."""
    value: float
    """The least sum of prices, or picoseconds of the slowest row."""
    proven: bool
    """Whether nothing better was left untried."""


def fastest(rows: Rows, effort: int) -> SearchResult:
    """The devices on which the slowest row is fastest.

    Args:
        rows: What is to be placed.
        effort: Most assignments to solve for each time that is tried.
    """
    free = np.zeros(rows.compute.shape)
    found = cheapest(rows, NEVER - 1, np.where(rows.compute < NEVER, rows.compute, 0) * 1.0, effort)
    if found.devices is None:
        return found
    best, proven = found.devices, True
    highest = int(rows.row_times(best).max())
    times = _possible_times(rows)
    low, high = 0, int(np.searchsorted(times, highest))
    middle = low
    while low < high:
        found = cheapest(rows, int(times[middle]), free, effort, first=True)
        if found.devices is None:
            proven &= found.proven
            low = middle + 1
        else:
            best = found.devices
            high = int(np.searchsorted(times, rows.row_times(best).max()))
        middle = (low + high) // 2
    return SearchResult(best, float(rows.row_times(best).max()), proven)


def cheapest(
    rows: Rows,
    limit: int,
    price: Floats,
    effort: int,
    *,
    first: bool = False,
    travel: int = NEVER,
    known: Integers | None = None,
) -> SearchResult:
    """The devices with the least sum of prices on which no row takes longer than a limit.

    Args:
        rows: What is to be placed.
        limit: Picoseconds.
        price: Whole numbers, [rows, D].
        effort: Most assignments to solve.
        first: Whether any devices will do.
        travel: Picoseconds that a microbatch may spend between stages. A limit takes time and
            memory that grow with the square of the number of nodes.
        known: Devices that keep to the limits: others are only of use if they are cheaper.
    """
    search = _Search(rows, limit, price, effort, first)
    if travel < NEVER:
        search.travel = _Travel(rows, travel)
    if known is not None:
        search.best, search.value = known, float(price[np.arange(len(known)), known].sum())
    search.visit(search.masks())
    proven = search.effort > 0 or (first and search.best is not None)
    return SearchResult(search.best, search.value, proven)


class _Travel:
    """A limit on the sum of what a microbatch spends between stages."""

    def __init__(self, rows: Rows, most: int) -> None:
        self.rows, self.most = rows, most
        nodes = range(len(rows.fleet.hosts))
        times: dict[tuple[object, ...], Integers] = {}
        self._times = []
        for way in rows.ways:
            key = (way.within, way.rack, way.between, way.pairs)
            if key not in times:
                times[key] = np.array([way.seen_from(node, rows.fleet) for node in nodes])
            self._times.append(times[key])

    def least(self, nodes: Booleans) -> int:
        """Picoseconds, where each row may be on these nodes, [rows, N]; as if a node had room for
        any number of them."""
        sums = np.where(nodes[0], 0, NEVER)
        for way, times in zip(self.rows.ways, self._times, strict=True):
            sums = np.minimum((sums[:, None] + times).min(axis=0), NEVER)
            sums[~nodes[way.target]] = NEVER
        return int(sums.min())

    def dearest(self, devices: Integers, nodes: Booleans) -> int | None:
        """A row whose node is open, of the way between these devices that takes the longest over
        its best; None: they keep to the limit."""
        if self.rows.travel(devices) <= self.most:
            return None
        of_row = self.rows.fleet.node[devices]
        several = nodes.sum(axis=1) > 1
        worst, row = -1, None
        for way, times in zip(self.rows.ways, self._times, strict=True):
            over = int(times[of_row[way.source], of_row[way.target]]) - way.fastest
            end = way.source if several[way.source] else way.target
            if several[end] and over > worst:
                worst, row = over, end
        return row


class _Search:
    """One run of branch and bound."""

    travel: _Travel | None = None

    def __init__(self, rows: Rows, limit: int, price: Floats, effort: int, first: bool) -> None:
        self.rows, self.fleet, self.price = rows, rows.fleet, price
        self.effort, self.first = effort, first
        self.best: Integers | None = None
        self.value = float("inf")
        self.limit = limit
        self.racks = self.fleet.rack[self.fleet.node]
        targets = [hop.target for hop in rows.hops]
        self.slack = limit - rows.compute[targets] if targets else rows.compute[:0]
        """Picoseconds left for each hop by its target's device, [hops, D]."""
        most = self.slack.max(axis=1, initial=-1)
        self.rack_run = self._runs(m < h.off_rack for m, h in zip(most, rows.hops, strict=True))
        """Rows with the same number must be in one rack, [rows]."""
        self.node_run = self._runs(m < h.off_node for m, h in zip(most, rows.hops, strict=True))
        """Rows with the same number must be on one node, [rows]."""

    def masks(self) -> Booleans:
        """Devices that each row may use if the links are kind, [rows, D]."""
        masks = self.rows.compute <= self.limit
        for hop, slack in zip(self.rows.hops, self.slack, strict=True):
            masks[hop.target] &= slack >= hop.fastest
        return masks

    def _runs(self, closed: Iterable[bool]) -> npt.NDArray[np.int64]:
        """Number rows so that those are equal which hops that are closed join, [rows]."""
        numbers = np.arange(len(self.rows.stages))
        for hop, joins in zip(self.rows.hops, closed, strict=True):
            if joins:
                numbers[numbers == numbers[hop.target]] = numbers[hop.source]
        return numbers

    def visit(self, masks: Booleans) -> None:
        """Search where each row keeps to its mask."""
        relaxed = self._assign(masks)
        if relaxed is not None and not self._too_far(masks):
            self._settle(masks, *relaxed)

    def _settle(self, masks: Booleans, devices: Integers, value: float) -> None:
        """Take the assignment, or branch where it breaks a hop."""
        row = self._broken(devices)
        if row is None and self.travel is not None:
            row = self.travel.dearest(devices, self._nodes_of_rows(masks))
        if row is None:
            self.best, self.value = devices, value
            return
        children: list[tuple[float, int, Booleans, Integers]] = []
        for child in self._children(masks, row, int(devices[row])):
            if not self._propagate(child, row) or self._too_far(child):
                continue
            relaxed = self._assign(child)
            if relaxed is not None and self.best is None:
                self._settle(child, *relaxed)  # straight down, for a placement to compare with
            elif relaxed is not None:
                children.append((relaxed[1], len(children), child, relaxed[0]))
            if self._done():
                return
        for bound, _, child, assigned in sorted(children, key=lambda each: each[:2]):
            if self._done() or bound >= self.value:
                return
            self._settle(child, assigned, bound)

    def _done(self) -> bool:
        return self.effort <= 0 or (self.first and self.best is not None)

    def _assign(self, masks: Booleans) -> tuple[Integers, float] | None:
        """The least sum of prices without regard to hops; None: there is none that is below the
        best one so far."""
        columns = np.flatnonzero(masks.any(axis=0))
        if self._done() or len(columns) < len(masks):
            return None
        self.effort -= 1
        costs = np.where(masks[:, columns], self.price[:, columns], np.inf)
        try:
            chosen, places = linear_sum_assignment(costs)
        except ValueError:  # some rows have too few devices between them
            return None
        value = float(costs[chosen, places].sum())
        return (columns[places], value) if value < self.value else None

    def _broken(self, devices: Integers) -> int | None:
        """The first row from which a hop takes too long between these devices."""
        nodes = self.fleet.node[devices]
        for index, hop in enumerate(self.rows.hops):
            slack = self.slack[index, devices[hop.target]]
            if slack < hop.slowest:
                times = hop.seen_from(int(nodes[hop.source]), self.fleet)
                if times[nodes[hop.target]] > slack:
                    return hop.source
        return None

    def _too_far(self, masks: Booleans) -> bool:
        travel = self.travel
        return travel is not None and travel.least(self._nodes_of_rows(masks)) > travel.most

    def _nodes_of_rows(self, masks: Booleans) -> Booleans:
        return np.array([self._nodes(mask) for mask in masks])

    def _children(self, masks: Booleans, row: int, device: int) -> Iterator[Booleans]:
        """The same with the row in each rack that it may be in, or on each node of its rack: first
        where it is now."""
        places, run = self.racks, self.rack_run
        if len(np.unique(places[masks[row]])) == 1:
            places, run = self.fleet.node, self.node_run
        along = run == run[row]
        # Where there are too few devices for all that must go along, nobody need look.
        rooms = np.bincount(places[masks[along].any(axis=0)], minlength=int(places.max()) + 1)
        choices = [c for c in np.unique(places[masks[row]]) if rooms[c] >= along.sum()]
        for choice in sorted(choices, key=lambda choice: choice != places[device]):
            yield masks & (~along[:, None] | (places == choice))

    def _propagate(self, masks: Booleans, row: int) -> bool:
        """Take away what no hop can reach from the devices left to a row; False: a row has none."""
        changed = {row}
        for index, hop in enumerate(self.rows.hops):
            if hop.source in changed and self._narrow(
                masks, hop.target, self._reached(index, hop, masks)
            ):
                changed.add(hop.target)
                if not masks[hop.target].any():
                    return False
        for index in reversed(range(len(self.rows.hops))):
            hop = self.rows.hops[index]
            if hop.target in changed and self._narrow(
                masks, hop.source, self._reaching(index, hop, masks)
            ):
                changed.add(hop.source)
                if not masks[hop.source].any():
                    return False
        return True

    def _narrow(self, masks: Booleans, row: int, allowed: Booleans) -> bool:
        before = np.count_nonzero(masks[row])
        masks[row] &= allowed
        return bool(np.count_nonzero(masks[row]) < before)

    def _reached(self, index: int, hop: Hop, masks: Booleans) -> Booleans:
        """Devices that some device of the source's mask can send to in time, [D]."""
        fleet, slack = self.fleet, self.slack[index]
        nodes = self._nodes(masks[hop.source])
        numbers = np.flatnonzero(nodes)
        if len(numbers) == 1:
            exactly: Booleans = slack >= hop.seen_from(int(numbers[0]), fleet)[fleet.node]
            return exactly
        allowed: Booleans = slack >= hop.between
        allowed |= (slack >= hop.rack) & self._in_racks(nodes)[self.racks]
        allowed |= (slack >= hop.within) & nodes[fleet.node]
        for first, second, time in hop.pairs:
            if nodes[first]:
                allowed |= (slack >= time) & (fleet.node == second)
        return allowed

    def _reaching(self, index: int, hop: Hop, masks: Booleans) -> Booleans:
        """Devices that can send to some device of the target's mask in time, [D]."""
        fleet, slack, mask = self.fleet, self.slack[index], masks[hop.target]
        if (slack[mask] >= hop.between).any():
            return np.ones_like(mask)
        nodes = self._nodes(mask & (slack >= hop.within))
        nodes |= self._in_racks(self._nodes(mask & (slack >= hop.rack)))[fleet.rack]
        for first, second, time in hop.pairs:
            if (slack[mask & (fleet.node == second)] >= time).any():
                nodes[first] = True
        return nodes[fleet.node]

    def _nodes(self, mask: Booleans) -> Booleans:
        nodes = np.zeros(len(self.fleet.hosts), np.bool_)
        nodes[self.fleet.node[mask]] = True
        return nodes

    def _in_racks(self, nodes: Booleans) -> Booleans:
        racks = np.zeros(int(self.fleet.rack.max()) + 1, np.bool_)
        racks[self.fleet.rack[nodes]] = True
        return racks


def _possible_times(rows: Rows) -> npt.NDArray[np.int64]:
    """All that a row can take, growing, from the least that the slowest row can take."""
    waits: list[set[int]] = [set() for _ in rows.stages]
    for hop in rows.hops:
        waits[hop.target] |= {hop.within, hop.rack, hop.between, *(time for *_, time in hop.pairs)}
    seen: set[int] = set()
    lowest = 0
    for compute, wait in zip(rows.compute, waits, strict=True):
        kinds = np.unique(compute[compute < NEVER])
        times = [int(c) + w for c in kinds for w in wait or {0}]
        lowest = max(lowest, min(times, default=0))
        seen.update(times)
    return np.array(sorted(time for time in seen if lowest <= time < NEVER), np.int64)
