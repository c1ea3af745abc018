"""A model's pieces as they lie by a plan, and how they get there from a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from fjx.kernels.matmul import is_packed
from fjx.models.granules import WHOLE, Params
from fjx.pipeline.bound_mesh import BoundMesh, bind
from fjx.pipeline.compiler import ProgramSpec, compile_alone
from fjx.pipeline.programs import Programs, StageShape
from fjx.sharding.plan.plan import Deployment, Device, Plan

Read = Callable[[Callable[[str, np.ndarray], None]], None]
"""Reads a checkpoint: calls back with the name and values of each canonical tensor."""


@dataclass
class Granule:
    """The arrays of a granule, where they lie. Plans share granules that stay where they are."""

    placement: BoundMesh
    depth: int
    """Its layers."""
    params: Params
    kv_pages: Any

    def __post_init__(self) -> None:
        self.arrays = jax.tree.leaves(self.params)
        """The parameters, in the order in which the granule's program takes them."""


@dataclass(frozen=True)
class PlacedParams:
    """The arrays of ``embed`` or ``head``, where they lie."""

    placement: BoundMesh
    params: Params


@dataclass(frozen=True)
class PlacedModel:
    """The arrays of a whole model, where a plan wants them."""

    plan: Plan
    shapes: tuple[StageShape, ...]
    """For each stage."""
    embed: PlacedParams
    granules: tuple[Granule, ...]
    head: PlacedParams

    @property
    def all(self) -> tuple[PlacedParams | Granule, ...]:
        """Every piece, in the order of `Programs.pieces`."""
        return (self.embed, *self.granules, self.head)

    def arrays(self) -> list[Any]:
        """Every array, KV pages included."""
        kv_pages = [granule.kv_pages for granule in self.granules]
        return [
            *jax.tree.leaves((self.embed.params, self.head.params, kv_pages)),
            *(array for granule in self.granules for array in granule.arrays),
        ]


def stage_shapes(plan: Plan, devices: Mapping[Device, jax.Device]) -> tuple[StageShape, ...]:
    """A plan's stages on live devices.

    Raises:
        MeshError: the plan has a device that is not there.
    """
    last = len(plan.stages) - 1
    return tuple(
        StageShape(bind(stage.mesh, devices), stage.granules, first=i == 0, last=i == last)
        for i, stage in enumerate(plan.stages)
    )


def step_programs(
    programs: Programs, deployment: Deployment, devices: Mapping[Device, jax.Device]
) -> Iterator[ProgramSpec]:
    """Every program that the steps of a deployment can need, and those that they can do without.

    Raises:
        MeshError: it has a device that is not there.
    """
    for plan in deployment.replicas:
        for shape in stage_shapes(plan, devices):
            yield from programs.stage(shape)


def move_programs(
    programs: Programs, deployment: Deployment, devices: Mapping[Device, jax.Device]
) -> Iterator[ProgramSpec]:
    """Every program that moving KV pages from or to any stage of a deployment can need."""
    for plan in deployment.replicas:
        for shape in stage_shapes(plan, devices):
            yield from programs.pages(shape, target=False)
            yield from programs.pages(shape, target=True)


def granule_places(shapes: Sequence[StageShape]) -> tuple[BoundMesh, ...]:
    """The place of each granule."""
    return tuple(shape.placement for shape in shapes for _ in shape.granules)


def piece_places(shapes: Sequence[StageShape]) -> tuple[BoundMesh, ...]:
    """The place of each piece, in the order of `Programs.pieces`."""
    return (shapes[0].placement, *granule_places(shapes), shapes[-1].placement)


def new_kv_pages(programs: Programs, depth: int, at: BoundMesh) -> Any:
    """KV memory of a granule, all zeros; see `fjx.kernels.kv_pages.new_pages`."""
    return compile_alone(programs.new_pages(depth, at))()


class PieceLoader:
    """Takes canonical tensors as they come, and puts each of some pieces where it is wanted as soon
    as it is whole."""

    def __init__(self, programs: Programs, places: Mapping[str, BoundMesh]) -> None:
        """``places``: where each piece is wanted, by its name."""
        self._programs = programs
        self._places = places
        self._specs = {piece: programs.tensors(piece) for piece in places}
        self._piece_of = {name: piece for piece, specs in self._specs.items() for name in specs}
        self._shards: dict[str, dict[str, list[Any]]] = {piece: {} for piece in places}
        self.params: dict[str, Params] = {}
        """Of the pieces that are whole."""

    def wants(self, name: str) -> bool:
        """Whether a tensor is of one of the pieces."""
        return name in self._piece_of

    def take(self, name: str, values: np.ndarray) -> None:
        """Take one tensor that is wanted."""
        piece = self._piece_of[name]
        at, shards = self._places[piece], self._shards[piece]
        shards[name] = self._specs[piece][name].shards(values, self._programs.dtype, at.degree)
        if len(shards) == len(self._specs[piece]):
            self.params[piece] = place_piece(self._programs, piece, shards, at)
            shards.clear()


class Loader:
    """Takes a model's canonical tensors as they come, and puts all pieces where a plan wants
    them."""

    def __init__(
        self, programs: Programs, plan: Plan, devices: Mapping[Device, jax.Device]
    ) -> None:
        model = programs.model
        self._programs = programs
        self._plan = plan
        self._shapes = stage_shapes(plan, devices)
        self._places = dict(zip(programs.pieces, piece_places(self._shapes), strict=True))
        self._kv_pages = [
            new_kv_pages(programs, len(layers), self._places[f"{i}"])
            for i, layers in enumerate(model.granules)
        ]
        self._loader = PieceLoader(programs, self._places)

    def take(self, name: str, values: np.ndarray) -> None:
        """Take one tensor."""
        self._loader.take(name, values)

    def pieces(self) -> PlacedModel:
        """The whole model, after all its tensors were taken."""
        places, params = self._places, self._loader.params
        granules = tuple(
            Granule(places[f"{i}"], len(layers), params[f"{i}"], kv_pages)
            for i, (layers, kv_pages) in enumerate(
                zip(self._programs.model.granules, self._kv_pages, strict=True)
            )
        )
        embed, head = (PlacedParams(places[piece], params[piece]) for piece in ("embed", "head"))
        head = head_of(self._programs, embed, head)
        return PlacedModel(self._plan, self._shapes, embed, granules, head)


def place_piece(
    programs: Programs, piece: str, shards: Mapping[str, Sequence[Any]], at: BoundMesh
) -> Params:
    """Put a piece's parameters on a mesh.

    Args:
        programs: says how they are stored.
        piece: ``embed``, ``head``, or the index of a granule.
        shards: for each canonical tensor of the piece, what each device stores; one array where all
            store the same.
        at: the mesh.
    """
    on_device = (
        {name: of[min(i, len(of) - 1)] for name, of in shards.items()} for i in range(at.degree)
    )
    packed = [_pack(programs, piece, tensors) for tensors in on_device]
    params: Params = at.place(packed, programs.partitions(piece))
    return params


def head_of(programs: Programs, embed: PlacedParams, head: PlacedParams) -> PlacedParams:
    """The head, with the embedding's array where they are tied, stored alike, and in one place."""
    tied = programs.model.config.tied_embeddings and embed.placement == head.placement
    if not tied or not is_packed(embed.params["tokens"]):
        return head
    return PlacedParams(head.placement, {**head.params, "unembed": embed.params["tokens"]})


def piece_bytes(programs: Programs, piece: str, at: BoundMesh, num_pages: int | None = None) -> int:
    """Bytes of a piece on each device of a mesh, with so many KV pages; None: with all."""
    sizes = jax.tree.map(
        lambda partition, s: s.size * s.dtype.itemsize // (1 if partition == WHOLE else at.degree),
        programs.partitions(piece),
        programs.params(piece, at.degree),
    )
    of_pages = 0
    if piece not in ("embed", "head"):
        memory = programs.kv_struct(len(programs.model.granules[int(piece)]))
        each = memory.size * memory.dtype.itemsize // memory.shape[1] // at.degree
        of_pages = each * (memory.shape[1] if num_pages is None else num_pages)
    return sum(jax.tree.leaves(sizes)) + of_pages


def piece_tensors(programs: Programs, piece: str, params: Params) -> dict[str, Any]:
    """A piece's canonical tensors by name, from its parameters."""
    if piece in ("embed", "head"):
        return {f"{piece}.{name}": values for name, values in params.items()}
    tensors: dict[str, Any] = {}
    for i, layer in enumerate(programs.model.granules[int(piece)]):
        of_layer = params["layers"][i]
        tensors |= {f"layers.{layer}.{name}": values for name, values in of_layer.items()}
    return tensors


def _pack(programs: Programs, piece: str, tensors: Mapping[str, Any]) -> Params:
    model = programs.model
    if piece == "embed":
        return model.pack_embed(tensors)
    if piece == "head":
        return model.pack_head(tensors)
    return model.pack_granule(int(piece), tensors)
