"""Moving parameters and KV pages from one mesh to another, and counting the bytes that cross.

Between meshes of equal tensor degree, each device's part goes to its successor. Where the degree
changes, a piece goes through the host, which puts it together and splits it anew.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from fjx.kernels import host_memory
from fjx.models.granules import WHOLE, Params
from fjx.models.split import TensorSpec
from fjx.pipeline.background import copy_to_device
from fjx.pipeline.bound_mesh import BoundMesh
from fjx.pipeline.compiler import Compiler
from fjx.pipeline.placed_model import Granule, piece_tensors, place_piece
from fjx.pipeline.programs import KV_PARTITION, PAGE_COUNTS, Programs
from fjx.sharding.costs.difference import missing_shares


def move_params(
    programs: Programs, piece: str, params: Params, source: BoundMesh, target: BoundMesh
) -> tuple[Params, int]:
    """Copy a piece's parameters to another mesh; returns when they are there.

    Returns:
        The parameters, and the bytes that crossed from one device to another.
    """
    partitions = programs.partitions(piece)
    if source.degree == target.degree:
        moved = jax.tree.map(
            lambda partition, leaf: _send(leaf, partition, source, target, copy_to_device),
            partitions,
            params,
        )
    else:
        on_device = [
            jax.tree.map(lambda leaf, i=i: np.asarray(source.parts(leaf)[i]), params)
            for i in range(source.degree)
        ]
        shards = resplit(programs, piece, on_device, target.degree)
        moved = place_piece(programs, piece, shards, target)
    jax.block_until_ready(moved)  # type: ignore[no-untyped-call]
    return moved, params_crossing(programs, piece, source, target)


def params_crossing(programs: Programs, piece: str, source: BoundMesh, target: BoundMesh) -> int:
    """Bytes of a piece's parameters that cross from one device to another in a move."""
    crossed = jax.tree.map(
        lambda partition, leaf: _crossing(
            leaf.size * leaf.dtype.itemsize, partition != WHOLE, source, target
        ),
        programs.partitions(piece),
        programs.params(piece, target.degree),
    )
    return sum(jax.tree.leaves(crossed))


def _send(
    leaf: Any,
    partition: Any,
    source: BoundMesh,
    target: BoundMesh,
    send: Callable[[Any, jax.Device], Any] = jax.device_put,
) -> Any:
    """An array on another mesh of the same degree; what a device has already is not sent."""
    parts = source.parts(leaf)
    if partition == WHOLE:
        held = dict(zip(source.devices, parts, strict=True))
        parts = [held.get(device, parts[0]) for device in target.devices]
    pairs = zip(parts, target.devices, strict=True)
    sent = [part if part.device == to else send(part, to) for part, to in pairs]
    return target.assemble(sent, partition)


def resplit(
    programs: Programs, piece: str, on_device: Sequence[Params], degree: int
) -> dict[str, list[Any]]:
    """What each device of a mesh of another degree stores of a piece's tensors, on the host.

    Args:
        programs: says how they are stored.
        piece: its name.
        on_device: what each device has of it now, on the host.
        degree: the other tensor-parallel degree.
    """
    tensors = [piece_tensors(programs, piece, each) for each in on_device]

    def split(name: str, spec: TensorSpec) -> list[Any]:
        whole = spec.whole([each[name] for each in tensors])
        shards = spec.shards(whole, programs.dtype, degree)
        # A view would keep the old array's memory alive.
        copied: list[Any] = jax.tree.map(host_memory.copied, shards)
        return copied

    return {name: split(name, spec) for name, spec in programs.tensors(piece).items()}


def _crossing(size: int, is_split: bool, source: BoundMesh, target: BoundMesh) -> int:
    """Bytes of an array that cross from one device to another; ``size`` is that of the array."""
    missing = missing_shares(source.mesh, target.mesh)
    if is_split:
        return size * sum(missing.split) // missing.denominator
    return size * sum(missing.whole)


@dataclass(frozen=True)
class GranuleMove:
    """A granule that changes its mesh: what it was, and what it becomes."""

    source: Granule
    target: Granule


class PageMover:
    """Copies KV pages of moving granules, in the order of its calls and of the steps between them.

    Only the thread that dispatches steps may use it: pages are read as the steps sent before leave
    them.
    """

    def __init__(self, moves: Sequence[GranuleMove], compiler: Compiler) -> None:
        self._moves = moves
        self._compiler = compiler
        self._taken: list[tuple[GranuleMove, np.ndarray, Any]] = []
        self.page_bytes = sum(
            _crossing(
                move.source.kv_pages.nbytes // move.source.kv_pages.shape[1],
                True,
                move.source.placement,
                move.target.placement,
            )
            for move in moves
        )
        """Bytes that cross between devices for one page."""

    def copy(self, pages: Sequence[int]) -> None:
        """Begin to copy pages. What needs the host arrives with `finish`."""
        begin = 0
        while begin < len(pages):
            count = next(count for count in PAGE_COUNTS if count <= len(pages) - begin)
            ids = np.array(pages[begin : begin + count], np.int32)
            begin += count
            for move in self._moves:
                old = move.source
                take = self._compiler.get(("take", old.depth, count, old.placement.key))
                self._taken.append((move, ids, take(old.kv_pages, ids)))
        if all(m.source.placement.degree == m.target.placement.degree for m in self._moves):
            self.finish()  # the devices do it all, in their own time

    @property
    def arrived(self) -> bool:
        """Whether all copies that were begun are done."""
        return not self._taken and all(move.target.kv_pages.is_ready() for move in self._moves)

    def wait(self) -> None:
        """Return when all copies that were begun are done."""
        self.finish()
        jax.block_until_ready(  # type: ignore[no-untyped-call]
            [move.target.kv_pages for move in self._moves]
        )

    def finish(self) -> bool:
        """Let all pages arrive; waits for those that go through the host. More may be copied."""
        taken, self._taken = self._taken, []
        for move, ids, contents in taken:
            new, old = move.target, move.source.placement
            if old.degree == new.placement.degree:
                sent = _send(contents, KV_PARTITION, old, new.placement)
            else:
                heads = np.concatenate([np.asarray(p) for p in old.parts(contents)], axis=3)
                split = np.split(heads, new.placement.degree, axis=3)
                sent = new.placement.place([np.ascontiguousarray(s) for s in split], KV_PARTITION)
            put = self._compiler.get(("put", new.depth, len(ids), new.placement.key))
            new.kv_pages = put(new.kv_pages, ids, sent)
        return True
