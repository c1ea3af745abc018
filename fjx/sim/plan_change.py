"""A change of plan without devices: the engine's own goes through its states, and takes the seconds
that the simulation says."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from fjx.pipeline.protocol import Pipeline
from fjx.regranularization.change import ChangeSpec, Check
from fjx.regranularization.plan_runtime import Repaired
from fjx.regranularization.plan_target import Planner
from fjx.regranularization.probe import LOGITS, Probe
from fjx.sharding.plan.plan import Deployment, Plan
from fjx.sim.pipeline import Clock


class SimulatedPlanner:
    """See `fjx.regranularization.plan_target.Planner`: it is told plans, and finds none."""

    def plan(self, target: Plan, current: Deployment | None = None) -> Deployment:
        """See `Planner.plan`."""
        return Deployment((target,))


class SimulatedRuntime:
    """See `fjx.regranularization.plan_runtime.PlanRuntime`."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.next: tuple[float, Callable[[], Pipeline]] | None = None
        """Of the next change: seconds of its pause, and what makes the pipeline that then serves.
        """

    def transport(self, order: ChangeSpec) -> _Transport:
        """See `PlanRuntime`."""
        assert self.next is not None, "nobody has said what the change takes"
        (pause_seconds, taken_over), self.next = self.next, None
        return _Transport(self._clock, pause_seconds, taken_over)

    def refresh(self, planner: Planner) -> Planner:
        """See `PlanRuntime`; there are no devices."""
        return planner

    def repair(
        self, planner: Planner, executors: Sequence[Pipeline], seconds: float, asked: bool
    ) -> Repaired | None:
        """See `PlanRuntime`; nothing is ever lost here."""
        return Repaired(planner, executors)

    def idle(self, executors: Sequence[Pipeline], seconds: float) -> float | None:
        """See `PlanRuntime`."""
        return None

    def slow(self) -> Mapping[str, float]:
        """See `PlanRuntime`."""
        return {}

    def replaced_in_vain(self) -> int:
        """See `PlanRuntime`; nothing is ever lost here."""
        return 0

    def close(self) -> None:
        """See `PlanRuntime`."""


class _Transport:
    """See `fjx.regranularization.change.PlanTransport`: all was brought before, but for what a
    pause brings."""

    probed = LOGITS
    parameter_bytes = 0
    prepared = 1.0

    def __init__(
        self, clock: Clock, pause_seconds: float, taken_over: Callable[[], Pipeline]
    ) -> None:
        self._clock, self._pause_seconds, self._taken_over = clock, pause_seconds, taken_over

    def compile(self, check: Check) -> None:
        """See `PlanTransport`."""

    def load(self, index: int, check: Check) -> _Pages:
        """See `PlanTransport`."""
        return _Pages(self._clock, self._pause_seconds)

    def probe(self, index: int | None) -> Probe:
        """See `PlanTransport`: all plans compute the same."""
        yield from ()
        return np.zeros(1)

    def take_over(self) -> Sequence[Pipeline]:
        """See `PlanTransport`."""
        return [self._taken_over()]

    def give_up(self) -> None:
        """See `PlanTransport`."""


class _Pages:
    """See `fjx.regranularization.change.PageTransport`: what their copies take is in the pause."""

    page_bytes = 0
    arrived = True

    def __init__(self, clock: Clock, pause_seconds: float) -> None:
        self._clock, self._pause_seconds = clock, pause_seconds

    def copy(self, pages: Sequence[int]) -> None:
        """See `PageTransport`."""

    def finish(self) -> bool:
        """See `PageTransport`."""
        return True

    def wait(self) -> None:
        """See `PageTransport`."""
        self._clock.wait(self._pause_seconds)
