"""A worker's stages at work: from what the stage before offers to what the next one fetches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax

from fjx.cluster.health.pace import Pace, Span, copy
from fjx.cluster.messages import Hop, RunOrder, StepOrder, Timed, widen
from fjx.cluster.wire import Wire
from fjx.pipeline.batch import Batch
from fjx.pipeline.bound_mesh import Placement
from fjx.pipeline.compiler import Compiler
from fjx.pipeline.placed_model import End, Granule
from fjx.pipeline.programs import Programs, StageShape
from fjx.pipeline.stage import Stage
from fjx.pipeline.stage_runner import STEPS_BEFORE_FUSING, StageRunner


class StageRun:
    """Runs the steps of a run on this worker. Nothing here waits for a device.

    Where a step fails, whoever waits for what it promised gets the error.
    """

    def __init__(
        self,
        order: RunOrder,
        shapes: Sequence[StageShape],
        pieces: dict[str, End | Granule],
        programs: Programs,
        compiler: Compiler,
        wire: Wire,
        pace: Pace,
    ) -> None:
        """
        Args:
            order: which stages.
            shapes: the same, on this process's devices.
            pieces: by name, those of the stages.
            programs: what runs.
            compiler: has it.
            wire: leads to the other workers and the driver.
            pace: measures how long steps take.
        """
        self.order, self.shapes, self.pieces = order, tuple(shapes), pieces
        self._programs, self._compiler, self._wire = programs, compiler, wire
        self._pace = pace
        self.steps = 0
        self._done: list[Any] = []
        """What is ready when all steps so far are done."""
        self._runner = StageRunner(shapes, pieces, programs, compiler, order.microbatches)
        self._stages = self._runner.stages
        self._layers = 0
        if len(shapes) == 1 and len(set(programs.model.config.window_of_layer)) < 2:
            self._layers = sum(len(programs.model.granules[i]) for i in shapes[0].granules)

    @property
    def granules(self) -> dict[str, Granule]:
        """The granules of this worker's stages, by name."""
        return {name: each for name, each in self.pieces.items() if isinstance(each, Granule)}

    def step(self, order: StepOrder) -> None:
        """Dispatch this worker's part of a step.

        Raises:
            Exception: it could not be dispatched; who waits for it is told.
        """
        kept: set[int] = set()
        try:
            self._step(order, kept)
        except Exception as error:
            for number in set(order.promises) - kept:
                self._wire.offer_error(number, self._promised(order, number), str(error))
            raise

    def _step(self, order: StepOrder, kept: set[int]) -> None:
        batch, x = widen(order.batch, self._programs.limits), None
        slots: Any = None
        spans: list[Span] | None = [] if self._pace.due else None
        for stage, hop in zip(self._stages, order.hops, strict=True):
            source = self._source(stage, hop, x, order)
            # Nor does a step begin before the worker's last one is done.
            taken = [] if spans is None else [copy(source), *map(copy, self._done)]
            x, slots, _ = stage.run(batch.num_rows, source, batch.packed)
            if spans is not None:
                spans.append(Span(taken, copy(x)))
            if hop.offer is not None:
                self._offer(hop.offer, [stage.placement.parts(x)[0]], kept)
        self._done = [x]
        if spans is not None:
            what = Timed(
                order.run, batch.num_rows, 0.0, self._layers, self.shapes[0].placement.degree
            )
            self._pace.measure(what, spans)
        if self._stages[-1].shape.last and batch.num_samples:
            self._choose(batch, x, slots, order, kept)
        self.steps += 1
        if self.steps == STEPS_BEFORE_FUSING:
            specs = [s for shape in self.shapes for s in self._programs.stage(shape)]
            self._compiler.compile_background(s for s in specs if s.background)

    def _source(self, stage: Stage, hop: Hop, x: Any, order: StepOrder) -> Any:
        at, T = stage.placement, order.batch.batch.num_rows
        if stage.shape.first:
            if order.last_token is not None:
                fetched = self._wire.fetch(
                    order.last_token, [on_first(self._programs.last_token(), at)]
                )
                self._runner.fed[order.part] = _on_all(fetched[0], at)
            return self._runner.fed[order.part]
        if hop.source is not None:
            (x,) = self._wire.fetch(hop.source, [on_first(self._programs.hidden(T), at)])
        return _on_all(x, at)

    def _choose(self, batch: Batch, x: Any, slots: Any, order: StepOrder, kept: set[int]) -> None:
        at = self._stages[-1].placement
        chosen = self._runner.choose(batch, x, slots, order.part)
        if order.feed is not None:
            # The next step takes the memory of the last tokens: others get a copy.
            copy = self._compiler.get(("copy tokens", at.key))(chosen.last_token)
            self._offer(order.feed, [at.parts(copy)[0]], kept)
        if order.result is not None:
            brought = jax.tree.leaves((chosen.tokens, chosen.logprobs, chosen.confidences))
            self._offer(order.result, [at.parts(each)[0] for each in brought], kept)
        self._done = [chosen.tokens]

    def _offer(self, number: int, arrays: Sequence[Any], kept: set[int]) -> None:
        self._wire.offer(number, arrays)
        kept.add(number)

    def _promised(self, order: StepOrder, number: int) -> list[Any]:
        """Shapes of what was promised by a number."""
        at, batch = self._stages[-1].placement, order.batch.batch
        if number == order.feed:
            structs = [self._programs.last_token()]
        elif number == order.result:
            structs = jax.tree.leaves(self._programs.chosen(batch.sample_bucket, batch.logprobs))
        else:
            structs = [self._programs.hidden(batch.num_rows)]
        return [on_first(each, at) for each in structs]


def on_first(struct: Any, at: Placement) -> Any:
    """An array, copied to the first device of a mesh."""
    return jax.ShapeDtypeStruct(  # type: ignore[no-untyped-call]
        struct.shape, struct.dtype, sharding=jax.sharding.SingleDeviceSharding(at.devices[0])
    )


def _on_all(array: Any, at: Placement) -> Any:
    """On every device of a mesh; on one device it is where it should be, and nothing is copied."""
    return jax.device_put(array, at.whole)
