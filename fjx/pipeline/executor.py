"""Runs the steps of one replica by its plan."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import jax

from fjx.pipeline.batch import Batch
from fjx.pipeline.bound_mesh import BoundMesh
from fjx.pipeline.chain import Chain, OverlappedChain, overlap_chain
from fjx.pipeline.compiler import CompileJob, Compiler, ProgramSpec
from fjx.pipeline.limits import Limits
from fjx.pipeline.placed_model import PlacedModel
from fjx.pipeline.programs import Programs
from fjx.pipeline.protocol import Pruner, RowSelection
from fjx.pipeline.prune_programs import plan_programs, segments_of
from fjx.pipeline.stage import BoundStage
from fjx.pipeline.stage_runner import STEPS_BEFORE_FUSING, StageRunner
from fjx.pipeline.step_output import StepOutput
from fjx.sharding.plan.plan import Plan


class Executor:
    """Sends batches through the stages of a plan; owns the last sampled tokens.

    Programs are looked up, never traced, on this path; dispatch returns before the devices are
    done.
    """

    def __init__(self, programs: Programs, compiler: Compiler, pieces: PlacedModel) -> None:
        self.programs = programs
        self.compiler = compiler
        self.pieces = pieces
        self._steps = 0
        self._rows: set[int] = set()
        """Padded sizes of the steps so far."""
        self._fusing: CompileJob | None = None
        named = dict(zip(programs.pieces, pieces.all, strict=True))
        self._runner = StageRunner(
            pieces.shapes, named, programs, compiler, pieces.plan.microbatches
        )
        self._stages = self._segments = self._runner.stages
        if programs.lens is not None and len(pieces.shapes) == 1:
            self._segments = self._runner.stages_of(segments_of(pieces.shapes))

    @property
    def segments(self) -> Sequence[BoundStage]:
        """The parts of a step between which a pruner looks at it."""
        return self._segments

    @property
    def limits(self) -> Limits:
        """The sizes that programs are compiled for."""
        return self.programs.limits

    @property
    def plan(self) -> Plan:
        """By which steps run."""
        return self.pieces.plan

    @property
    def lost(self) -> bool:
        """Never: what is in this process is not lost without it."""
        return False

    def retire(self) -> None:
        """Begin nothing more in the background; another executor takes over."""
        self._steps = STEPS_BEFORE_FUSING
        if self._fusing is not None:
            self._fusing.cancel()
            self._fusing = None  # it knows this executor, whose memory would stay otherwise

    def overlap_chain(self, batch: Batch, chain: Chain) -> OverlappedChain | None:
        """A chain of another executor, to run beside this step; None while there is no program of
        both."""
        key = ("stage", batch.num_rows, *self._stages[0].fused_key)
        if len(self._stages) > 1 or self.compiler.find(key) is None:
            return None
        return overlap_chain(key, self.compiler, chain)

    def dispatch_all(self, batches: Sequence[tuple[Batch, int]]) -> list[StepOutput]:
        """Send microbatches, each with its group's number, one after the other: as one program,
        once that is there."""
        each = [batch for batch, _ in batches]
        if len(each) > 1 and Chain.can_hold(self, each):
            chain = Chain(self, each)
            program = self.compiler.find_or_begin(chain.key, chain.spec)
            if program is not None:
                chain.take(program(chain.arrays()))
                return chain.outputs
        return [self.dispatch(batch, group_id) for batch, group_id in batches]

    @property
    def last_token(self) -> Any:
        """The last sampled token of each slot, where the plan has one microbatch."""
        (last_token,) = self._runner.last_token
        return last_token

    def took_chain(
        self, batches: Sequence[Batch], last_token: Any, chosen: Sequence[Any]
    ) -> list[StepOutput]:
        """A `Chain` has sent these steps, which will choose so: each step's tokens, and how sure
        they are where `Limits.confidences` asks for it."""
        self._runner.last_token[0] = last_token
        each = len(chosen) // len(batches)
        parts = [chosen[i : i + each] for i in range(0, len(chosen), each)]
        return [
            StepOutput(tokens, batch.num_samples, None, *sure)
            for batch, (tokens, *sure) in zip(batches, parts, strict=True)
        ]

    def dispatch(
        self,
        batch: Batch,
        group_id: int = 0,
        pruner: Pruner | None = None,
        overlapped: OverlappedChain | None = None,
    ) -> StepOutput:
        """Send a microbatch to the devices; its effects on pages and last tokens are ordered after
        earlier ones.

        A slot's requests are always in the same group. With a ``pruner``, the call
        returns when it has seen the step between its last two segments. ``overlapped``: see
        `overlap_chain`.
        """
        self._steps += 1
        self._rows.add(batch.num_rows)
        if self._steps == STEPS_BEFORE_FUSING:
            self._fusing = self.compiler.compile_background(self._fused_programs())
        x, slots, stream, batch = self._run_stages(batch, group_id, pruner, overlapped)
        if batch.num_samples == 0:
            return StepOutput(None, 0, stream=stream)
        tokens, _, logprobs, confidences = self._runner.choose(batch, x, slots, group_id)
        return StepOutput(tokens, batch.num_samples, logprobs, confidences, stream)

    def _fused_programs(self) -> Iterator[ProgramSpec]:
        """What makes steps faster; without warm-up, for the sizes that steps had so far."""
        sizes = frozenset(self._rows) if self.compiler.on_demand else None
        specs = plan_programs(self.programs, self.pieces.shapes, sizes)
        return (spec for spec in specs if spec.background)

    def _run_stages(
        self, batch: Batch, group_id: int, pruner: Pruner | None, overlapped: OverlappedChain | None
    ) -> tuple[Any, Any, Any, Batch]:
        source = self._runner.fed[group_id]
        slots = stream = None
        for stage in self._stages if pruner is None else self._segments:
            if not stage.shape.first:
                source = jax.device_put(source, stage.placement.whole)
            source, slots, stream = stage.run(batch.num_rows, source, batch.packed, overlapped)
            if pruner is not None and not stage.shape.last:
                selection = pruner.select(stage.shape, source)
                if selection is not None:
                    source = self._compact(source, batch, selection, stage.placement)
                    batch = selection.batch
        return source, slots, stream, batch

    def _compact(self, x: Any, batch: Batch, selection: RowSelection, at: BoundMesh) -> Any:
        """The residual stream of the rows that go on, padded to their bucket."""
        gathered = self.compiler.get(("gather", batch.num_rows, at.key))(x, selection.rows)
        return self.compiler.get(("resize", selection.batch.num_rows, at.key))(gathered)
