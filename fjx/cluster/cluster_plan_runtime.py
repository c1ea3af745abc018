"""A cluster as the place where an engine's plans run."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Sequence
from dataclasses import replace

from fjx.cluster.cluster import Cluster
from fjx.cluster.cluster_executor import ClusterExecutor
from fjx.cluster.health.restart_backoff import RestartBackoff
from fjx.cluster.transport import ClusterTransport
from fjx.errors import MeshError, RegranularizationBusyError, StageLostError
from fjx.pipeline.protocol import Pipeline
from fjx.regranularization.change import ChangeSpec, PlanTransport
from fjx.regranularization.plan_runtime import Repaired
from fjx.regranularization.plan_target import Planner
from fjx.sharding.plan.plan import Deployment, Device, Plan
from fjx.sharding.planner.planner import even_mesh

logger = logging.getLogger(__name__)

_ASKED_SECONDS = 2.0
"""The longest pause between two attempts where requests wait."""
_CHECK_SECONDS, _REPAIR_SECONDS = 1.0, 0.1
"""How often an idle engine looks whether a worker is lost, and whether its replacement is there."""
_MAX_FRUITLESS = 3


class ClusterPlanRuntime:
    """Replaces what is lost, and changes plans across nodes."""

    def __init__(self, cluster: Cluster, idle_seconds: float | None = None) -> None:
        """
        Args:
            cluster: where.
            idle_seconds: without work after which all workers end; None: they stay.
        """
        self.cluster = cluster
        self._idle_seconds = idle_seconds
        self._repair: _Repair | None = None
        self._backoff = RestartBackoff(cluster.timeouts.pause)
        self._fruitless = 0
        self._sleeps = False
        """Whether all workers have ended because there was no work."""
        self.repairs: list[float] = []
        """Seconds that each replacement of lost stages took."""

    def transport(self, spec: ChangeSpec) -> PlanTransport:
        """See `PlanRuntime`."""
        if any(each.lost for each in spec.executors):
            raise RegranularizationBusyError("lost stages are being replaced; try again later")
        return ClusterTransport(spec, self.cluster)

    def refresh(self, planner: Planner) -> Planner:
        """See `PlanRuntime`: nodes come and go."""
        return replace(planner, topology=self.cluster.topology())

    def repair(
        self, planner: Planner, executors: Sequence[Pipeline], seconds: float, asked: bool
    ) -> Repaired | None:
        """See `PlanRuntime`."""
        if self._repair is None:
            ours = [each for each in executors if isinstance(each, ClusterExecutor)]
            lost = [each for each in ours if each.lost]
            if not self._sleeps:
                self._backoff.lost(lost)
                self._count_fruitless(lost, asked)
            self._repair = _Repair(self.cluster, planner, ours, self._backoff)
        repair, self._sleeps = self._repair, False
        repair.wait(seconds, asked)
        if repair.error is not None:
            self._repair = None
            raise StageLostError(repair.error)
        if repair.repaired is not None:
            self._repair = None
            self._backoff.replaced(repair.replacements)
            self.repairs.append(repair.seconds)
        return repair.repaired

    def _count_fruitless(self, lost: Sequence[ClusterExecutor], asked: bool) -> None:
        """Give up where what replaces lost stages is lost, too, before it has brought what was
        asked of it.

        Raises:
            StageLostError: it was so several times in a row.
        """
        if any(each.brought for each in lost):
            self._fruitless = 0
        elif any(each.steps for each in lost):
            self._fruitless += 1
        if asked and self._fruitless > _MAX_FRUITLESS:
            raise StageLostError(
                f"stages were replaced {_MAX_FRUITLESS} times, and no step has succeeded since; "
                f"at last: {lost[0].failure}"
            )

    def idle(self, executors: Sequence[Pipeline], seconds: float) -> float | None:
        """See `PlanRuntime`: in the end all workers end, and their devices are free for others."""
        if self._sleeps:
            return None
        if any(each.lost for each in executors):
            return _REPAIR_SECONDS
        left = math.inf if self._idle_seconds is None else self._idle_seconds - seconds
        if left > 0:
            return min(left, _CHECK_SECONDS)
        logger.info("idle for %.0f s: all workers end until there is work", seconds)
        for each in executors:
            if isinstance(each, ClusterExecutor):
                each.fail("its worker has ended, because there was no work")
        self.cluster.end_all()
        self._sleeps = True
        return None

    def slow(self) -> dict[str, float]:
        """See `PlanRuntime`."""
        return self.cluster.slow()

    def replaced_in_vain(self) -> int:
        """See `PlanRuntime`."""
        return self._backoff.vain

    def close(self) -> None:
        """See `PlanRuntime`: ends all workers."""
        if self._repair is not None:
            self._repair.stop()
        self.cluster.close()


class _Repair:
    """Replaces lost stages, in a thread of its own: the engine goes on with other replicas, and
    answers.

    While requests wait, it tries again soon, and gives up in the end; otherwise it takes its time.
    """

    def __init__(
        self,
        cluster: Cluster,
        planner: Planner,
        executors: Sequence[ClusterExecutor],
        backoff: RestartBackoff,
    ) -> None:
        self._cluster, self._planner, self._backoff = cluster, planner, backoff
        self._executors = list(executors)
        self._begun = time.monotonic()
        self._asked: float | None = None
        """When requests began to wait, in seconds of `time.monotonic`; None: none wait."""
        self._stopped = threading.Event()
        self.repaired: Repaired | None = None
        self.replacements: list[ClusterExecutor] = []
        self.error: str | None = None
        self.seconds = 0.0
        self._thread = threading.Thread(target=self._run, name="fjx-repair", daemon=True)
        self._thread.start()

    def wait(self, seconds: float, asked: bool) -> None:
        """Wait a while for its end; ``asked``: whether requests wait for it."""
        if not asked:
            self._asked = None
        elif self._asked is None:
            self._asked = time.monotonic()
        self._thread.join(seconds)

    def stop(self) -> None:
        """End it."""
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        while True:
            self._wait_for_next_attempt()
            try:
                self._check_wanted()
                self.repaired = self._attempt()
                self.seconds = time.monotonic() - self._begun
                logger.info("lost stages are replaced, after %.1f s", self.seconds)
                return
            except Exception as error:
                self._backoff.failed()
                late = self._is_late or self._stopped.is_set()
                logger.warning("replacing lost stages failed: %s", error, exc_info=late)
                if late:
                    self.error = str(error) or repr(error)
                    return

    @property
    def _is_late(self) -> bool:
        asked = self._asked
        return asked is not None and time.monotonic() > asked + self._cluster.timeouts.repair

    def _wait_for_next_attempt(self) -> None:
        """Return when it is time for the next attempt."""
        begun, pause = time.monotonic(), self._backoff.pause
        if pause > _ASKED_SECONDS:
            logger.warning(
                "stages were replaced %d times in vain: the next attempt is in %.0f s, "
                "or when a request waits for it", self._backoff.vain, pause,
            )  # fmt: skip
        while not self._stopped.is_set():
            longest = pause if self._asked is None else min(pause, _ASKED_SECONDS)
            left = begun + longest - time.monotonic()
            if left <= 0:
                return
            self._stopped.wait(min(left, _REPAIR_SECONDS))

    def _check_wanted(self) -> None:
        if self._stopped.is_set():
            raise StageLostError("the engine ends")

    def _attempt(self) -> Repaired:
        cluster = self._cluster
        for executor in self._executors:
            if executor.lost:
                cluster.check(executor)
        cluster.end_lost()
        planner = replace(self._planner, topology=cluster.topology())
        plans = self._plans(planner)
        serving = list(self._executors)
        for index, (executor, plan) in enumerate(zip(self._executors, plans, strict=True)):
            if executor.lost:
                holders = [each for each in self._executors if not each.lost]
                serving[index] = cluster.open(
                    index, plan, executor, holders, check=self._check_wanted
                )
                executor.retire()
        self.replacements = [each for each in serving if each not in self._executors]
        cluster.copy_to_hosts(serving)
        return Repaired(planner, serving)

    def _plans(self, planner: Planner) -> list[Plan]:
        """The plan of each replica: as it was, where all of its nodes are there; others get a new
        one on the devices that nobody else uses."""
        there = {state.device for state in planner.topology.devices}
        plans = [executor.plan for executor in self._executors]
        if all(set(plan.devices) <= there for plan in plans):
            return plans
        for index, plan in enumerate(plans):
            if not set(plan.devices) <= there:
                others = {d for i, each in enumerate(plans) if i != index for d in each.devices}
                plans[index] = _smaller(planner, plan, others)
        Deployment(tuple(plans))
        return plans


def _smaller(planner: Planner, plan: Plan, taken: set[Device]) -> Plan:
    """A plan with as many stages as there are devices for, at most as many as there were.

    Raises:
        MeshError: there is no device left, or too little memory.
    """
    states = tuple(s for s in planner.topology.devices if s.device not in taken)
    if not states:
        raise MeshError("no device is left for the stages that are lost; add a node")
    planner = replace(planner, topology=replace(planner.topology, devices=states))
    tensor = plan.stages[0].mesh.tensor
    stages = min(plan.granularity, len(states) // tensor) or 1
    mesh = replace(even_mesh(stages, tensor=tensor), microbatches=min(plan.microbatches, stages))
    (smaller,) = planner.plan(mesh, Deployment((plan,))).replicas
    return smaller
