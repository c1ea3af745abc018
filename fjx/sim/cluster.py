"""The devices of a simulated cluster, who holds them, and how much of each other tenants leave."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fjx.errors import UserError

_POD_COLUMNS = ("num_gpu", "gpu_milli", "creation_time", "deletion_time")


@dataclass(frozen=True)
class Slot:
    """One device of the cluster."""

    host: str
    index: int
    """Of all devices."""


@dataclass(frozen=True)
class Tenancy:
    """A share of one device that another tenant takes for a while."""

    device: int
    share: float
    """Of its memory, 0 to 1."""
    begin: float
    end: float


PlaceStages = Callable[[Sequence[int], Sequence[tuple[Slot, int]]], list[int] | None]
"""Devices for stages: from the bytes that each stage needs, and the devices that could be taken
with their free bytes, to the index of a device for each stage; None: there is no room."""


def first_fit(needs: Sequence[int], free: Sequence[tuple[Slot, int]]) -> list[int] | None:
    """The first device with room for each stage, in order."""
    left = list(free)
    chosen = []
    for need in needs:
        found = next((i for i, (_, room) in enumerate(left) if room >= need), None)
        if found is None:
            return None
        chosen.append(left.pop(found)[0].index)
    return chosen


class Cluster:
    """Hands out devices, and counts how long they are held."""

    def __init__(
        self,
        hosts: Sequence[int],
        memory_bytes: int,
        tenancies: Iterable[Tenancy] = (),
        place: PlaceStages = first_fit,
    ) -> None:
        """
        Args:
            hosts: devices of each host.
            memory_bytes: of each device, as far as a model may use it.
            tenancies: of others.
            place: chooses devices.
        """
        self.slots = tuple(
            Slot(f"host-{h}", i)
            for i, h in enumerate(h for h, count in enumerate(hosts) for _ in range(count))
        )
        self.memory_bytes = memory_bytes
        self._place = place
        self._tenancies: dict[int, list[Tenancy]] = {}
        for each in tenancies:
            self._tenancies.setdefault(each.device, []).append(each)
        self._held: dict[int, float] = {}
        self.held_seconds = 0.0
        """Device-seconds, as far as they are counted."""
        self.most_held = 0.0
        self._counted_until = 0.0

    @property
    def held(self) -> float:
        """Devices that are held now; a share of a device counts as that share."""
        return sum(self._held.values())

    def free_bytes(self, index: int, now: float) -> int:
        """What other tenants leave of a device."""
        taken = sum(t.share for t in self._tenancies.get(index, ()) if t.begin <= now < t.end)
        return int(self.memory_bytes * max(0.0, 1 - taken))

    def take(self, needs: Sequence[int], now: float, share: float = 1.0) -> list[int] | None:
        """A device for each stage; None: there is no room now.

        Args:
            needs: bytes of each stage.
            now: the time.
            share: of each device that counts as held.
        """
        free = [
            (slot, self.free_bytes(slot.index, now))
            for slot in self.slots
            if slot.index not in self._held
        ]
        chosen = self._place(needs, free)
        if chosen is not None:
            self._count(now)
            self._held |= dict.fromkeys(chosen, share)
            self.most_held = max(self.most_held, self.held)
        return chosen

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
