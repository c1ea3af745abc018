"""What is to be placed, as numbers: the devices that a plan asks for, and the ways between them.

A *row* is one device to be found: a stage, or a shard of one. Times are whole picoseconds, so that
ties are ties.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from fjx.sharding.partition.needs import PlanNeed
from fjx.sharding.topology.fleet import Booleans, Fleet, Integers
from fjx.sharding.topology.topology import Link

NEVER = 1 << 60
"""Picoseconds of what cannot be: twice it is still an int64."""


@dataclass(frozen=True)
class Hop:
    """A row's input comes from an earlier row. Its time, in picoseconds, depends on where the two
    are."""

    source: int
    target: int
    within: int
    """Picoseconds where both are on one node."""
    rack: int
    """Picoseconds where they are on two nodes of one rack."""
    between: int
    """Picoseconds where they are in two racks."""
    pairs: tuple[tuple[int, int, int], ...] = ()
    """Pairs of nodes with a time of their own: from node, to node, picoseconds."""

    def seen_from(self, node: int, fleet: Fleet) -> Integers:
        """Picoseconds to each node, [N]."""
        same = fleet.rack == fleet.rack[node]
        times = np.where(same, self.rack, self.between)
        times[node] = self.within
        for first, second, time in self.pairs:
            if first == node:
                times[second] = time
        return times

    @cached_property
    def slowest(self) -> int:
        """Picoseconds over the worst link."""
        return max(self.within, self.rack, self.between, *(time for *_, time in self.pairs))

    @cached_property
    def off_rack(self) -> int:
        """Picoseconds over the best link that leaves a rack or belongs to a pair."""
        return min(self.between, *(time for *_, time in self.pairs), NEVER)

    @cached_property
    def off_node(self) -> int:
        """Picoseconds over the best link that leaves a node."""
        return min(self.rack, self.off_rack)

    @cached_property
    def fastest(self) -> int:
        """Picoseconds over the best link."""
        return min(self.within, self.off_node)


@dataclass(frozen=True, eq=False)
class Rows:
    """What is to be placed."""

    fleet: Fleet
    stages: tuple[int, ...]
    """Stage of each row."""
    compute: Integers
    """Picoseconds of each row on each device, [rows, D]; never, where it does not fit."""
    hops: tuple[Hop, ...]
    """All hops, by their target."""

    @classmethod
    def of(cls, fleet: Fleet, need: PlanNeed) -> Rows:
        """The rows of a plan: one for each device of each stage."""
        stages = [i for i, stage in enumerate(need.stages) for _ in range(stage.tensor)]
        hops: list[Hop] = []
        first_rows = [stages.index(i) for i in range(len(need.stages))]
        for row, stage in enumerate(stages):
            if row > first_rows[stage]:
                hops.append(Hop(row - 1, row, 0, NEVER, NEVER))
            if stage:
                hops.append(_hop(fleet, need, stage - 1, first_rows[stage - 1], row))
        computes = []
        for each in need.stages:
            seconds = np.rint(each.seconds * 1e12 / fleet.speed).astype(np.int64)
            computes.append(np.where(fleet.free_bytes >= each.needed_bytes, seconds, NEVER))
        return cls(fleet, tuple(stages), np.array(computes)[stages], tuple(hops))

    def only(self, kept: Booleans) -> Rows:
        """The same without all other devices, [D]."""
        fleet, hops = self.fleet.only(kept), self.hops
        if self.fleet.pairs:
            number = {host: i for i, host in enumerate(fleet.hosts)}
            names = self.fleet.hosts
            hops = tuple(
                replace(
                    hop,
                    pairs=tuple(
                        (number[names[first]], number[names[second]], time)
                        for first, second, time in hop.pairs
                        if names[first] in number and names[second] in number
                    ),
                )
                for hop in hops
            )
        return Rows(fleet, self.stages, self.compute[:, kept], hops)

    def row_times(self, devices: Integers) -> Integers:
        """Picoseconds of each row on these devices, with its input."""
        times = self.compute[np.arange(len(devices)), devices]
        nodes = self.fleet.node[devices]
        waits = np.zeros_like(times)
        for hop in self.hops:
            wait = hop.seen_from(nodes[hop.source], self.fleet)[nodes[hop.target]]
            waits[hop.target] = max(waits[hop.target], wait)
        sums: Integers = np.minimum(times + waits, NEVER)
        return sums

    @cached_property
    def ways(self) -> tuple[Hop, ...]:
        """The hops from each stage to the next."""
        return tuple(
            hop
            for hop in self.hops
            if self.stages[hop.source] != self.stages[hop.target]
            and self.stages[hop.target] != self.stages[hop.target - 1]
        )

    def travel(self, devices: Integers) -> int:
        """Picoseconds that a microbatch spends between stages on these devices."""
        nodes = self.fleet.node[devices]
        total = sum(
            int(way.seen_from(nodes[way.source], self.fleet)[nodes[way.target]])
            for way in self.ways
        )
        return min(total, NEVER)


def _hop(fleet: Fleet, need: PlanNeed, sender: int, source: int, target: int) -> Hop:
    size = need.stages[sender].sent_bytes
    topology = fleet.topology
    return Hop(
        source,
        target,
        _picoseconds(topology.within, size),
        _picoseconds(fleet.rack_link, size),
        _picoseconds(topology.between, size),
        tuple((first, second, _picoseconds(link, size)) for first, second, link in fleet.pairs),
    )


def _picoseconds(link: Link, size: int) -> int:
    return min(round(link.transfer_seconds(size) * 1e12), NEVER)
