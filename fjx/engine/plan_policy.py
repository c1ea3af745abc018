"""The granularity policy as the engine's step sees it: it hears what happens, and changes plans."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

from fjx.engine.guarded import Guarded
from fjx.engine.plan_changes import PlanChanges
from fjx.engine.replicas import Replicas
from fjx.errors import MeshError, RegranularizationError
from fjx.granularity.autopilot import Autopilot
from fjx.outputs import SwitchRecord
from fjx.regranularization.plan_target import PlanTarget

logger = logging.getLogger(__name__)


class NoAutopilot:
    """Never changes a plan."""

    interval: float | None = None

    def __init__(self) -> None:
        self.decisions: Mapping[str, int] = {}

    def arrived(self, now: float) -> None:
        """See `Autopilot.arrived`."""

    def first_token(self, now: float, seconds: float) -> None:
        """See `Autopilot.first_token`."""

    def step(self, now: float, seconds: float) -> None:
        """See `Autopilot.step`."""

    def ended(self, now: float, tokens: int) -> None:
        """See `Autopilot.ended`."""


class PlanPolicy:
    """Asks the autopilot, if there is one. Where it fails, plans stay as they are from then on."""

    def __init__(self, autopilot: Autopilot | None) -> None:
        self._guarded = Guarded("the granularity policy", autopilot, NoAutopilot())

    @property
    def autopilot(self) -> Autopilot | None:
        """What decides; None: plans are changed on request only."""
        return self._guarded.on

    @autopilot.setter
    def autopilot(self, autopilot: Autopilot | None) -> None:
        self._guarded.on = autopilot

    @property
    def interval(self) -> float | None:
        """Seconds between two of its decisions; None: it makes none."""
        return self._guarded.unguarded.interval

    @property
    def decisions(self) -> Mapping[str, int]:
        """Made since the start, by reason."""
        return self._guarded.unguarded.decisions

    def arrived(self, now: float) -> None:
        """See `Autopilot.arrived`."""
        self._guarded.ask(lambda autopilot: autopilot.arrived(now))

    def first_token(self, now: float, seconds: float) -> None:
        """See `Autopilot.first_token`."""
        self._guarded.ask(lambda autopilot: autopilot.first_token(now, seconds))

    def step(self, now: float, seconds: float) -> None:
        """See `Autopilot.step`."""
        self._guarded.ask(lambda autopilot: autopilot.step(now, seconds))

    def ended(self, now: float, tokens: int) -> None:
        """See `Autopilot.ended`."""
        self._guarded.ask(lambda autopilot: autopilot.ended(now, tokens))

    def adjust(
        self,
        now: float,
        plans: PlanChanges,
        replicas: Replicas,
        change: Callable[[PlanTarget, str], SwitchRecord],
    ) -> None:
        """Let the autopilot look at the engine, if it is time, and begin the change that it wants.

        Args:
            now: by the engine's clock.
            plans: tell what serves.
            replicas: tell what is asked for.
            change: begins one, for a reason.
        """

        def decide(autopilot: Autopilot | NoAutopilot) -> None:
            if isinstance(autopilot, NoAutopilot) or not autopilot.due(now):
                return
            decision = autopilot.observe_and_decide(
                now,
                serving=plans.deployment,
                switching=plans.active,
                running=replicas.num_running,
                waiting=replicas.num_waiting,
                kv_usage=replicas.kv_usage,
                preemptions=replicas.counts["preemptions"],
            )
            if decision.target is None:
                return
            target = autopilot.ladder.rung(decision.target).deployment
            try:
                change(target, decision.reason)
            except (MeshError, RegranularizationError) as error:
                logger.warning("the policy's change to %s was refused: %s", decision.target, error)

        self._guarded.ask(decide)
