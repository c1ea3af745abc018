"""The devices of a simulated cluster, who holds them, and how much of each other tenants leave."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from fjx.errors import MemoryFitError, UserError
from fjx.sharding.partition.needs import PlanNeed
from fjx.sharding.placement.placement import Placer, place
from fjx.sharding.plan.plan import Device, Mesh, Plan, Stage
from fjx.sharding.topology.fleet import Fleet, Integers
from fjx.sharding.topology.topology import DeviceState, Link, Topology
from fjx.sim.hardware import NETWORK, WITHIN_HOST

_POD_COLUMNS = ("num_gpu", "gpu_milli", "creation_time", "deletion_time")


@dataclass(frozen=True)
class Tenancy:
    """A share of one device that another tenant takes for a while."""

    device: int
    share: float
    """Of its memory, 0 to 1."""
    begin: float
    end: float


class SimCluster:
    """Hands out devices, and counts how long they are held."""

    def __init__(
        self,
        hosts: Sequence[int],
        memory_bytes: int,
        tenancies: Iterable[Tenancy] = (),
        placer: Placer = place,
        *,
        within: Link = WITHIN_HOST,
        between: Link = NETWORK,
    ) -> None:
        """
        Args:
            hosts: devices of each host.
            memory_bytes: of each device, as far as a model may use it.
            tenancies: of others. Who comes while a model holds the device goes elsewhere.
            placer: chooses devices; by default as the product does.
            within: link between devices of a host.
            between: link between hosts.
        """
        of_host = [h for h, count in enumerate(hosts) for _ in range(count)]
        self.devices = tuple(Device(f"host-{h}", "gpu", i) for i, h in enumerate(of_host))
        states = tuple(DeviceState(device, memory_bytes) for device in self.devices)
        self.topology = Topology(states, within=within, between=between)
        self.memory_bytes = memory_bytes
        self._fleet = Fleet.of(self.topology)
        self._placer = placer
        self._tenancies = tuple(tenancies)
        self._held: dict[int, float] = {}
        self.held_seconds = 0.0
        """Device-seconds, as far as they are counted."""
        self.max_held = 0.0
        self._counted_until = 0.0

    @property
    def held(self) -> float:
        """Devices that are held now; a share of a device counts as that share."""
        return sum(self._held.values())

    def fleet(self, now: float) -> Fleet:
        """What is free: nothing of a device that is held, and of the others what tenants leave."""
        left, tenants = np.ones(len(self.devices)), np.zeros(len(self.devices), np.int64)
        for each in self._tenancies:
            if each.begin <= now < each.end:
                left[each.device] -= each.share
                tenants[each.device] += 1
        left[list(self._held)] = 0.0
        free: Integers = (self.memory_bytes * np.maximum(left, 0.0)).astype(np.int64)
        return replace(self._fleet, free_bytes=free, tenants=tenants)

    def take(self, need: PlanNeed, now: float, share: float = 1.0) -> list[int] | None:
        """Devices by index, stage by stage; None: there is no room now.

        Args:
            need: what the stages need.
            now: the time.
            share: of each device that counts as held.
        """
        try:
            placement = self._placer(self.fleet(now), [need])
        except MemoryFitError:
            return None
        chosen = [device for stage in placement.indices for device in stage]
        self._count(now)
        self._held |= dict.fromkeys(chosen, share)
        self.max_held = max(self.max_held, self.held)
        return chosen

    def placed(self, plan: Plan, devices: Mapping[Device, int]) -> Plan:
        """A plan on the cluster's devices.

        Args:
            plan: its devices stand for others.
            devices: for which, by index.
        """
        stages = []
        for stage in plan.stages:
            keys = tuple(self.devices[devices[device]] for device in stage.mesh.devices)
            stages.append(Stage(stage.granules, Mesh(keys, stage.mesh.axes)))
        return Plan(tuple(stages), plan.microbatches, plan.shared_devices)

    def give_back(self, indices: Iterable[int], now: float) -> None:
        """Devices are held no longer."""
        self._count(now)
        for index in indices:
            del self._held[index]

    def end(self, now: float) -> None:
        """Count until the end of the run."""
        self._count(now)

    def _count(self, now: float) -> None:
        self.held_seconds += self.held * (now - self._counted_until)
        self._counted_until = now


def flexpipe_hosts() -> list[int]:
    """82 devices on 42 hosts (arXiv:2510.11938, section 9): 40 with two, two with one. The paper
    does not say how they are spread."""
    return [2] * 40 + [1] * 2


def tenancies_from_pods(
    path: Path, devices: int, seconds: float, occupancy: float, seed: int
) -> list[Tenancy]:
    """Other tenants of a cluster, from the pods of a real one (Alibaba's openb, 2023).

    Each pod that asks for devices takes its share of as many devices, drawn at random, beginning at
    a random time, for as long as it ran, scaled so that the mean lifetime is a fifth of the run;
    pods are added until the mean share taken is ``occupancy``.

    Args:
        path: The pod list (CSV).
        devices: Of the cluster.
        seconds: Of the run.
        occupancy: Mean share of all devices' memory, 0 to 1.
        seed: Fixes the draw.

    Raises:
        UserError: the file cannot be read or lacks a column.
    """
    pods = _read_pods(path)
    random = np.random.default_rng(seed)
    lifetime = np.array([end - begin for _, _, begin, end in pods])
    scale = seconds / 5 / lifetime.mean()
    tenancies: list[Tenancy] = []
    taken, wanted = 0.0, occupancy * devices * seconds
    while taken < wanted:
        i = int(random.integers(len(pods)))
        count, share, *_ = pods[i]
        length = min(max(lifetime[i] * scale, 1.0), 2 * seconds)
        begin = float(random.uniform(-length, seconds))
        for device in random.choice(devices, min(count, devices), replace=False).tolist():
            tenancies.append(Tenancy(device, share, begin, begin + length))
            taken += share * max(0.0, min(begin + length, seconds) - max(begin, 0.0))
    return tenancies


def _read_pods(path: Path) -> list[tuple[int, float, float, float]]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except OSError as error:
        raise UserError(f"cannot read the pods {path}: {error.strerror}") from None
    if not rows or any(name not in rows[0] for name in _POD_COLUMNS):
        raise UserError(
            f"{path} is no list of pods; expected the columns {', '.join(_POD_COLUMNS)}"
        )
    return [
        (
            int(row["num_gpu"]),
            int(row["gpu_milli"]) / 1000,
            float(row["creation_time"]),
            float(row["deletion_time"] or row["creation_time"]),
        )
        for row in rows
        if int(row["num_gpu"]) > 0
    ]
