"""Plans and their changes as the engine sees them: at most one change at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from fjx.engine.change_log import ChangeLog
from fjx.errors import RegranularizationBusyError
from fjx.outputs import PlanStats, PlanStatus, SwitchRecord
from fjx.pipeline.compiler import Compiler
from fjx.pipeline.protocol import Pipeline
from fjx.regranularization.change import ChangeSpec, Regranularization
from fjx.regranularization.plan_runtime import LocalPlanRuntime, PlanRuntime
from fjx.regranularization.plan_target import Planner, PlanTarget
from fjx.sharding.plan.plan import Deployment

_REPLACE_SECONDS = 0.02
"""How long one step waits for what replaces a lost stage."""


class PlanChanges:
    """Owns the deployment that serves and the change that is under way."""

    def __init__(
        self,
        deployment: Deployment,
        planner: Planner,
        compiler: Compiler,
        plan_runtime: PlanRuntime | None = None,
    ) -> None:
        """``plan_runtime``: where plans run; None: in this process."""
        self.deployment = deployment
        self.planner = planner
        self._compiler = compiler
        self.plan_runtime = plan_runtime or LocalPlanRuntime()
        self._running: Regranularization | None = None
        self._last: SwitchRecord | None = None
        self._number = 0
        self._outcomes: Counter[str] = Counter()
        self._seconds: Counter[str] = Counter()
        self._moved: Counter[str] = Counter()
        self._pauses: list[float] = []
        self._expected: np.ndarray | None = None
        self._log = ChangeLog()

    @property
    def active(self) -> bool:
        """Whether a change is under way."""
        return self._running is not None

    def begin(
        self,
        target: PlanTarget,
        reason: str,
        executors: Sequence[Pipeline],
        pages_in_use: Sequence[Callable[[], Sequence[int]]],
    ) -> SwitchRecord:
        """Begin to change to another plan; see `Regranularization`.

        Raises:
            RegranularizationBusyError: another change is under way.
            MeshError: the target does not suit the machine or the model, or there is not enough
                memory for both plans.
        """
        if self._running is not None:
            state = self._running.state.name
            raise RegranularizationBusyError(
                f"change of plan {self._number} is {state}; wait for it or abort it"
            )
        self.planner = self.plan_runtime.refresh(self.planner)
        after = self.planner.plan(target, self.deployment)
        spec = ChangeSpec(
            self._number + 1,
            reason,
            self.deployment,
            after,
            executors,
            pages_in_use,
            self._expected,
        )
        change = Regranularization(spec, self.plan_runtime.transport(spec))
        self._number = spec.number
        self._compiler.hold_background(True)
        change.state.start()
        self._running = change
        self._log.begun(change.record())
        return change.record()

    def abort(self, reason: str) -> bool:
        """Ask for an end of the change that is under way; False: there is none."""
        if self._running is None:
            return False
        self._running.state.abort(reason)
        return True

    def close(self, reason: str) -> None:
        """End the change that is under way, wait for its thread, and let go of its memory."""
        self._end_change(reason)
        self.plan_runtime.close()

    def _end_change(self, reason: str) -> None:
        if self._running is None:
            return
        self._running.state.abort(reason)
        self._running.state.wait(None)
        self._running.advance()
        self._close_ended()

    def replace_lost(
        self, executors: Sequence[Pipeline], needed: bool
    ) -> Sequence[Pipeline] | None:
        """Work for a moment on a replacement for executors that are lost; a change under way is
        given up.

        Args:
            executors: of all replicas.
            needed: whether requests wait for it.

        Returns:
            An executor for each replica; None: they are not there yet.

        Raises:
            StageLostError: there will be none.
        """
        self._end_change("a stage was lost")
        seconds = _REPLACE_SECONDS if needed else 0.0
        repaired = self.plan_runtime.repair(self.planner, executors, seconds, needed)
        if repaired is None:
            return None
        self.planner = repaired.planner
        self.deployment = Deployment(tuple(each.plan for each in repaired.executors))
        return repaired.executors

    def idle(self, executors: Sequence[Pipeline], seconds: float) -> float | None:
        """The engine has been idle for ``seconds``; see `PlanRuntime.idle`."""
        return self.plan_runtime.idle(executors, seconds)

    def advance(self) -> bool:
        """Do a bounded piece of work between two steps; whether `switch` may be called now."""
        if self._running is None:
            return False
        ready = self._running.advance()
        if self._log.is_due and not self._running.state.ended:
            self._log.progress(self._running.record())
        self._close_ended()
        return ready

    def switch(self) -> Sequence[Pipeline] | None:
        """Finish the change, while no step is in flight; see `Regranularization.switch`."""
        assert self._running is not None
        after = self._running.record().after
        executors = self._running.switch()
        if executors is not None:
            self.deployment = after
        self._close_ended()
        return executors

    def wrote(self, replica: int, pages: Sequence[int]) -> None:
        """A step that was just sent writes these pages of a replica."""
        if self._running is not None:
            self._running.wrote(replica, pages)

    def wait(self, seconds: float) -> None:
        """Wait a while for what goes on in the background."""
        if self._running is not None:
            self._running.state.wait(seconds)

    def status(self) -> PlanStatus:
        """What serves, and what becomes of it."""
        running = None if self._running is None else self._running.record()
        return PlanStatus(self.deployment, running, self._last)

    def stats(self, decisions: Mapping[str, int] | None = None) -> PlanStats:
        """Counters since the start, with those of the policy's decisions."""
        running = None if self._running is None else self._running.record()
        return PlanStats(
            stages=self.deployment.replicas[0].granularity,
            devices=len(self.deployment.devices),
            replicas=len(self.deployment.replicas),
            switches=dict(self._outcomes),
            switch_seconds=dict(self._seconds),
            pauses=tuple(self._pauses),
            moved_bytes=dict(self._moved),
            dirty_pages=0 if running is None else running.dirty_pages,
            decisions=dict(decisions or {}),
            slow=dict(self.plan_runtime.slow()),
            replaced_in_vain=self.plan_runtime.replaced_in_vain(),
        )

    def _close_ended(self) -> None:
        if self._running is None or not self._running.state.ended:
            return
        self._expected = self._running.expected
        self._last = record = self._running.record()
        self._running = None
        self._compiler.hold_background(False)
        self._outcomes[record.state] += 1
        self._seconds.update(record.seconds)
        self._moved.update(
            parameters=record.parameter_bytes, kv=record.kv_bytes, dirty=record.dirty_bytes
        )
        if record.pause_seconds is not None:
            self._pauses.append(record.pause_seconds)
        self._log.ended(record)
