"""One thread that steps an engine and stamps what each step brings."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from fjx.engine.engine import Engine, Progress
from fjx.outputs import SwitchRecord

STATES = ("planned", "compiling", "copying", "switching")


@dataclass
class Streams:
    """What the clients of an engine have got, with times of ``time.perf_counter``."""

    tokens: dict[str, list[int]] = field(default_factory=dict)
    stamps: dict[str, list[float]] = field(default_factory=dict)
    """When each token came."""
    ended: dict[str, str] = field(default_factory=dict)
    """Finish reasons."""

    def take(self, progress: Sequence[Progress]) -> None:
        """Stamp what a step brought; call it as soon as the step returns."""
        now = time.perf_counter()
        for each in progress:
            self.tokens.setdefault(each.request.id, []).extend(each.token_ids)
            stamps = self.stamps.setdefault(each.request.id, [])
            stamps.extend([now] * len(each.token_ids))
            if each.finish_reason is not None:
                self.ended[each.request.id] = each.finish_reason

    def step(self, engine: Engine) -> list[Progress]:
        """Run one step, and stamp it."""
        progress = engine.step()
        self.take(progress)
        return progress

    def gaps(self, begin: float = float("-inf"), end: float = float("inf")) -> list[Gap]:
        """All inter-token gaps that touch a span of time."""
        return [
            Gap(a, b)
            for stamps in self.stamps.values()
            for a, b in pairwise(stamps)
            if b > begin and a < end
        ]


@dataclass(frozen=True, order=True)
class Gap:
    """From one token of a request to its next."""

    begin: float
    end: float

    @property
    def seconds(self) -> float:
        """How long the client waited."""
        return self.end - self.begin


@dataclass(frozen=True)
class ChangeClock:
    """A change of plan on the clock of the tokens."""

    asked: float
    """When the engine was asked, before it planned."""
    begin: float
    """When the plan was there."""

    @classmethod
    def start(cls, asked: float, record: SwitchRecord) -> ChangeClock:
        """From the record that beginning the change has just returned."""
        return cls(asked, time.perf_counter() - sum(record.seconds.values()))

    def phases(self, record: SwitchRecord) -> list[tuple[str, float, float]]:
        """State, begin and end of each state of a change that has ended."""
        phases, begin = [("planned", self.asked, self.begin)], self.begin
        for state in STATES:
            seconds = record.seconds.get(state, 0.0)
            phases.append((state, begin, begin + seconds))
            begin += seconds
        return phases

    def end(self, record: SwitchRecord) -> float:
        """When it ended."""
        return self.begin + sum(record.seconds.values())

    def state_of(self, gap: Gap, record: SwitchRecord) -> str:
        """In which state a gap fell: that of the switch if it holds the switch, otherwise the one
        that it shares the most time with."""
        phases = self.phases(record)
        _, switch_begin, switch_end = phases[-1]
        if gap.begin <= switch_end and gap.end >= switch_begin:
            return "switching"
        if gap.begin > switch_end:
            return "after"
        return max(phases, key=lambda phase: min(phase[2], gap.end) - max(phase[1], gap.begin))[0]
