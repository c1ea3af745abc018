"""Where steps are looked at."""

from __future__ import annotations

from fjx.pipeline.bound_mesh import bind, live_devices
from fjx.pipeline.programs import StageShape
from fjx.pipeline.prune_programs import segments_of
from tests.unit.engine.tiny import cpus


def test_a_single_stage_is_looked_at_late_and_several_between_them() -> None:
    at = bind(cpus(0), live_devices())

    def shape(start: int, stop: int, first: bool = True, last: bool = True) -> StageShape:
        return StageShape(at, range(start, stop), first, last)

    assert segments_of([shape(0, 10)]) == (shape(0, 8, last=False), shape(8, 10, first=False))
    assert segments_of([shape(0, 2)]) == (shape(0, 1, last=False), shape(1, 2, first=False))
    assert segments_of([shape(0, 1)]) == (shape(0, 1),)
    stages = shape(0, 4, last=False), shape(4, 8, first=False)
    assert segments_of(stages) == stages
