"""The nodes of a Ray cluster, as a topology for plans."""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ray

from fjx.errors import UserError
from fjx.sharding.plan.plan import Device
from fjx.sharding.topology.topology import UNKNOWN_MEMORY, DeviceState, Topology

_REACH_SECONDS = 1.0
"""For a node to accept a connection."""
_KIND = "accelerator_type:"
"""Begins the resource by which Ray names a node's GPUs."""
_CONNECT_HINT = "run `ray start --head` on one machine and `ray start --address=...` on the others"


@dataclass(frozen=True)
class Node:
    """A machine on which workers can run."""

    id: str
    """Ray's."""
    host: str
    """Its name in plans: Ray's, made unique."""
    address: str
    """Its network address."""
    gpus: int
    memory: int
    """Bytes that Ray may hand out."""
    cpu_devices: int = 1
    """Devices of a node without GPUs."""
    kind: str = "cpu"
    """What its devices are; nodes of one kind should be equally fast."""

    @property
    def devices(self) -> tuple[Device, ...]:
        """The node's devices, as plans name them."""
        platform, count = ("gpu", self.gpus) if self.gpus else ("cpu", self.cpu_devices)
        return tuple(Device(self.host, platform, index) for index in range(count))


def connect(address: str) -> None:
    """Connect this process to a Ray cluster, unless it is connected.

    Args:
        address: ``host:port`` of its head, or ``auto``: the one that runs on this machine.

    Raises:
        UserError: there is none.
    """
    if ray.is_initialized():
        return
    try:
        ray.init(address=address, namespace="fjx", log_to_driver=False, logging_level="warning")
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise UserError(f"no Ray cluster at {address!r}: {error}; {_CONNECT_HINT}") from None


def live_nodes(cpu_devices: int = 1) -> tuple[Node, ...]:
    """The nodes that are alive and have a processor to give, in the order of their names."""
    alive = [
        each
        for each in ray.nodes()
        if each["Alive"] and each["Resources"].get("CPU", 0) >= 1 and _is_reachable(each)
    ]
    names = Counter(each["NodeName"] for each in alive)
    return tuple(
        sorted((_node(each, names, cpu_devices) for each in alive), key=lambda node: node.host)
    )


def topology_of(nodes: Sequence[Node]) -> Topology:
    """The devices of nodes, those with GPUs first.

    A CPU device has its node's memory. What a GPU has is not known before a process runs there: it
    counts as enough, and loading says so if it is not.

    Raises:
        UserError: there is no node.
    """
    if not nodes:
        raise UserError(f"the Ray cluster has no node with a free processor; {_CONNECT_HINT}")
    ordered = sorted(nodes, key=lambda node: -node.gpus)
    return Topology(
        tuple(
            DeviceState(device, UNKNOWN_MEMORY if node.gpus else node.memory // len(node.devices))
            for node in ordered
            for device in node.devices
        )
    )


def _is_reachable(entry: dict[str, Any]) -> bool:
    """Whether the node's Ray accepts a connection: Ray counts a node that is cut off as alive for
    half a minute."""
    address = entry["NodeManagerAddress"], entry["NodeManagerPort"]
    try:
        socket.create_connection(address, _REACH_SECONDS).close()
    except OSError:
        return False
    return True


def _node(entry: dict[str, Any], names: Counter[str], cpu_devices: int) -> Node:
    name, resources = entry["NodeName"].replace("/", "-"), entry["Resources"]
    if names[entry["NodeName"]] > 1:
        name = f"{name}-{entry['NodeID'][:6]}"
    kinds = [each for each in resources if each.startswith(_KIND)]
    return Node(
        id=entry["NodeID"],
        host=name,
        address=entry["NodeManagerAddress"],
        gpus=int(resources.get("GPU", 0)),
        memory=int(resources.get("memory", 0)),
        cpu_devices=cpu_devices,
        kind=min(kinds, default="gpu" if resources.get("GPU") else "cpu"),
    )
