"""Going from one plan to another while requests are in flight.

``planned -> compiling -> copying -> switching -> done``, or ``aborted`` from any state before
``switching``. The old plan serves until the switch, and serves on after an abort: nothing of it is
touched before.

- *Compiling and copying parameters* happen in a thread of their own: programs and parameters do not
  change while steps run.
- *Copying KV pages* happens in the engine's thread, some pages between two steps, so that a copy
  holds what the steps before it wrote. Pages written afterwards are dirty and copied again.
- *Switching* happens between two steps, when no step is in flight: the last dirty pages, then the
  new executors take the place of the old.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from fjx.outputs import SwitchRecord
from fjx.pipeline.protocol import Pipeline
from fjx.regranularization.change_state import ChangeState
from fjx.regranularization.dirty_pages import DirtyPages
from fjx.regranularization.probe import Probe, Probed, compare
from fjx.sharding.plan.plan import Deployment

_SLICE_BYTES = 4 << 20
"""KV pages that are copied between two steps; more, while the dirty ones do not become fewer."""

Check = Callable[[], None]
"""Raises where a change is not to be made any more."""


class ChangeSpec(NamedTuple):
    """What a change is to do."""

    number: int
    """Counts from 1."""
    reason: str
    before: Deployment
    after: Deployment
    executors: Sequence[Pipeline]
    """The executors that serve now, one for each replica of ``before``."""
    pages_in_use: Sequence[Callable[[], Sequence[int]]]
    """For each executor, a function that gives the pages in use."""
    expected: np.ndarray | None
    """What the probe gives, where it is known from an earlier change."""


class PageTransport(Protocol):
    """Copies KV pages of a replica to where the new plan wants them.

    Only the thread that dispatches steps may use it: pages are read as the steps sent before leave
    them.
    """

    page_bytes: int
    """Bytes that cross for one page; 0: the replica begins without pages, or they stay."""

    def copy(self, pages: Sequence[int]) -> None:
        """Begin to copy pages."""

    def finish(self) -> bool:
        """Let pages arrive that are there; whether more may be copied now."""

    @property
    def arrived(self) -> bool:
        """Whether all copies that were begun are done."""

    def wait(self) -> None:
        """Return when all copies that were begun are done."""


class PlanTransport(Protocol):
    """Brings what serves by one plan to where another one wants it: in this process, or from one
    process to another."""

    probed: Probed
    """What the probe compares."""
    parameter_bytes: int
    """Bytes of parameters that have crossed from one device to another so far."""

    @property
    def prepared(self) -> float:
        """How much of all programs and parameters is there, from 0 to 1."""

    # In a thread of its own.

    def compile(self, check: Check) -> None:
        """Compile what the new plan needs; ``check`` is called again and again."""

    def load(self, index: int, check: Check) -> PageTransport:
        """Bring a replica's parameters to where the new plan wants them, one replica after the
        other; gives what copies its pages."""

    # In the engine's thread, between two steps.

    def probe(self, index: int | None) -> Probe:
        """Run the probe through a replica of the new plan; None: through one that serves."""

    def take_over(self) -> Sequence[Pipeline]:
        """The new plan's executors, one for each replica; the old ones are let go."""

    def give_up(self) -> None:
        """Let go of the new plan; the old one serves on."""


@dataclass
class _Replica:
    """What becomes of one replica."""

    pages: PageTransport
    dirty: DirtyPages | None = None
    """None: not counted yet, or the replica is new and begins without pages."""
    left: int = 0
    """Pages that were left to copy after the last slice."""
    slices: int = 1
    """How many slices are copied at once."""


class Regranularization:
    """One change of plan. The engine calls `advance` between steps until it may `switch`."""

    def __init__(self, spec: ChangeSpec, transport: PlanTransport) -> None:
        self.state = ChangeState(spec.number, self._prepare)
        self.expected = spec.expected
        """What the probe gives, where it is known."""
        self._spec, self._transport = spec, transport
        self._new: list[_Replica] = []
        self._bytes = {"kv": 0, "dirty": 0}
        self._planned_kv_bytes = 0
        self._rounds = 0
        self._pause: float | None = None
        self._reached: float | None = None
        self._verification: Iterator[None] | None = None
        self._verified = False

    def record(self) -> SwitchRecord:
        """All that there is to say of it now."""
        spec, moved = self._spec, self._transport.parameter_bytes
        dirty = sum(len(new.dirty) for new in self._new if new.dirty is not None)
        return SwitchRecord(
            number=spec.number,
            reason=spec.reason,
            before=spec.before,
            after=spec.after,
            state=self.state.name,
            progress=self._progress() if self._reached is None else self._reached,
            error=self.state.error,
            seconds=self.state.seconds,
            pause_seconds=self._pause,
            planned_bytes=moved + self._planned_kv_bytes,
            parameter_bytes=moved,
            kv_bytes=self._bytes["kv"],
            dirty_bytes=self._bytes["dirty"],
            dirty_pages=dirty,
            rounds=self._rounds,
        )

    # In the engine's thread, between two steps.

    def wrote(self, replica: int, pages: Sequence[int]) -> None:
        """A step that was just sent to an old replica writes these pages."""
        if replica < len(self._new):
            dirty = self._new[replica].dirty
            if dirty is not None:
                dirty.wrote(pages)

    def advance(self) -> bool:
        """Do a bounded piece of work; whether `switch` may be called now."""
        if self.state.ended or self.state.prepares:
            return False
        try:
            self.state.check_wanted()
            if not self._verified:
                self._verification = self._verification or self._verify()
                next(self._verification, None)
                return False
            return self._copy_slice()
        except Exception as error:
            self._give_up(error)
            return False

    def switch(self) -> Sequence[Pipeline] | None:
        """Copy what is left and give the new executors; no step may be in flight.

        Returns:
            For each replica of the new plan, its executor; None: it failed, the old ones serve on.
        """
        begun = time.perf_counter()
        self.state.enter("switching")
        try:
            for new in self._new:
                if new.dirty is not None:
                    self._copy(new, new.dirty.take(len(new.dirty)))
            for new in self._new:
                new.pages.wait()
        except Exception as error:
            self._give_up(error)
            return None
        executors = self._transport.take_over()
        self._pause = time.perf_counter() - begun
        self.state.enter("done")
        self._forget(reached=1.0)
        return executors

    def _verify(self) -> Iterator[None]:
        """Run the probe through the new plan, some of it between two steps, and compare it with
        what the old one gives; then count the pages."""
        probes = [self._transport.probe(index) for index in range(len(self._new))]
        if self.expected is None:
            self.expected = yield from self._transport.probe(None)
        for number, probe in enumerate(probes, start=1):
            compare(self._transport.probed, number, self.expected, (yield from probe))
        spec = self._spec
        for new, in_use, plan in zip(
            self._new, spec.pages_in_use, spec.before.replicas, strict=False
        ):
            new.dirty = DirtyPages(in_use(), plan.microbatches)
            new.left = len(new.dirty)
            self._planned_kv_bytes += len(new.dirty) * new.pages.page_bytes
        self._verified = True

    def _copy_slice(self) -> bool:
        """Copy some pages of each replica; whether what is left is as little as it can be."""
        ready = True
        for new in self._new:
            if not new.pages.finish():
                ready = False
                continue
            dirty = new.dirty
            if dirty is None or not new.pages.page_bytes:
                continue
            written = dirty.written_again()  # it is left for the switch
            if len(dirty) > written:
                ready = False
                new.slices = 2 * new.slices if len(dirty) > new.left else 1
                new.left = len(dirty)
                count = new.slices * max(_SLICE_BYTES // new.pages.page_bytes, 1)
                self._copy(new, dirty.take(min(count, len(dirty) - written)))
        self._rounds += 1
        return ready and all(new.pages.arrived for new in self._new)

    def _copy(self, new: _Replica, pages: Sequence[int]) -> None:
        assert new.dirty is not None
        if not new.pages.page_bytes:
            return
        new.pages.copy(pages)
        first = sum(new.dirty.first_time(page) for page in pages)
        self._bytes["kv"] += first * new.pages.page_bytes
        self._bytes["dirty"] += (len(pages) - first) * new.pages.page_bytes

    def _give_up(self, error: Exception) -> None:
        self.state.give_up(error)
        reached = self._progress()
        self._transport.give_up()
        self._forget(reached)

    def _forget(self, reached: float) -> None:
        """Let go of both plans' arrays; there will be no more progress."""
        self._reached = reached
        self._new, self._verification = [], None
        self._spec = self._spec._replace(executors=(), pages_in_use=())

    def _progress(self) -> float:
        """Programs with parameters count two thirds, pages one."""
        total = left = 0
        for new in self._new:
            if new.dirty is not None:
                total, left = total + new.dirty.total, left + len(new.dirty)
        pages = 1 - left / max(total, 1) if self._verified else 0.0
        return (2 * self._transport.prepared + pages) / 3

    # In a thread of its own.

    def _prepare(self) -> None:
        check = self.state.check_wanted
        self.state.enter("compiling")
        self._transport.compile(check)
        self.state.enter("copying")
        replicas = range(len(self._spec.after.replicas))
        self._new = [_Replica(self._transport.load(index, check)) for index in replicas]
