"""The plans that the benchmark visits, and the first visit, which compiles their programs."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tqdm import tqdm

from fjx.engine.engine import Engine
from fjx.outputs import SwitchRecord
from fjx.pipeline.compiler import ProgramSpec
from fjx.sharding.plan.plan import Deployment
from fjx.sharding.planner.mesh_file import MeshFile, StageSpec

POLL_SECONDS = 0.002


@dataclass(frozen=True)
class Target:
    """So many replicas of so many stages, one device each, from a device on."""

    stages: int
    replicas: int = 1
    first_device: int = 0

    def mesh(self) -> MeshFile:
        """As the engine takes it."""

        def devices(stage: int) -> tuple[tuple[int, ...], ...]:
            starts = range(self.first_device, self.first_device + self.replicas * self.stages)
            return tuple((starts[r * self.stages + stage],) for r in range(self.replicas))

        return MeshFile(
            stages=tuple(StageSpec(indices=devices(stage)) for stage in range(self.stages)),
            replicas=self.replicas,
            microbatches=self.stages,
        )


CYCLE = (
    Target(2),
    Target(4),
    Target(8),
    Target(3),
    Target(1, replicas=2),
    Target(4, first_device=4),
    Target(1, first_device=6),
    Target(8),
    Target(2, replicas=2),
    Target(5, first_device=3),
    Target(1),
)
"""Finer, coarser, replicated, and elsewhere; it ends where an engine with one stage begins."""
LADDER = (Target(2), Target(4), Target(8), Target(1))
"""The changes whose pauses are measured, likewise."""


def label(deployment: Deployment) -> str:
    """A plan's number of stages, with that of its replicas: ``4``, ``2x1``."""
    stages = f"{deployment.replicas[0].granularity}"
    count = len(deployment.replicas)
    return f"{count}x{stages}" if count > 1 else stages


def change_label(record: SwitchRecord) -> str:
    """``1->2``."""
    return f"{label(record.before)}->{label(record.after)}"


def first_visit(engine: Engine, targets: Sequence[Target]) -> dict[str, Any]:
    """Go through the plans while nothing runs, then back to the first one, and wait for all their
    programs, also those that the engine can do without."""
    compiler, visits = engine.executor.compiler, []
    home = engine.plans.deployment
    begun, programs = time.perf_counter(), sum(compiler.counts.values())
    meshes = [target.mesh() for target in targets]
    for mesh in tqdm([*meshes, home], desc="First visit", unit="plan"):
        if mesh is home and engine.plans.deployment == home:
            continue
        begin, before = time.perf_counter(), sum(compiler.counts.values())
        record = change_idle(engine, mesh)
        changed, needed = time.perf_counter(), sum(compiler.counts.values())
        compiler.register(replace(spec, background=False) for spec in _optional(engine))
        compiler.compile_all("background", progress=False)
        visits.append(
            {
                "change": change_label(record),
                "seconds": changed - begin,
                "programs": needed - before,
                "stage_program_seconds": time.perf_counter() - changed,
                "stage_programs": sum(compiler.counts.values()) - needed,
            }
        )
    return {
        "seconds": time.perf_counter() - begun,
        "programs": sum(compiler.counts.values()) - programs,
        "visits": visits,
    }


def _optional(engine: Engine) -> Iterator[ProgramSpec]:
    """The programs of the current plan that the engine would compile while it serves."""
    for replica in engine.replicas:
        for shape in replica.executor.pieces.shapes:
            yield from (spec for spec in replica.executor.programs.stage(shape) if spec.background)


def change_idle(engine: Engine, mesh: MeshFile | Deployment) -> SwitchRecord:
    """Change the plan of an engine without requests.

    Raises:
        SystemExit: the change was aborted.
    """
    engine.regranularize(mesh)
    while engine.plans.active:
        engine.step()
        engine.plans.wait(POLL_SECONDS)
    record = engine.plans.status().last
    assert record is not None
    if record.state != "done":
        raise SystemExit(f"the first visit of a plan was aborted: {record.error}")
    return record


def describe(record: SwitchRecord) -> dict[str, Any]:
    """What a change's record says, for JSON: times in milliseconds."""
    return {
        "change": change_label(record),
        "devices": [str(device) for device in record.after.devices],
        "state": record.state,
        "error": record.error,
        "milliseconds": {state: 1e3 * seconds for state, seconds in record.seconds.items()},
        "pause_ms": None if record.pause_seconds is None else 1e3 * record.pause_seconds,
        "planned_bytes": record.planned_bytes,
        "parameter_bytes": record.parameter_bytes,
        "kv_bytes": record.kv_bytes,
        "dirty_bytes": record.dirty_bytes,
        "moved_bytes": record.moved_bytes,
        "moved_is_planned_and_dirty": (
            record.moved_bytes == record.planned_bytes + record.dirty_bytes
        ),
        "rounds": record.rounds,
    }
