"""The machine as values: its devices, their free memory, the links between them, and the parameters
that its nodes hold in host memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from fjx.errors import MeshError
from fjx.sharding.plan.plan import Device, Mesh
from fjx.wording import listed

UNKNOWN_MEMORY = 1 << 62
"""Free bytes of a device that does not say: never the reason to refuse a plan."""


_MAX_NAMED = 8
"""Devices that a message names."""


@dataclass(frozen=True)
class Link:
    """A way for bytes between two meshes."""

    bytes_per_second: float = float("inf")
    latency_seconds: float = 0.0

    def transfer_seconds(self, size: int) -> float:
        """Seconds that it takes to send ``size`` bytes."""
        return self.latency_seconds + size / self.bytes_per_second


INSTANT = Link()
"""No cost: between a mesh and itself, or where nothing is known."""


@dataclass(frozen=True)
class DeviceState:
    """A device with what it has to give."""

    device: Device
    free_bytes: int = UNKNOWN_MEMORY
    """Memory for parameters, KV pages and activations."""
    speed: float = 1.0
    """Relative to the device of the profile: 2 halves the seconds."""
    tenants: int = 0
    """Stages of other models that it serves already."""


@dataclass(frozen=True, kw_only=True)
class HostCopy:
    """Parameters of a model that a host holds in its own memory: from there a stage loads fast."""

    host: str
    model: str
    granules: frozenset[int] | None = None
    """Which granules; embed counts as part of the first one, head of the last. None: the whole
    model."""
    age_seconds: float = 0.0
    """How long ago the host served the model last."""


@dataclass(frozen=True)
class Topology:
    """The devices of a machine or cluster, in order, and the links between hosts."""

    devices: tuple[DeviceState, ...]
    within: Link = INSTANT
    """Between devices of one host."""
    between: Link = INSTANT
    """Between hosts that neither `pairs` names nor a rack joins."""
    pairs: tuple[tuple[frozenset[str], Link], ...] = ()
    """Links of particular pairs of hosts."""
    within_rack: Link | None = None
    """Between hosts of one rack; None: as between any two."""
    racks: tuple[tuple[str, str], ...] = ()
    """Host and its rack; a host that is not here shares no rack with another."""
    copies: tuple[HostCopy, ...] = ()
    """What hosts hold in their own memory."""

    @property
    def platform(self) -> str:
        """The platform of the first device: the one that is meant where none is named."""
        return self.devices[0].device.platform

    def state(self, device: Device) -> DeviceState | None:
        """What is known of a device; None: it is not here."""
        return next((state for state in self.devices if state.device == device), None)

    def select(self, platform: str | None, host: str | None) -> tuple[DeviceState, ...]:
        """The devices of a platform (None: of the first device's) and host (None: any), in
        order."""
        platform = platform or self.platform
        return tuple(
            state
            for state in self.devices
            if state.device.platform == platform and host in (None, state.device.host)
        )

    def known_by(self, cluster: Topology) -> Topology:
        """These devices, with what a cluster file says of them and of the links between.

        Of a host that the file names only the devices that it lists are left; of other hosts all,
        as they are.

        Raises:
            MeshError: none is left.
        """
        said = {state.device: state for state in cluster.devices}
        named = {device.host for device in said}
        states = [
            state if state.device.host not in named else _known(state, said.get(state.device))
            for state in self.devices
        ]
        kept = tuple(state for state in states if state is not None)
        if not kept:
            raise MeshError(
                f"no device of the cluster is in the cluster file: there are "
                f"{_named(self)}, and the file lists {_named(cluster)}; a node has the name and "
                "the platform that the cluster gives it"
            )
        return replace(cluster, devices=kept)

    def link(self, source: Mesh, target: Mesh) -> Link:
        """The slowest link between a device of one mesh and a device of another; instant where
        the devices are the same."""
        if set(source.devices) == set(target.devices):
            return INSTANT
        hosts = {(a.host, b.host) for a in source.devices for b in target.devices}
        links = [self._between(first, second) for first, second in sorted(hosts)]
        return Link(
            min(link.bytes_per_second for link in links),
            max(link.latency_seconds for link in links),
        )

    def _between(self, first: str, second: str) -> Link:
        if first == second:
            return self.within
        racks, link = dict(self.racks), self.between
        if self.within_rack is not None and first in racks and racks[first] == racks.get(second):
            link = self.within_rack
        return dict(self.pairs).get(frozenset({first, second}), link)


def _named(topology: Topology) -> str:
    devices = [str(state.device) for state in topology.devices]
    return listed(devices if len(devices) <= _MAX_NAMED else [*devices[:_MAX_NAMED], "others"])


def _known(state: DeviceState, said: DeviceState | None) -> DeviceState | None:
    if said is None:
        return None
    return replace(said, free_bytes=min(state.free_bytes, said.free_bytes))


class LiveDevice(Protocol):
    """What is read of a `jax.Device`."""

    @property
    def id(self) -> int:
        """Unique on the platform."""

    @property
    def platform(self) -> str:
        """cpu, gpu or tpu."""

    @property
    def process_index(self) -> int:
        """Which process owns the device."""

    def memory_stats(self) -> Mapping[str, Any] | None:
        """``bytes_limit`` and ``bytes_in_use``, where the platform keeps them."""


def key_of(device: LiveDevice, hosts: Sequence[str] = ()) -> Device:
    """The key of a live device.

    Args:
        device: A `jax.Device`.
        hosts: Name of each process's host; by default ``localhost``, then ``process-1`` and so on.
    """
    process = device.process_index
    if process < len(hosts):
        host = hosts[process]
    else:
        host = f"process-{process}" if process else "localhost"
    return Device(host, device.platform, device.id)


def live_topology(
    devices: Sequence[LiveDevice],
    *,
    hosts: Sequence[str] = (),
    within: Link = INSTANT,
    between: Link = INSTANT,
    within_rack: Link | None = None,
    racks: Mapping[str, str] | None = None,
    copies: Sequence[HostCopy] = (),
    process: int = 0,
    default_free_bytes: int = UNKNOWN_MEMORY,
) -> Topology:
    """Read the machine.

    Args:
        devices: `jax.devices()`.
        hosts: As in `key_of`.
        within: Link between devices of one host.
        between: Link between hosts.
        within_rack: Link between hosts of one rack; by default that of any two.
        racks: Host to rack: JAX does not know it.
        copies: What hosts hold in their own memory.
        process: `jax.process_index()`; only the process's own devices can be asked.
        default_free_bytes: Free memory of a device without memory statistics: a CPU's, or another
            process's.

    Raises:
        ValueError: there are no devices.
    """
    if not devices:
        raise ValueError("a machine needs at least one device; jax.devices() gave none")
    states = []
    for device in devices:
        stats = device.memory_stats() if device.process_index == process else None
        free = default_free_bytes
        if stats and "bytes_limit" in stats:
            free = max(0, stats["bytes_limit"] - stats.get("bytes_in_use", 0))
        states.append(DeviceState(key_of(device, hosts), free))
    return Topology(
        tuple(states),
        within,
        between,
        within_rack=within_rack,
        racks=tuple((racks or {}).items()),
        copies=tuple(copies),
    )
