"""A change of plan whose devices are all in this process."""

from __future__ import annotations

import time
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax

from fjx.errors import RegranularizationError
from fjx.pipeline.background import background_work
from fjx.pipeline.bound_mesh import BoundMesh
from fjx.pipeline.compiler import Compiler, ProgramSpec
from fjx.pipeline.executor import Executor
from fjx.pipeline.placed_model import (
    Granule,
    PlacedModel,
    PlacedParams,
    granule_places,
    head_of,
    piece_places,
    stage_shapes,
)
from fjx.pipeline.programs import Programs, StageShape
from fjx.pipeline.prune_programs import plan_programs
from fjx.regranularization.change import Check, PageTransport
from fjx.regranularization.probe import LOGITS, Probe, run_probe
from fjx.regranularization.transfer import GranuleMove, PageMover, move_params, params_crossing
from fjx.sharding.plan.plan import Deployment, Device

_POLL_SECONDS = 0.002


class LocalTransport:
    """Compiles here, and copies from device to device; see `PlanTransport`."""

    probed = LOGITS

    def __init__(
        self,
        executors: Sequence[Executor],
        after: Deployment,
        devices: Mapping[Device, jax.Device],
    ) -> None:
        """
        Args:
            executors: those that serve, one for each replica.
            after: what shall serve.
            devices: this process's.
        """
        self.parameter_bytes = 0
        self._after, self._old = after, list(executors)
        self._new: list[Executor] = []
        self._programs: Programs = executors[0].programs
        self._compiler: Compiler = executors[0].compiler
        self._shapes = [stage_shapes(plan, devices) for plan in after.replicas]
        self._compiled = 0.0
        self._pieces_moved = 0

    @property
    def prepared(self) -> float:
        """See `PlanTransport`: programs and parameters count a half each."""
        pieces = len(self._after.replicas) * len(self._programs.pieces)
        return (self._compiled + self._pieces_moved / pieces) / 2

    def probe(self, index: int | None) -> Probe:
        """See `PlanTransport`."""
        executor = self._old[0] if index is None else self._new[index]
        return run_probe(self._programs, self._compiler, executor.pieces)

    def take_over(self) -> Sequence[Executor]:
        """See `PlanTransport`."""
        executors = self._new
        for old in self._old:
            old.retire()
        self.give_up()
        return executors

    def give_up(self) -> None:
        """See `PlanTransport`."""
        self._new, self._old = [], []

    # In a thread of its own.

    def compile(self, check: Check) -> None:
        """See `PlanTransport`."""
        with background_work():
            job = self._compiler.compile_later(self._needed_programs())
            try:
                while not job.finished:
                    check()
                    if job.error is not None:
                        raise RegranularizationError(f"a program did not compile: {job.error}")
                    self._compiled = job.progress
                    time.sleep(_POLL_SECONDS)
            finally:
                job.cancel()
            self._compiled = 1.0

    def load(self, index: int, check: Check) -> PageTransport:
        """See `PlanTransport`: copies what does not stay."""
        with background_work():
            return self._loaded(index, check)

    def _needed_programs(self) -> list[ProgramSpec]:
        specs = self._step_programs(self._shapes)
        for index, shapes in enumerate(self._shapes):
            old = self._old[index].pieces.shapes if index < len(self._old) else ()
            for shape in _without_stayers(old, shapes):
                specs |= {spec.key: spec for spec in self._programs.pages(shape, target=False)}
            for shape in _without_stayers(shapes, old):
                specs |= {spec.key: spec for spec in self._programs.pages(shape, target=True)}
        self._compiler.want(specs)
        if self._compiler.is_crowded:
            serving = self._step_programs(old.pieces.shapes for old in self._old)
            self._compiler.make_room(specs.keys() | serving.keys())
        return [
            spec
            for key, spec in specs.items()
            if not spec.background and self._compiler.find(key) is None
        ]

    def _step_programs(
        self, of_plans: Iterable[Sequence[StageShape]]
    ) -> dict[Hashable, ProgramSpec]:
        """All that the steps of these plans can make use of, by key."""
        return {
            spec.key: spec for shapes in of_plans for spec in plan_programs(self._programs, shapes)
        }

    def _loaded(self, index: int, check: Check) -> PageMover:
        """Copy a replica's parameters to where the new plan wants them."""
        plan, shapes = self._after.replicas[index], self._shapes[index]
        inherits = index < len(self._old)
        sources = [self._old[index].pieces] if inherits else [old.pieces for old in self._old]
        arrived: list[Any] = []
        moves: list[GranuleMove] = []
        held = zip(*(source.all for source in sources), strict=True)
        for piece, target, candidates in zip(
            self._programs.pieces, piece_places(shapes), held, strict=True
        ):
            check()
            source = self._nearest(candidates, piece, target)
            if inherits and source.placement == target:
                arrived.append(source)
            else:
                params, crossed = move_params(
                    self._programs, piece, source.params, source.placement, target
                )
                self.parameter_bytes += crossed
                if isinstance(source, Granule):
                    new_kv_pages = self._compiler.get(("new pages", source.depth, target.key))
                    granule = Granule(target, source.depth, params, new_kv_pages())
                    arrived.append(granule)
                    moves.append(GranuleMove(source, granule))
                else:
                    arrived.append(PlacedParams(target, params))
            self._pieces_moved += 1
        head = head_of(self._programs, arrived[0], arrived[-1])
        pieces = PlacedModel(plan, shapes, arrived[0], tuple(arrived[1:-1]), head)
        self._new.append(Executor(self._programs, self._compiler, pieces))
        return PageMover(moves if inherits else [], self._compiler)

    def _nearest(
        self, held: Sequence[PlacedParams | Granule], piece: str, target: BoundMesh
    ) -> PlacedParams | Granule:
        """The copy of a piece from which the fewest bytes cross."""

        def crossing(source: PlacedParams | Granule) -> int:
            return params_crossing(self._programs, piece, source.placement, target)

        return min(held, key=crossing)


def _without_stayers(
    shapes: Sequence[StageShape], others: Sequence[StageShape]
) -> Iterator[StageShape]:
    """The stages with a granule that lies elsewhere in another plan."""
    places = granule_places(others)
    for shape in shapes:
        if not places or any(places[granule] != shape.placement for granule in shape.granules):
            yield shape
