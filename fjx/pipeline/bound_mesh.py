"""Where a stage's arrays lie: the mesh of a plan, bound to this process's devices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding

from fjx.errors import MeshError
from fjx.kernels import host_memory
from fjx.models.granules import WHOLE
from fjx.models.split import TENSOR_AXIS
from fjx.sharding.plan.plan import Device, Mesh
from fjx.sharding.topology.topology import key_of
from fjx.wording import listed


@dataclass(frozen=True)
class BoundMesh:
    """A mesh and its devices. Equal meshes are equal placements."""

    mesh: Mesh
    devices: tuple[jax.Device, ...]

    @cached_property
    def key(self) -> tuple[int, ...]:
        """What tells it from others in the keys of programs: the ids of its devices."""
        return tuple(device.id for device in self.devices)

    @property
    def degree(self) -> int:
        """The tensor-parallel degree."""
        return self.mesh.tensor

    @cached_property
    def jax_mesh(self) -> jax.sharding.Mesh:
        """The mesh as JAX has it."""
        return jax.sharding.Mesh(np.array(self.devices), (TENSOR_AXIS,))

    @cached_property
    def whole(self) -> Sharding:
        """Of an array that each device has."""
        return self.sharding(WHOLE)

    def sharding(self, partition: PartitionSpec) -> Sharding:
        """Of an array that is split like this."""
        if self.degree == 1:
            return SingleDeviceSharding(self.devices[0])
        return NamedSharding(self.jax_mesh, partition)

    def struct(self, shape: Any, partition: PartitionSpec = WHOLE) -> Any:
        """Shape, type and place of an array that is to come; ``shape`` is a
        `jax.ShapeDtypeStruct`."""
        return jax.ShapeDtypeStruct(  # type: ignore[no-untyped-call]
            shape.shape, shape.dtype, sharding=self.sharding(partition)
        )

    def structs(self, shapes: Any, partitions: Any) -> Any:
        """`struct` for each leaf of a pytree."""
        return jax.tree.map(self.struct, shapes, partitions)

    def place(self, shards: Sequence[Any], partitions: Any) -> Any:
        """Put arrays of the host here.

        Args:
            shards: for each device, the pytree of what it stores.
            partitions: for each leaf, how it is split.
        """
        if self.devices[0].platform == "cpu":  # which uses them in place
            shards = jax.tree.map(lambda leaf: host_memory.in_place(np.asarray(leaf)), shards)
        if self.degree == 1:
            return jax.device_put(shards[0], self.devices[0])

        def place_leaf(partition: PartitionSpec, *leaves: Any) -> Any:
            arrays = [
                jax.device_put(leaf, device)
                for leaf, device in zip(leaves, self.devices, strict=True)
            ]
            return self.assemble(arrays, partition)

        return jax.tree.map(place_leaf, partitions, *shards)

    def assemble(self, arrays: Sequence[Any], partition: PartitionSpec) -> Any:
        """One array of what each device has of it."""
        if self.degree == 1:
            return arrays[0]
        shape = list(arrays[0].shape)
        for axis, name in enumerate(partition):
            if name is not None:
                shape[axis] *= self.degree
        return jax.make_array_from_single_device_arrays(
            tuple(shape), self.sharding(partition), list(arrays)
        )

    def parts(self, array: Any) -> list[Any]:
        """What each device has of an array, in the order of the mesh."""
        if self.degree == 1:
            return [array]
        on = {shard.device: shard.data for shard in array.addressable_shards}
        return [on[device] for device in self.devices]


def bind(mesh: Mesh, devices: Mapping[Device, jax.Device]) -> BoundMesh:
    """The placement of a mesh on live devices.

    Raises:
        MeshError: the mesh has a device that is not there.
    """
    absent = [device for device in mesh.devices if device not in devices]
    if absent:
        raise MeshError(
            f"the plan uses {listed(absent)}, this process has {listed(devices)}; "
            "make a plan of these"
        )
    return BoundMesh(mesh, tuple(devices[device] for device in mesh.devices))


def live_devices() -> dict[Device, jax.Device]:
    """This process's devices by their keys."""
    return {key_of(device): device for device in jax.local_devices()}
