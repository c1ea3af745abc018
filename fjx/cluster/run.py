"""A worker's stages at work: from what the stage before offers to what the next one fetches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax

from fjx.cluster.health.stage_timer import StageSpan, StageTimer, copy
from fjx.cluster.messages import RunAssignment, StageTransfer, StepAssignment, StepTiming, widen
from fjx.cluster.transfer_endpoint import TransferEndpoint
from fjx.pipeline.batch import Batch
from fjx.pipeline.bound_mesh import BoundMesh
from fjx.pipeline.compiler import Compiler
from fjx.pipeline.placed_model import Granule, PlacedParams
from fjx.pipeline.programs import Programs, StageShape
from fjx.pipeline.stage import BoundStage
from fjx.pipeline.stage_runner import STEPS_BEFORE_FUSING, StageRunner


class StageRun:
    """Runs the steps of a run on this worker. Nothing here waits for a device.

    Where a step fails, whoever waits for what it promised gets the error.
    """

    def __init__(
        self,
        assignment: RunAssignment,
        shapes: Sequence[StageShape],
        pieces: dict[str, PlacedParams | Granule],
        programs: Programs,
        compiler: Compiler,
        endpoint: TransferEndpoint,
        timer: StageTimer,
    ) -> None:
        """
        Args:
            assignment: which stages.
            shapes: the same, on this process's devices.
            pieces: by name, those of the stages.
            programs: what runs.
            compiler: has it.
            endpoint: leads to the other workers and the driver.
            timer: measures how long steps take.
        """
        self.assignment, self.shapes, self.pieces = assignment, tuple(shapes), pieces
        self._programs, self._compiler, self._endpoint = programs, compiler, endpoint
        self._timer = timer
        self.steps = 0
        self._done: list[Any] = []
        """What is ready when all steps so far are done."""
        self._runner = StageRunner(shapes, pieces, programs, compiler, assignment.microbatches)
        self._stages = self._runner.stages
        self._layers = 0
        if len(shapes) == 1 and len(set(programs.model.config.window_of_layer)) < 2:
            self._layers = sum(len(programs.model.granules[i]) for i in shapes[0].granules)

    @property
    def granules(self) -> dict[str, Granule]:
        """The granules of this worker's stages, by name."""
        return {name: each for name, each in self.pieces.items() if isinstance(each, Granule)}

    def step(self, assignment: StepAssignment) -> None:
        """Dispatch this worker's part of a step.

        Raises:
            Exception: it could not be dispatched; who waits for it is told.
        """
        kept: set[int] = set()
        try:
            self._step(assignment, kept)
        except Exception as error:
            for number in set(assignment.promises) - kept:
                self._endpoint.offer_error(number, self._promised(assignment, number), str(error))
            raise

    def _step(self, assignment: StepAssignment, kept: set[int]) -> None:
        batch, x = widen(assignment.batch, self._programs.limits), None
        slots: Any = None
        spans: list[StageSpan] | None = [] if self._timer.due else None
        for stage, transfer in zip(self._stages, assignment.transfers, strict=True):
            source = self._source(stage, transfer, x, assignment)
            # Nor does a step begin before the worker's last one is done.
            taken = [] if spans is None else [copy(source), *map(copy, self._done)]
            x, slots, _ = stage.run(batch.num_rows, source, batch.packed)
            if spans is not None:
                spans.append(StageSpan(taken, copy(x)))
            if transfer.offer is not None:
                self._offer(transfer.offer, [stage.placement.parts(x)[0]], kept)
        self._done = [x]
        if spans is not None:
            what = StepTiming(
                assignment.run, batch.num_rows, 0.0, self._layers, self.shapes[0].placement.degree
            )
            self._timer.measure(what, spans)
        if self._stages[-1].shape.last and batch.num_samples:
            self._choose(batch, x, slots, assignment, kept)
        self.steps += 1
        if self.steps == STEPS_BEFORE_FUSING:
            specs = [s for shape in self.shapes for s in self._programs.stage(shape)]
            self._compiler.compile_background(s for s in specs if s.background)

    def _source(
        self, stage: BoundStage, transfer: StageTransfer, x: Any, assignment: StepAssignment
    ) -> Any:
        at, T = stage.placement, assignment.batch.batch.num_rows
        if stage.shape.first:
            if assignment.last_token is not None:
                fetched = self._endpoint.fetch(
                    assignment.last_token, [on_first(self._programs.last_token(), at)]
                )
                self._runner.fed[assignment.group_id] = _on_all(fetched[0], at)
            return self._runner.fed[assignment.group_id]
        if transfer.source is not None:
            (x,) = self._endpoint.fetch(transfer.source, [on_first(self._programs.hidden(T), at)])
        return _on_all(x, at)

    def _choose(
        self, batch: Batch, x: Any, slots: Any, assignment: StepAssignment, kept: set[int]
    ) -> None:
        at = self._stages[-1].placement
        chosen = self._runner.choose(batch, x, slots, assignment.group_id)
        if assignment.feed is not None:
            # The next step takes the memory of the last tokens: others get a copy.
            copy = self._compiler.get(("copy tokens", at.key))(chosen.last_token)
            self._offer(assignment.feed, [at.parts(copy)[0]], kept)
        if assignment.result is not None:
            brought = jax.tree.leaves((chosen.tokens, chosen.logprobs, chosen.confidences))
            self._offer(assignment.result, [at.parts(each)[0] for each in brought], kept)
        self._done = [chosen.tokens]

    def _offer(self, number: int, arrays: Sequence[Any], kept: set[int]) -> None:
        self._endpoint.offer(number, arrays)
        kept.add(number)

    def _promised(self, assignment: StepAssignment, number: int) -> list[Any]:
        """Shapes of what was promised by a number."""
        at, batch = self._stages[-1].placement, assignment.batch.batch
        if number == assignment.feed:
            structs = [self._programs.last_token()]
        elif number == assignment.result:
            structs = jax.tree.leaves(self._programs.chosen(batch.sample_bucket, batch.logprobs))
        else:
            structs = [self._programs.hidden(batch.num_rows)]
        return [on_first(each, at) for each in structs]


def on_first(struct: Any, at: BoundMesh) -> Any:
    """An array, copied to the first device of a mesh."""
    return jax.ShapeDtypeStruct(  # type: ignore[no-untyped-call]
        struct.shape, struct.dtype, sharding=jax.sharding.SingleDeviceSharding(at.devices[0])
    )


def _on_all(array: Any, at: BoundMesh) -> Any:
    """On every device of a mesh; on one device it is where it should be, and nothing is copied."""
    return jax.device_put(array, at.whole)
