"""A topology as arrays, for decisions over thousands of devices, and what is free at the moment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from fjx.errors import MeshError
from fjx.sharding.plan.plan import Device
from fjx.sharding.topology.topology import UNKNOWN_MEMORY, Link, Topology

Booleans = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Fleet:
    """D devices on N nodes in R racks. Arrays are not to be written to; `occupied` makes new ones.

    Raises:
        MeshError: there are no devices.
    """

    topology: Topology
    """The links, and the copies in host memory. What is free is in the arrays."""
    devices: tuple[Device, ...]
    hosts: tuple[str, ...]
    """Names of the nodes, [N]."""
    free_bytes: Integers
    """[D]"""
    speed: Floats
    """[D]"""
    tenants: Integers
    """Stages on each device, [D]."""
    node: Integers
    """Node of each device, [D]; the devices of a node lie side by side."""
    rack: Integers
    """Rack of each node, [N]."""
    pairs: tuple[tuple[int, int, Link], ...]
    """Nodes that have a link of their own, both ways."""

    @classmethod
    def of(cls, topology: Topology, *, platform: str | None = None) -> Fleet:
        """The devices of a platform (None: of the topology's first device).

        Raises:
            MeshError: there are none.
        """
        states = topology.select(platform, None)
        if not states:
            raise MeshError(
                f"there is no device of platform {platform}; expected {topology.platform}"
            )
        number = {host: i for i, host in enumerate(dict.fromkeys(s.device.host for s in states))}
        states = tuple(sorted(states, key=lambda state: number[state.device.host]))
        racks = dict(topology.racks)
        # A host without a rack is one of its own; "" is no name of a rack.
        places = [("", racks[h]) if h in racks else (h, "") for h in number]
        rack_number = {place: i for i, place in enumerate(dict.fromkeys(places))}
        return cls(
            topology=topology,
            devices=tuple(state.device for state in states),
            hosts=tuple(number),
            free_bytes=np.array([state.free_bytes for state in states], np.int64),
            speed=np.array([state.speed for state in states], np.float64),
            tenants=np.array([state.tenants for state in states], np.int64),
            node=np.array([number[state.device.host] for state in states], np.int64),
            rack=np.array([rack_number[place] for place in places], np.int64),
            pairs=tuple(
                (number[first], number[second], link)
                for hosts, link in topology.pairs
                for first, second in ((min(hosts), max(hosts)), (max(hosts), min(hosts)))
                if first != second and first in number and second in number
            ),
        )

    @property
    def rack_link(self) -> Link:
        """Between nodes of one rack."""
        within_rack = self.topology.within_rack
        return self.topology.between if within_rack is None else within_rack

    def occupied(self, devices: Sequence[int], sizes: Sequence[int]) -> Fleet:
        """The fleet after a stage took ``sizes`` bytes of ``devices``, given by index."""
        free, tenants = self.free_bytes.copy(), self.tenants.copy()
        for device, size in zip(devices, sizes, strict=True):
            tenants[device] += 1
            if free[device] < UNKNOWN_MEMORY:
                free[device] -= size
        return replace(self, free_bytes=free, tenants=tenants)

    def only(self, kept: Booleans) -> Fleet:
        """The fleet without all other devices, [D], and without the nodes that then have none."""
        nodes = np.unique(self.node[kept])
        number = np.full(len(self.hosts), -1)
        number[nodes] = np.arange(len(nodes))
        return replace(
            self,
            devices=tuple(self.devices[device] for device in np.flatnonzero(kept)),
            hosts=tuple(self.hosts[node] for node in nodes),
            free_bytes=self.free_bytes[kept],
            speed=self.speed[kept],
            tenants=self.tenants[kept],
            node=number[self.node[kept]],
            rack=np.unique(self.rack[nodes], return_inverse=True)[1],
            pairs=tuple(
                (int(number[first]), int(number[second]), link)
                for first, second, link in self.pairs
                if number[first] >= 0 and number[second] >= 0
            ),
        )

    def divided(self, parts: int) -> Fleet:
        """The fleet with each device cut into ``parts`` that share its memory and speed evenly.

        Device ``d`` becomes ``parts * d`` to ``parts * d + parts - 1``, all with its key.
        """
        if parts == 1:
            return self
        free = np.where(self.free_bytes < UNKNOWN_MEMORY, self.free_bytes // parts, self.free_bytes)
        return replace(
            self,
            devices=tuple(device for device in self.devices for _ in range(parts)),
            free_bytes=free.repeat(parts),
            speed=self.speed.repeat(parts) / parts,
            tenants=self.tenants.repeat(parts),
            node=self.node.repeat(parts),
        )

    def held(self, model: str, granules: int) -> Booleans:
        """Which granules of a model each node holds in host memory, [N, granules]."""
        held = np.zeros((len(self.hosts), granules), np.bool_)
        number = {host: i for i, host in enumerate(self.hosts)}
        for copy in self.topology.copies:
            if copy.model == model and copy.host in number:
                row = held[number[copy.host]]
                if copy.granules is None:
                    row[:] = True
                else:
                    row[[granule for granule in copy.granules if granule < granules]] = True
        return held
