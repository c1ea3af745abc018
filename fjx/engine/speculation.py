"""Speculation as the engine's step sees it: drafts before a step, and what came of them."""

from __future__ import annotations

from collections.abc import Sequence

from fjx.engine.guarded import Guarded
from fjx.outputs import SpeculationStats
from fjx.scheduling.microbatches import Microbatch, MicrobatchGroup
from fjx.scheduling.request import Request
from fjx.sharding.plan.plan import Plan
from fjx.speculation.runtime.draft_ahead import DraftAhead
from fjx.speculation.runtime.pruning import Pruning
from fjx.speculation.runtime.speculator import Speculator


class NoSpeculation:
    """Drafts nothing: every request gets one row a step."""

    pruning: Pruning | None = None
    may_draft_ahead: DraftAhead | None = None
    steps_behind = 1

    def due(self, groups: Sequence[MicrobatchGroup]) -> bool:
        """See `Speculator.due`."""
        return False

    def draft(self, groups: Sequence[MicrobatchGroup]) -> None:
        """See `Speculator.draft`."""

    def sent(self, step: Sequence[Microbatch]) -> None:
        """See `Speculator.sent`."""

    def observe(
        self, request: Request, confidences: Sequence[float], drafted: int, accepted: int
    ) -> None:
        """See `Speculator.observe`."""

    def observe_step(self, step: Sequence[Microbatch], now: float, tokens: Sequence[int]) -> None:
        """See `Speculator.observe_step`."""

    def forget(self, request: Request) -> None:
        """See `Speculator.forget`."""

    def plan_changed(self, plan: Plan) -> None:
        """See `Speculator.plan_changed`."""

    def check_idle(self) -> None:
        """See `Speculator.check_idle`."""

    def stats(self) -> SpeculationStats | None:
        """See `Speculator.stats`."""
        return None


class Speculation:
    """Asks the speculator, if there is one. Where it fails it is off from then on: that changes how
    fast tokens come, not which."""

    def __init__(self, speculator: Speculator | None) -> None:
        self._guarded = Guarded("speculation", speculator, NoSpeculation())

    @property
    def speculator(self) -> Speculator | None:
        """What drafts; None: speculation is off."""
        return self._guarded.on

    @speculator.setter
    def speculator(self, speculator: Speculator | None) -> None:
        self._guarded.on = speculator

    @property
    def steps_behind(self) -> int:
        """See `Speculator.steps_behind`."""
        return self._guarded.unguarded.steps_behind

    @property
    def pruning(self) -> Pruning | None:
        """See `Speculator.pruning`."""
        return self._guarded.unguarded.pruning

    @property
    def may_draft_ahead(self) -> DraftAhead | None:
        """See `Speculator.may_draft_ahead`."""
        return self._guarded.unguarded.may_draft_ahead

    def due(self, groups: Sequence[MicrobatchGroup]) -> bool:
        """See `Speculator.due`."""
        return self._guarded.ask(lambda speculator: speculator.due(groups))

    def draft(self, groups: Sequence[MicrobatchGroup]) -> None:
        """See `Speculator.draft`."""
        self._guarded.ask(lambda speculator: speculator.draft(groups))

    def sent(self, step: Sequence[Microbatch]) -> None:
        """See `Speculator.sent`."""
        self._guarded.ask(lambda speculator: speculator.sent(step))

    def observe(
        self, request: Request, confidences: Sequence[float], drafted: int, accepted: int
    ) -> None:
        """See `Speculator.observe`."""
        self._guarded.ask(
            lambda speculator: speculator.observe(request, confidences, drafted, accepted)
        )

    def observe_step(self, step: Sequence[Microbatch], now: float, tokens: Sequence[int]) -> None:
        """See `Speculator.observe_step`."""
        self._guarded.ask(lambda speculator: speculator.observe_step(step, now, tokens))

    def forget(self, request: Request) -> None:
        """See `Speculator.forget`."""
        self._guarded.ask(lambda speculator: speculator.forget(request))

    def plan_changed(self, plan: Plan) -> None:
        """See `Speculator.plan_changed`."""
        self._guarded.ask(lambda speculator: speculator.plan_changed(plan))

    def check_idle(self) -> None:
        """See `Speculator.check_idle`."""
        self._guarded.unguarded.check_idle()

    def stats(self) -> SpeculationStats | None:
        """See `Speculator.stats`; None: speculation is off."""
        return self._guarded.unguarded.stats()
