"""The openb fleet and its pods (Alibaba 2023), and how FGD's simulator puts the one on the other.

Weng et al., "Beware of Fragmentation: Scheduling GPU-Sharing Workloads with Fragmentation Gradient
Descent", ATC '23. Nodes have processors, memory and GPUs; a pod wants some of the first two and, of
GPUs, whole ones or a share of one. Pods arrive and never leave.
"""

from __future__ import annotations

import csv
import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

WHOLE = 1000
"""Thousandths of a GPU."""
_TYPICAL_SHARE = 0.95
"""Of the pods, in FGD's simulator: rarer kinds do not count as typical."""
_BEST_FIT_SCALE = np.array([128_000, 8 * WHOLE])
"""Of processors and GPUs in the best-fit policy of FGD's simulator."""


@dataclass(frozen=True)
class Pod:
    """What a pod wants."""

    cpu: int
    """Thousandths."""
    memory: int
    """MiB"""
    gpus: int
    share: int
    """Thousandths of each GPU."""


@dataclass(frozen=True, eq=False)
class Nodes:
    """What is free on each node; devices that a node does not have are -1."""

    names: list[str]
    models: list[str]
    """Kind of GPU."""
    cpu: npt.NDArray[np.int64]
    memory: npt.NDArray[np.int64]
    gpu: npt.NDArray[np.int64]
    """Thousandths of each GPU, [N, 8]."""

    def fits(self, pod: Pod) -> npt.NDArray[np.bool_]:
        """Whether each node has room for a pod, [N]."""
        enough = (self.cpu >= pod.cpu) & (self.memory >= pod.memory)
        return enough & ((self.gpu >= max(pod.share, 1)).sum(axis=1) >= pod.gpus)

    def take(self, pod: Pod, node: int, devices: list[int]) -> None:
        """Put a pod there."""
        self.cpu[node] -= pod.cpu
        self.memory[node] -= pod.memory
        self.gpu[node, devices] -= pod.share

    @property
    def capacity(self) -> int:
        """Thousandths of GPUs, used or not, if none are used yet."""
        return int(np.maximum(self.gpu, 0).sum())


def read_nodes(path: Path) -> Nodes:
    """The empty fleet."""
    with path.open() as file:
        rows = list(csv.DictReader(file))
    gpu = np.full((len(rows), 8), -1, np.int64)
    for row, values in zip(gpu, rows, strict=True):
        row[: int(values["gpu"])] = WHOLE
    return Nodes(
        [row["sn"] for row in rows],
        [row["model"] for row in rows],
        np.array([int(row["cpu_milli"]) for row in rows]),
        np.array([int(row["memory_mib"]) for row in rows]),
        gpu,
    )


def read_pods(path: Path) -> list[Pod]:
    """The pods in the order of the file."""
    with path.open() as file:
        return [
            Pod(*(int(row[key]) for key in ("cpu_milli", "memory_mib", "num_gpu", "gpu_milli")))
            for row in csv.DictReader(file)
        ]


def arrivals(pods: list[Pod], draws: random.Random) -> Iterator[Pod]:
    """The pods in any order, then more of them drawn at random, without end."""
    order = list(pods)
    draws.shuffle(order)
    yield from order
    while True:
        yield draws.choice(pods)


@dataclass(frozen=True)
class Typical:
    """The most frequent kinds of pods and how frequent they are."""

    pods: tuple[Pod, ...]
    shares: npt.NDArray[np.float64]

    @classmethod
    def of(cls, pods: list[Pod]) -> Typical:
        """The kinds that make up 95 % of the pods, told apart by processors and GPUs."""
        kinds = Counter(Pod(pod.cpu, 0, pod.gpus, pod.share) for pod in pods)
        chosen, seen = [], 0
        for kind, number in kinds.most_common():
            if seen >= _TYPICAL_SHARE * len(pods):
                break
            chosen.append((kind, number))
            seen += number
        return cls(
            tuple(kind for kind, _ in chosen), np.array([number / seen for _, number in chosen])
        )

    def lost(
        self, cpu: npt.NDArray[np.int64], gpu: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.float64]:
        """Thousandths of free GPU that a typical pod cannot use, in the mean, by node.

        For a pod that wants no GPU, or that a node has no room for, all of the node's free GPU is
        lost; otherwise that of the GPUs on which too little is free.
        """
        free = np.maximum(gpu, 0)
        total = free.sum(axis=-1)
        lost = np.zeros(total.shape)
        for pod, share in zip(self.pods, self.shares, strict=True):
            if not pod.gpus:
                lost += share * total
                continue
            usable = gpu >= pod.share
            runs = (cpu >= pod.cpu) & (usable.sum(axis=-1) >= pod.gpus)
            lost += share * np.where(runs, np.where(usable, 0, free).sum(axis=-1), total)
        return lost


Policy = Callable[[Nodes, Pod, npt.NDArray[np.int64]], tuple[int, list[int]]]
"""Chooses a node, of those with room, and its devices."""


def random_policy(draws: random.Random) -> Policy:
    """Any node with room, and of it any devices."""

    def choose(nodes: Nodes, pod: Pod, rooms: npt.NDArray[np.int64]) -> tuple[int, list[int]]:
        node = int(draws.choice(rooms))
        return node, draws.sample(_usable(nodes, pod, node), pod.gpus)

    return choose


def best_fit_policy(draws: random.Random) -> Policy:
    """The node with the least processors and GPUs left, in points of a hundred, any of equal ones;
    of its devices the fullest."""

    def choose(nodes: Nodes, pod: Pod, rooms: npt.NDArray[np.int64]) -> tuple[int, list[int]]:
        free = np.stack(
            [
                nodes.cpu[rooms] - pod.cpu,
                np.maximum(nodes.gpu[rooms], 0).sum(axis=1) - pod.gpus * pod.share,
            ]
        )
        points = ((1 - (free / _BEST_FIT_SCALE[:, None]).mean(axis=0)) * 100).astype(np.int64)
        node = int(draws.choice(rooms[points == points.max()]))
        return node, _fullest(nodes, pod, node)

    return choose


def fgd_policy(typical: Typical, draws: random.Random) -> Policy:
    """The node and device whose fragmentation grows least, any of equal ones."""

    known: dict[Pod, tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]] = {}
    seen: dict[Pod, int] = {}
    """For each kind of pod, how many of `changed` its figures know of."""
    changed: list[int] = []

    def choose(nodes: Nodes, pod: Pod, rooms: npt.NDArray[np.int64]) -> tuple[int, list[int]]:
        kind = Pod(pod.cpu, 0, pod.gpus, pod.share)
        if kind not in known:
            known[kind] = _growth(nodes, typical, kind, np.arange(len(nodes.names)))
        elif seen[kind] < len(changed):
            stale = np.unique(changed[seen[kind] :])
            for values, anew in zip(known[kind], _growth(nodes, typical, kind, stale), strict=True):
                values[stale] = anew
        seen[kind] = len(changed)
        growth, device = known[kind]
        least = growth[rooms].min()
        node = int(draws.choice(rooms[growth[rooms] <= least + 1e-6]))
        changed.append(node)
        partial = pod.gpus == 1 and pod.share < WHOLE
        return node, [int(device[node])] if partial else _fullest(nodes, pod, node)

    return choose


def _growth(
    nodes: Nodes, typical: Typical, pod: Pod, which: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """How much a pod adds to what is lost on some nodes, and the device for its share."""
    cpu, gpu = nodes.cpu[which], nodes.gpu[which]
    before = typical.lost(cpu, gpu)
    if pod.gpus == 1 and pod.share < WHOLE:
        each = np.repeat(gpu[:, None, :], 8, axis=1)
        each[:, np.arange(8), np.arange(8)] -= pod.share
        after = typical.lost((cpu - pod.cpu)[:, None], each)
        after = np.where(gpu >= pod.share, after, np.inf)
        return after.min(axis=1) - before, after.argmin(axis=1)
    left = gpu.copy()
    if pod.gpus:
        whole = left >= pod.share
        first = whole & (whole.cumsum(axis=1) <= pod.gpus)
        left[first] -= pod.share
    return typical.lost(cpu - pod.cpu, left) - before, np.zeros(len(which), np.int64)


def _usable(nodes: Nodes, pod: Pod, node: int) -> list[int]:
    usable: list[int] = (nodes.gpu[node] >= max(pod.share, 1)).nonzero()[0].tolist()
    return usable


def _fullest(nodes: Nodes, pod: Pod, node: int) -> list[int]:
    return sorted(_usable(nodes, pod, node), key=lambda device: (nodes.gpu[node, device], device))[
        : pod.gpus
    ]
