"""Plans as values: which granules run on which devices.

Granules are counted from 0 to G - 1. The pieces ``embed`` and ``head`` are not counted: ``embed``
runs on the first stage and ``head`` on the last. Where the embeddings are tied, each of the two
holds its own copy, because the ends of a pipeline are on different devices.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from fjx.errors import MeshError
from fjx.wording import counted, listed

AXES = ("tensor",)
"""Axes that a mesh may have, outermost first."""


@dataclass(frozen=True, order=True)
class Device:
    """One device of a cluster; equal keys are the same device."""

    host: str
    """Name of the machine."""
    platform: str
    """As JAX names it: cpu, gpu or tpu."""
    index: int
    """JAX's id of the device: unique on its host and platform."""

    def __str__(self) -> str:
        """The key: ``host/platform:index``."""
        return f"{self.host}/{self.platform}:{self.index}"

    @classmethod
    def parse(cls, key: str) -> Device:
        """The device with this key, as `str` writes it.

        Raises:
            MeshError: it is not a key.
        """
        match = re.fullmatch(r"([^/]+)/([^/:]+):([0-9]+)", key)
        if match is None:
            raise MeshError(f"{key!r} is not a device; expected host/platform:index")
        return cls(match[1], match[2], int(match[3]))


@dataclass(frozen=True)
class Mesh:
    """The devices of one stage, with named axes.

    Raises:
        MeshError: the axes do not have as many places as there are devices, or a device is named
            twice.
    """

    devices: tuple[Device, ...]
    """Row by row over the axes; shard i of an array that is split over ``tensor`` lies on device
    i."""
    axes: tuple[tuple[str, int], ...] = (("tensor", 1),)
    """Name and size of each axis, outermost first."""

    def __post_init__(self) -> None:
        for name, size in self.axes:
            if name not in AXES:
                raise MeshError(f"a mesh has no axis {name!r}; expected {listed(AXES)}")
            if size < 1:
                raise MeshError(f"axis {name!r} must have a size of at least 1, got {size}")
        _refuse_repeated("axis", [name for name, _ in self.axes])
        _refuse_repeated("device", self.devices)
        places = math.prod(size for _, size in self.axes)
        if places != len(self.devices):
            axes = " x ".join(f"{name} {size}" for name, size in self.axes)
            raise MeshError(
                f"a mesh of {axes} needs {counted(places, 'device')}, got {len(self.devices)}"
            )

    @property
    def tensor(self) -> int:
        """The tensor-parallel degree."""
        return dict(self.axes).get("tensor", 1)


@dataclass(frozen=True)
class Stage:
    """A contiguous run of granules on one mesh.

    Raises:
        MeshError: the run is empty.
    """

    granules: range
    """Which granules, in steps of one."""
    mesh: Mesh

    def __post_init__(self) -> None:
        if self.granules.step != 1 or self.granules.start < 0 or not self.granules:
            raise MeshError(
                f"a stage needs at least one granule, in order; got {self.granules!r}. "
                "Use fewer stages, or smaller granules"
            )


@dataclass(frozen=True)
class Plan:
    """The stages of one pipeline, their meshes, and the number of microbatches.

    Raises:
        MeshError: the stages leave out or repeat granules, or share devices without leave.
    """

    stages: tuple[Stage, ...]
    microbatches: int = 1
    """Parts of a step that are in flight at once."""
    shared_devices: bool = False
    """Whether stages may have devices in common: of use in tests, where one device plays all."""

    def __post_init__(self) -> None:
        if not self.stages:
            raise MeshError("a plan needs at least one stage")
        if self.microbatches < 1:
            raise MeshError(f"a plan needs at least one microbatch, got {self.microbatches}")
        expected = 0
        for number, stage in enumerate(self.stages, start=1):
            if stage.granules.start != expected:
                raise MeshError(
                    f"stage {number} begins with granule {stage.granules.start}, expected granule "
                    f"{expected}: stages hold all granules once and in order"
                )
            expected = stage.granules.stop
        if not self.shared_devices:
            for device, (first, second) in _shared(self.stages):
                raise MeshError(
                    f"stages {first} and {second} both use {device}; give each stage devices of "
                    "its own, or allow it by shared_devices = true"
                )

    @property
    def granularity(self) -> int:
        """The number of stages."""
        return len(self.stages)

    @property
    def num_granules(self) -> int:
        """G, the granules of all stages."""
        return self.stages[-1].granules.stop

    @property
    def devices(self) -> tuple[Device, ...]:
        """The devices in use, each once, stage by stage."""
        return tuple(dict.fromkeys(d for stage in self.stages for d in stage.mesh.devices))

    def pieces(self) -> Iterator[tuple[str, Mesh]]:
        """Name and mesh of each piece, in order: ``embed``, ``granule 0``, ..., ``head``."""
        yield "embed", self.stages[0].mesh
        for stage in self.stages:
            for granule in stage.granules:
                yield f"granule {granule}", stage.mesh
        yield "head", self.stages[-1].mesh

    def check_model(self, num_granules: int, split_sizes: Mapping[str, int]) -> None:
        """Check that a model can run by this plan.

        Args:
            num_granules: G of the model.
            split_sizes: The sizes that tensor parallelism divides, by what they are, such as
                ``{"query heads": 9, "KV heads": 3}``.

        Raises:
            MeshError: it cannot; the message has the tensor degrees that would do.
        """
        if num_granules != self.num_granules:
            raise MeshError(
                f"the plan holds {counted(self.num_granules, 'granule')}, the model has "
                f"{num_granules}; plan again for this model"
            )
        for number, stage in enumerate(self.stages, start=1):
            check_degree(stage.mesh.tensor, split_sizes, f"stage {number}: ")


@dataclass(frozen=True)
class Deployment:
    """Data-parallel replicas of a model: one plan each, with devices of their own.

    Raises:
        MeshError: the plans are of different models, or share devices without leave.
    """

    replicas: tuple[Plan, ...]

    def __post_init__(self) -> None:
        if not self.replicas:
            raise MeshError("a deployment needs at least one replica")
        counts = sorted({plan.num_granules for plan in self.replicas})
        if len(counts) > 1:
            raise MeshError(f"replicas are of one model, but have {listed(counts)} granules")
        if not all(plan.shared_devices for plan in self.replicas):
            users = Counter(device for plan in self.replicas for device in plan.devices)
            for device, number in users.items():
                if number > 1:
                    raise MeshError(
                        f"{number} replicas use {device}; give each replica devices of its own, "
                        "or allow it by shared_devices = true"
                    )

    @property
    def devices(self) -> tuple[Device, ...]:
        """The devices in use, each once, replica by replica."""
        return tuple(dict.fromkeys(d for plan in self.replicas for d in plan.devices))


def check_degree(degree: int, split_sizes: Mapping[str, int], where: str = "") -> None:
    """Check that a tensor-parallel degree divides a model's sizes.

    Args:
        degree: The degree.
        split_sizes: As in `Plan.check_model`.
        where: What the message begins with.

    Raises:
        MeshError: it does not; the message has the degrees that do.
    """
    broken = [f"{size} {name}" for name, size in split_sizes.items() if size % degree]
    if broken:
        common = math.gcd(*split_sizes.values())
        degrees = [str(d) for d in range(1, min(common, 64) + 1) if common % d == 0]
        raise MeshError(
            f"{where}tensor degree {degree} does not divide {listed(broken)}; "
            f"use {listed(degrees, last='or')}"
        )


def _shared(stages: tuple[Stage, ...]) -> Iterator[tuple[Device, tuple[int, int]]]:
    """Devices of more than one stage, with the numbers of two of them."""
    user: dict[Device, int] = {}
    for number, stage in enumerate(stages, start=1):
        for device in stage.mesh.devices:
            if device in user:
                yield device, (user[device], number)
            user[device] = number


def _refuse_repeated(noun: str, items: Iterable[object]) -> None:
    for item, number in Counter(items).items():
        if number > 1:
            raise MeshError(f"a mesh has the {noun} {item} {number} times; name each once")
