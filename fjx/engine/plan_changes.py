"""Plans and their changes as the engine sees them: at most one change at a time."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np

from fjx.errors import RegranularizationBusyError
from fjx.outputs import PlanStats, PlanStatus, SwitchRecord
from fjx.pipeline.admission import check_fits
from fjx.pipeline.compiler import Compiler
from fjx.pipeline.executor import Executor
from fjx.pipeline.placement import live_devices
from fjx.pipeline.plan_target import Planner, PlanTarget
from fjx.pipeline.regranularize import Regranularization
from fjx.sharding.plan import Deployment, Device

logger = logging.getLogger(__name__)


class PlanChanges:
    """Owns the deployment that serves and the change that is under way."""

    def __init__(self, deployment: Deployment, planner: Planner, compiler: Compiler) -> None:
        self.deployment = deployment
        self.planner = planner
        self._compiler = compiler
        self._devices: Mapping[Device, jax.Device] = live_devices()
        self._running: Regranularization | None = None
        self._last: SwitchRecord | None = None
        self._number = 0
        self._outcomes: Counter[str] = Counter()
        self._seconds: Counter[str] = Counter()
        self._moved: Counter[str] = Counter()
        self._pauses: list[float] = []
        self._expected: np.ndarray | None = None

    @property
    def active(self) -> bool:
        """Whether a change is under way."""
        return self._running is not None

    def begin(
        self,
        target: PlanTarget,
        reason: str,
        executors: Sequence[Executor],
        pages_in_use: Sequence[Callable[[], Sequence[int]]],
    ) -> SwitchRecord:
        """Begin to change to another plan; see `Regranularization`.

        Raises:
            RegranularizationBusyError: another change is under way.
            MeshError: the target does not suit the machine or the model, or there is not enough
                memory for both plans.
        """
        if self._running is not None:
            raise RegranularizationBusyError(
                f"change of plan {self._number} is {self._running.state}; wait for it or abort it"
            )
        after = self.planner.plan(target, self.deployment)
        check_fits(executors, after, self._devices)
        self._number += 1
        change = Regranularization(
            self._number,
            reason,
            self.deployment,
            after,
            executors,
            pages_in_use,
            self._devices,
            self._expected,
        )
        self._compiler.hold_background(True)
        change.start()
        self._running = change
        logger.info("regranularization %d begins (%s)", self._number, reason)
        return change.record()

    def abort(self, reason: str) -> bool:
        """Ask for an end of the change that is under way; False: there is none."""
        if self._running is None:
            return False
        self._running.abort(reason)
        return True

    def close(self, reason: str) -> None:
        """End the change that is under way, wait for its thread, and let go of its memory."""
        if self._running is None:
            return
        self._running.abort(reason)
        self._running.wait(None)
        self._running.advance()
        self._close_ended()

    def advance(self) -> bool:
        """Do a bounded piece of work between two steps; whether `switch` may be called now."""
        if self._running is None:
            return False
        ready = self._running.advance()
        self._close_ended()
        return ready

    def switch(self) -> list[Executor] | None:
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
            self._running.wait(seconds)

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
        )

    def _close_ended(self) -> None:
        if self._running is None or not self._running.ended:
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
            logger.info(
                "regranularization %d done: %d bytes moved, pause %.1f ms",
                record.number,
                record.moved_bytes,
                1e3 * record.pause_seconds,
            )
