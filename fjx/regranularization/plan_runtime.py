"""Where plans run: what an engine asks of it, and this process as the usual answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import jax

from fjx.pipeline.bound_mesh import live_devices
from fjx.pipeline.executor import Executor
from fjx.pipeline.protocol import Pipeline
from fjx.regranularization.change import ChangeSpec, PlanTransport
from fjx.regranularization.in_process import LocalTransport
from fjx.regranularization.memory_check import check_fits
from fjx.regranularization.plan_target import Planner
from fjx.sharding.plan.plan import Device


class Repaired(NamedTuple):
    """What serves after stages were lost."""

    planner: Planner
    """Knows the devices that are left."""
    executors: Sequence[Pipeline]
    """One for each replica."""


class PlanRuntime(Protocol):
    """Where plans run: in this process, or on a cluster."""

    def transport(self, spec: ChangeSpec) -> PlanTransport:
        """What brings executors and pages to where another plan wants them.

        Raises:
            MeshError: there is not enough memory for both plans, or a device is not there.
        """

    def refresh(self, planner: Planner) -> Planner:
        """The planner for the devices that are there now."""

    def repair(
        self, planner: Planner, executors: Sequence[Pipeline], seconds: float, asked: bool
    ) -> Repaired | None:
        """Work for a while on a replacement for those executors that are lost; None: it is not
        there yet.

        Args:
            planner: for the devices that were there.
            executors: all, lost or not.
            seconds: for which to wait for it.
            asked: whether requests wait for it.

        Raises:
            StageLostError: there will be none.
        """

    def idle(self, executors: Sequence[Pipeline], seconds: float) -> float | None:
        """The engine has been idle for ``seconds``. Pipelines may be given up: they count as lost
        then, and `repair` brings others when there is work.

        Returns:
            Seconds until the next call, before which lost pipelines are to be replaced; None: no
            further call is needed, and lost pipelines are not to be replaced.
        """

    def slow(self) -> Mapping[str, float]:
        """The slow stages by name, each with how many times as long as usual it takes."""

    def replaced_in_vain(self) -> int:
        """How many replacements in a row failed, or were lost before they had served."""

    def close(self) -> None:
        """Let go of everything."""


class LocalPlanRuntime:
    """Plans run on this process's devices."""

    def __init__(self) -> None:
        self._devices: Mapping[Device, jax.Device] = live_devices()

    def transport(self, spec: ChangeSpec) -> PlanTransport:
        """See `PlanRuntime`."""
        executors = [each for each in spec.executors if isinstance(each, Executor)]
        in_use = [len(pages()) for pages in spec.pages_in_use]
        check_fits(executors, spec.after, self._devices, in_use)
        return LocalTransport(executors, spec.after, self._devices)

    def refresh(self, planner: Planner) -> Planner:
        """See `PlanRuntime`; they are always the same."""
        return planner

    def repair(
        self, planner: Planner, executors: Sequence[Pipeline], seconds: float, asked: bool
    ) -> Repaired | None:
        """See `PlanRuntime`; nothing is ever lost here."""
        return Repaired(planner, executors)

    def idle(self, executors: Sequence[Pipeline], seconds: float) -> float | None:
        """See `PlanRuntime`; this process keeps its devices."""
        return None

    def slow(self) -> Mapping[str, float]:
        """See `PlanRuntime`; nobody looks."""
        return {}

    def replaced_in_vain(self) -> int:
        """See `PlanRuntime`; nothing is ever lost here."""
        return 0

    def close(self) -> None:
        """See `PlanRuntime`; the process ends with its memory."""
