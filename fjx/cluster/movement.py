"""Moving a piece between processes: its arrays, device by device, as an offer lists them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from fjx.models.granules import WHOLE, Params
from fjx.pipeline.bound_mesh import BoundMesh
from fjx.pipeline.placed_model import Granule, place_piece
from fjx.pipeline.programs import KV_PARTITION, Programs
from fjx.regranularization.transfer import resplit

Fetch = Callable[[Sequence[Any]], list[Any]]
"""Gets the arrays of an offer, given their shapes, types and devices."""


def params_offered(params: Params, at: BoundMesh) -> list[Any]:
    """A piece's arrays, ordered by device: all arrays of its first device come first."""
    leaves = jax.tree.leaves(params)
    parts = [at.parts(leaf) for leaf in leaves]
    return [of[i] for i in range(at.degree) for of in parts]


def fetch_params(
    programs: Programs, piece: str, degree: int, at: BoundMesh, fetch: Fetch
) -> Params:
    """A piece's parameters on a mesh, from an offer of a mesh of some tensor degree."""
    same, partitions = degree == at.degree, programs.partitions(piece)
    targets = at.devices if same else (at.devices[0],) * degree
    on_device = fetch_parts(programs, piece, targets, fetch)
    if same:
        params: Params = jax.tree.map(
            lambda p, *parts: at.assemble(parts, p), partitions, *on_device
        )
        return params
    on_host = [jax.tree.map(np.asarray, each) for each in on_device]
    return place_piece(programs, piece, resplit(programs, piece, on_host, at.degree), at)


def fetch_parts(
    programs: Programs, piece: str, targets: Sequence[jax.Device], fetch: Fetch
) -> list[Params]:
    """What each device of a mesh has of a piece's parameters, from an offer of that mesh.

    Args:
        programs: says how they are stored.
        piece: its name.
        targets: for each device of the mesh, the one of this process that gets its shard.
        fetch: gets the arrays.
    """
    degree = len(targets)
    shapes, partitions = programs.params(piece, degree), programs.partitions(piece)
    own = jax.tree.map(lambda s, p: _share(s, p, degree), shapes, partitions)
    leaves, tree = jax.tree.flatten(own)
    got = fetch([_on(leaf, device) for device in targets for leaf in leaves])
    return [
        jax.tree.unflatten(tree, got[begin : begin + len(leaves)])
        for begin in range(0, len(got), len(leaves))
    ]


def fetch_pages(programs: Programs, granule: Granule, count: int, degree: int, fetch: Fetch) -> Any:
    """Fetch ``count`` pages onto a granule's mesh, offered by a mesh of tensor degree
    ``degree``."""
    at, pages = granule.placement, programs.kv_struct(granule.depth)
    whole = jax.ShapeDtypeStruct((pages.shape[0], count, *pages.shape[2:]), pages.dtype)  # type: ignore[no-untyped-call]
    own = _share(whole, KV_PARTITION, degree)
    targets = at.devices if degree == at.degree else (at.devices[0],) * degree
    got = fetch([_on(own, device) for device in targets])
    if degree == at.degree:
        return at.assemble(got, KV_PARTITION)
    heads = np.concatenate([np.asarray(part) for part in got], axis=3)
    split = np.split(heads, at.degree, axis=3)
    return at.place([np.ascontiguousarray(part) for part in split], KV_PARTITION)


def _share(struct: Any, partition: Any, degree: int) -> Any:
    """What one device of a mesh has of an array."""
    shape = list(struct.shape)
    if partition != WHOLE:
        for axis, name in enumerate(partition):
            if name is not None:
                shape[axis] //= degree
    return jax.ShapeDtypeStruct(tuple(shape), struct.dtype)  # type: ignore[no-untyped-call]


def _on(struct: Any, device: jax.Device) -> Any:
    return jax.ShapeDtypeStruct(  # type: ignore[no-untyped-call]
        struct.shape, struct.dtype, sharding=jax.sharding.SingleDeviceSharding(device)
    )
