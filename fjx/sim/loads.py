"""How long it takes until parameters and KV pages are where a plan wants them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from fjx.sharding.costs.difference import Difference
from fjx.sharding.plan.plan import Device
from fjx.sharding.topology.topology import Topology
from fjx.sim.hardware import Storage
from fjx.sim.sim_cluster import SimCluster

Tier = Literal["host", "disk", "remote"]
"""Where parameters are read from: the host's memory, its disks, or networked storage."""


def load_seconds(
    needs: Sequence[int], chosen: Sequence[int], cluster: SimCluster, tier: Tier, storage: Storage
) -> float:
    """Start a replica: every device reads its parameters at once; disks and network are shared by
    the devices of a host.

    Args:
        needs: Parameter bytes of each device.
        chosen: The devices.
        cluster: They are of.
        tier: What is read.
        storage: How fast that is.
    """
    by_host: Counter[str] = Counter()
    for need, index in zip(needs, chosen, strict=True):
        by_host[cluster.devices[index].host] += need
    if tier == "host":
        reading = max(needs) / storage.host_rate
    else:
        rate = storage.disk_rate if tier == "disk" else storage.remote_rate
        reading = max(max(by_host.values()) / rate, max(needs) / storage.host_rate)
    return storage.start_seconds + reading


@dataclass(frozen=True)
class CopySeconds:
    """Of a change of plan."""

    parameters: float
    kv: float


def copy_seconds(
    moved: Difference,
    devices: Mapping[Device, int],
    cluster: SimCluster,
    storage: Storage,
    *,
    from_host_memory: bool,
) -> CopySeconds:
    """Copy what a change of plan moves: all at once, as fast as the busiest link allows.

    Args:
        moved: The engine's own account of the change.
        devices: Which of the cluster's devices those of the plans are.
        cluster: They are of.
        storage: Rates of host memory.
        from_host_memory: Whether each host has the parameters in its memory; otherwise they come
            from the devices that hold them.
    """
    parameters, kv = _Traffic(), _Traffic()
    loading: Counter[int] = Counter()
    for move in moved.moves:
        sources = [devices[device] for device in move.source.devices]
        for each in move.received:
            target = devices[each.device]
            kv.add(sources, target, each.kv_bytes, cluster)
            if from_host_memory:
                loading[target] += each.parameter_bytes
            else:
                parameters.add(sources, target, each.parameter_bytes, cluster)
    from_memory = max(loading.values(), default=0) / storage.host_rate
    return CopySeconds(
        max(from_memory, parameters.seconds(cluster.topology)), kv.seconds(cluster.topology)
    )


class _Traffic:
    """Bytes over each link."""

    def __init__(self) -> None:
        self._hosts: Counter[tuple[str, str]] = Counter()
        self._devices: Counter[tuple[int, str]] = Counter()

    def add(self, sources: Sequence[int], target: int, size: int, cluster: SimCluster) -> None:
        """So many bytes go to a device, in equal parts from others."""
        to = cluster.devices[target].host
        self._devices[target, "in"] += size
        for source in sources:
            part, host = size // len(sources), cluster.devices[source].host
            self._devices[source, "out"] += part
            if host != to:
                self._hosts[host, "out"] += part
                self._hosts[to, "in"] += part

    def seconds(self, topology: Topology) -> float:
        """Of the busiest link: of a host to others, or of a device within its host."""
        between, within = (link.bytes_per_second for link in (topology.between, topology.within))
        busiest_host = max(self._hosts.values(), default=0)
        return max(busiest_host / between, max(self._devices.values(), default=0) / within)
