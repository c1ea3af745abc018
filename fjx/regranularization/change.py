"""Going from one plan to another while requests are in flight.

``planned -> compiling -> copying -> switching -> done``, or ``aborted`` from any state before
``switching``. The old plan serves until the switch, and serves on after an abort: nothing of it is
touched before.

- *Compiling and copying parameters* happen in a thread of their own: programs and parameters do not
  change while steps run.
- *Copying KV pages* happens in the engine's thread, some pages between two steps, so that a copy
  holds what the steps before it wrote. Pages written afterwards are dirty and copied again.
- *Switching* happens between two steps, when no step is in flight: the last dirty pages, then the
  new executors take the place of the old.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from fjx.errors import RegranularizationError
from fjx.outputs import SwitchRecord
from fjx.pipeline.background import background_work
from fjx.pipeline.bound_mesh import Placement
from fjx.pipeline.compiler import Compiler, ProgramSpec
from fjx.pipeline.executor import Executor
from fjx.pipeline.placed_model import (
    PlacedModel,
    granule_places,
    head_of,
    piece_places,
    stage_shapes,
)
from fjx.pipeline.programs import Programs, StageShape
from fjx.pipeline.prune_programs import plan_programs
from fjx.pipeline.stage import End, Granule
from fjx.regranularization.change_state import ChangeState
from fjx.regranularization.dirty_pages import DirtyPages
from fjx.regranularization.probe import compare_logits, run_probe
from fjx.regranularization.transfer import GranuleMove, PageMover, move_params, params_crossing
from fjx.sharding.plan.plan import Deployment, Device

_SLICE_BYTES = 4 << 20
"""KV pages that are copied between two steps; more, while the dirty ones do not become fewer."""
_POLL_SECONDS = 0.002


@dataclass
class _Replica:
    """What becomes of one replica."""

    pieces: PlacedModel
    executor: Executor
    pages: PageMover
    dirty: DirtyPages | None = None
    """None: not counted yet, or the replica is new and begins without pages."""
    left: int = 0
    """Pages that were left to copy after the last slice."""
    slices: int = 1
    """How many slices are copied at once."""


class Regranularization:
    """One change of plan. The engine calls `advance` between steps until it may `switch`."""

    def __init__(
        self,
        number: int,
        reason: str,
        before: Deployment,
        after: Deployment,
        executors: Sequence[Executor],
        pages_in_use: Sequence[Callable[[], Sequence[int]]],
        devices: Mapping[Device, jax.Device],
        expected: np.ndarray | None = None,
    ) -> None:
        """
        Args:
            number: counts changes from 1.
            reason: who wanted it.
            before: what serves.
            after: what shall serve.
            executors: those that serve, one for each replica.
            pages_in_use: for each of them, gives the pages that hold something.
            devices: this process's.
            expected: logits of the probe, where they are known from an earlier change.
        """
        self.course = ChangeState(number, self._prepare)
        self._number, self._reason = number, reason
        self._before, self._after = before, after
        self._old = list(executors)
        self._pages_in_use = pages_in_use
        self._programs: Programs = executors[0].programs
        self._compiler: Compiler = executors[0].compiler
        self._shapes = [stage_shapes(plan, devices) for plan in after.replicas]
        self._new: list[_Replica] = []
        self._bytes = {"parameters": 0, "kv": 0, "dirty": 0}
        self._planned_bytes = 0
        self._rounds = 0
        self._pause: float | None = None
        self._compiled = 0.0
        self._pieces_moved = 0
        self._reached: float | None = None
        self.expected = expected
        self._verification: Iterator[None] | None = None
        self._verified = False

    def record(self) -> SwitchRecord:
        """All that there is to say of it now."""
        dirty = sum(len(new.dirty) for new in self._new if new.dirty is not None)
        return SwitchRecord(
            number=self._number,
            reason=self._reason,
            before=self._before,
            after=self._after,
            state=self.course.state,
            progress=self._progress() if self._reached is None else self._reached,
            error=self.course.error,
            seconds=self.course.seconds,
            pause_seconds=self._pause,
            planned_bytes=self._planned_bytes,
            parameter_bytes=self._bytes["parameters"],
            kv_bytes=self._bytes["kv"],
            dirty_bytes=self._bytes["dirty"],
            dirty_pages=dirty,
            rounds=self._rounds,
        )

    # In the engine's thread, between two steps.

    def wrote(self, replica: int, pages: Sequence[int]) -> None:
        """A step that was just sent to an old replica writes these pages."""
        if replica < len(self._new):
            dirty = self._new[replica].dirty
            if dirty is not None:
                dirty.wrote(pages)

    def advance(self) -> bool:
        """Do a bounded piece of work; whether `switch` may be called now."""
        if self.course.ended or self.course.prepares:
            return False
        try:
            self.course.check_wanted()
            if not self._verified:
                self._verification = self._verification or self._verify()
                next(self._verification, None)
                return False
            return self._copy_slice()
        except Exception as error:
            self._give_up(error)
            return False

    def switch(self) -> list[Executor] | None:
        """Copy what is left and give the new executors; no step may be in flight.

        Returns:
            For each replica of the new plan, its executor; None: it failed, the old ones serve on.
        """
        begun = time.perf_counter()
        self.course.enter("switching")
        try:
            for new in self._new:
                if new.dirty is not None:
                    self._copy(new, new.dirty.take(len(new.dirty)))
                new.pages.wait()
        except Exception as error:
            self._give_up(error)
            return None
        executors = [new.executor for new in self._new]
        for old in self._old:
            old.retire()
        self._pause = time.perf_counter() - begun
        self.course.enter("done")
        self._forget(reached=1.0)
        return executors

    def _verify(self) -> Iterator[None]:
        """Run the probe through the new plan, some of it between two steps, and compare it with
        what the old one gives; then count the pages."""
        if self.expected is None:
            old = self._old[0].pieces
            self.expected = yield from run_probe(self._programs, self._compiler, old)
        for number, new in enumerate(self._new, start=1):
            got = yield from run_probe(self._programs, self._compiler, new.pieces)
            compare_logits(number, self.expected, got)
        for new, in_use, plan in zip(
            self._new, self._pages_in_use, self._before.replicas, strict=False
        ):
            new.dirty = DirtyPages(in_use(), plan.microbatches)
            new.left = len(new.dirty)
            self._planned_bytes += len(new.dirty) * new.pages.page_bytes
        self._verified = True

    def _copy_slice(self) -> bool:
        """Copy some pages of each replica; whether what is left is as little as it can be."""
        ready = True
        for new in self._new:
            new.pages.finish()
            dirty = new.dirty
            if dirty is None or not new.pages.page_bytes:
                continue
            written = dirty.written_again()  # it is left for the switch
            if len(dirty) > written:
                ready = False
                new.slices = 2 * new.slices if len(dirty) > new.left else 1
                new.left = len(dirty)
                count = new.slices * max(_SLICE_BYTES // new.pages.page_bytes, 1)
                self._copy(new, dirty.take(min(count, len(dirty) - written)))
        self._rounds += 1
        return ready and all(new.pages.arrived for new in self._new)

    def _copy(self, new: _Replica, pages: Sequence[int]) -> None:
        assert new.dirty is not None
        if not new.pages.page_bytes:
            return
        new.pages.copy(pages)
        first = sum(new.dirty.first_time(page) for page in pages)
        self._bytes["kv"] += first * new.pages.page_bytes
        self._bytes["dirty"] += (len(pages) - first) * new.pages.page_bytes

    def _give_up(self, error: Exception) -> None:
        self.course.give_up(error)
        self._forget(reached=self._progress())

    def _forget(self, reached: float) -> None:
        """Let go of both plans' arrays; there will be no more progress."""
        self._reached = reached
        self._new, self._old, self._verification = [], [], None
        self._pages_in_use = ()

    def _progress(self) -> float:
        """Programs, parameters and pages count a third each."""
        pieces = len(self._after.replicas) * len(self._programs.pieces)
        total = left = 0
        for new in self._new:
            if new.dirty is not None:
                total, left = total + new.dirty.total, left + len(new.dirty)
        pages = 1 - left / max(total, 1) if self._verified else 0.0
        return (self._compiled + self._pieces_moved / pieces + pages) / 3

    # In a thread of its own.

    def _prepare(self) -> None:
        with background_work():
            self.course.enter("compiling")
            self._compile()
            self.course.enter("copying")
            new = [self._prepared(index) for index in range(len(self._shapes))]
            self._new = new

    def _compile(self) -> None:
        job = self._compiler.compile_later(self._needed_programs())
        try:
            while not job.finished:
                self.course.check_wanted()
                if job.error is not None:
                    raise RegranularizationError(f"a program did not compile: {job.error}")
                self._compiled = job.progress
                time.sleep(_POLL_SECONDS)
        finally:
            job.cancel()
        self._compiled = 1.0

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

    def _prepared(self, index: int) -> _Replica:
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
            self.course.check_wanted()
            source = self._nearest(candidates, piece, target)
            if inherits and source.placement == target:
                arrived.append(source)
            else:
                params, crossed = move_params(
                    self._programs, piece, source.params, source.placement, target
                )
                self._bytes["parameters"] += crossed
                self._planned_bytes += crossed
                if isinstance(source, Granule):
                    new_kv_pages = self._compiler.get(("new pages", source.depth, target.key))
                    granule = Granule(target, source.depth, params, new_kv_pages())
                    arrived.append(granule)
                    moves.append(GranuleMove(source, granule))
                else:
                    arrived.append(End(target, params))
            self._pieces_moved += 1
        head = head_of(self._programs, arrived[0], arrived[-1])
        pieces = PlacedModel(plan, shapes, arrived[0], tuple(arrived[1:-1]), head)
        return _Replica(
            pieces,
            Executor(self._programs, self._compiler, pieces),
            PageMover(moves if inherits else [], self._compiler),
        )

    def _nearest(
        self, held: Sequence[End | Granule], piece: str, target: Placement
    ) -> End | Granule:
        """The copy of a piece from which the fewest bytes cross."""

        def crossing(source: End | Granule) -> int:
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
