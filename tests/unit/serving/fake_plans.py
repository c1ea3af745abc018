"""The plans of a FakeLLM: eight granules, on CPU devices that do not exist."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Mapping
from typing import Any

from fjx import PlanStatus, RegranularizationBusyError, RegranularizationError, SwitchRecord
from fjx.sharding.plan.plan import Deployment, Device, Mesh, Plan, Stage
from fjx.sharding.plan.plan_json import deployment_from_json
from fjx.sharding.planner.mesh_file import load_mesh

GRANULES = 8


def even(stages: int) -> Deployment:
    """So many stages of one device each."""
    bounds = [GRANULES * index // stages for index in range(stages + 1)]
    return Deployment(
        (
            Plan(
                tuple(
                    Stage(range(bounds[i], bounds[i + 1]), Mesh((Device("localhost", "cpu", i),)))
                    for i in range(stages)
                )
            ),
        )
    )


class FakePlans:
    """One plan at a time; a change of it takes ``seconds`` and ends as ``failure`` says.

    Like an engine at its worst, it aborts a change whose caller is cancelled.
    """

    def __init__(self) -> None:
        self.status = PlanStatus(even(1))
        self.seconds = 0.0
        self.refuse: Exception | None = None
        """Raised instead of beginning a change."""
        self.failure: str | None = None
        """Why changes are aborted."""
        self.asked: list[tuple[Any, bool]] = []
        """Targets, and whether to wait."""
        self.ended = 0
        self._change: asyncio.Task[None] | None = None

    async def change(self, target: int | str | Mapping[str, Any], wait: bool) -> SwitchRecord:
        self.asked.append((target, wait))
        if self.refuse is not None:
            raise self.refuse
        after = _deployment(target)
        if self.status.switch is not None:
            raise RegranularizationBusyError("change 1 is copying; abort it or wait")
        self.status = PlanStatus(
            self.status.deployment,
            SwitchRecord(1, "request", self.status.deployment, after, "copying", progress=0.5),
        )
        self._change = asyncio.create_task(self._run())
        if wait:
            try:
                await self._change
            except asyncio.CancelledError:
                self._end("aborted", "aborted on request")
                raise RegranularizationError("aborted on request") from None
            assert self.status.last is not None
            if self.status.last.error is not None:
                raise RegranularizationError(self.status.last.error)
            return self.status.last
        assert self.status.switch is not None
        return self.status.switch

    def abort(self) -> bool:
        if self._change is None or self.status.switch is None:
            return False
        self._end("aborted", "aborted on request")
        return self._change.cancel()

    async def _run(self) -> None:
        await asyncio.sleep(self.seconds)
        self._end("aborted" if self.failure else "done", self.failure)

    def _end(self, state: Any, error: str | None) -> None:
        switch = self.status.switch
        if switch is None:
            return
        self.ended += 1
        record = dataclasses.replace(switch, state=state, error=error)
        after = switch.after if state == "done" else switch.before
        self.status = PlanStatus(after, None, record)


def _deployment(target: int | str | Mapping[str, Any]) -> Deployment:
    if isinstance(target, int):
        return even(target)
    if isinstance(target, str):
        return even(len(load_mesh(target).stages))
    return deployment_from_json(target)
