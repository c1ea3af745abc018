"""Going from one plan to another on a cluster, while requests are in flight.

The states and the order of things are those of `fjx.regranularization.change`. Here the workers do
the work: they compile and fetch parameters in a thread of their own while steps run in another;
KV pages are offered between two steps and written into the new run beside the steps.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice

import numpy as np

from fjx.cluster.actor import Call, Member, results
from fjx.cluster.cluster import Cluster, holdings
from fjx.cluster.executor import ClusterExecutor
from fjx.cluster.messages import PieceOffer, Remote
from fjx.cluster.probe import Probe
from fjx.outputs import SwitchRecord
from fjx.pipeline.programs import PAGE_COUNTS
from fjx.regranularization.change_state import ChangeState
from fjx.regranularization.dirty_pages import DirtyPages
from fjx.regranularization.plan_runtime import Order

_SLICE_BYTES = 4 << 20
"""KV pages that are under way at once while steps go on."""


@dataclass(frozen=True)
class _Route:
    """Granules that one worker gives to another."""

    source: Member
    target: Member
    degree: int
    """Tensor-parallel degree of their mesh at the source."""
    granules: tuple[str, ...]


@dataclass
class _Moving:
    """What becomes of one replica."""

    old: ClusterExecutor | None
    """None: the replica is new."""
    new: ClusterExecutor
    routes: Sequence[_Route] = ()
    page_bytes: int = 0
    """Bytes that cross for one page."""
    dirty: DirtyPages = field(default_factory=lambda: DirtyPages(()))
    calls: list[Call] = field(default_factory=list)
    """Copies under way."""


class ClusterChange:
    """One change of plan; see `fjx.regranularization.plan_runtime.Change`."""

    def __init__(self, order: Order, cluster: Cluster) -> None:
        self.expected: np.ndarray | None = None
        self._order, self._cluster = order, cluster
        self._old = [each for each in order.executors if isinstance(each, ClusterExecutor)]
        self._moving: list[_Moving] = []
        self._probe: Probe | None = None
        self._bytes = {"parameters": 0, "kv": 0, "dirty": 0}
        self._rounds = 0
        self._pause: float | None = None
        self._counted = False
        self.course = ChangeState(order.number, self._prepare)

    def record(self) -> SwitchRecord:
        """All that there is to say of it now."""
        left = sum(len(each.dirty) for each in self._moving)
        return SwitchRecord(
            number=self._order.number,
            reason=self._order.reason,
            before=self._order.before,
            after=self._order.after,
            state=self.course.state,
            progress=self._progress(left),
            error=self.course.error,
            seconds=self.course.seconds,
            pause_seconds=self._pause,
            planned_bytes=self._bytes["parameters"] + self._bytes["kv"],
            parameter_bytes=self._bytes["parameters"],
            kv_bytes=self._bytes["kv"],
            dirty_bytes=self._bytes["dirty"],
            dirty_pages=left,
            rounds=self._rounds,
        )

    # In the engine's thread, between two steps.

    def wrote(self, replica: int, pages: Sequence[int]) -> None:
        """A step that was just sent to an old replica writes these pages."""
        if self._counted and replica < len(self._moving):
            self._moving[replica].dirty.wrote(pages)

    def advance(self) -> bool:
        """Do a bounded piece of work; whether `switch` may be called now."""
        if self.course.ended or self.course.prepares:
            return False
        try:
            self.course.check_wanted()
            if self._probe is None:
                old, new = self._old[0], [each.new for each in self._moving]
                self._probe = Probe([old, *new])
            if not self._probe.done:
                return False
            if not self._counted:
                self._count_pages()
            return self._copy_slices()
        except Exception as error:
            self._give_up(error)
            return False

    def switch(self) -> list[ClusterExecutor] | None:
        """Copy what is left and give the new executors; no step may be in flight."""
        begun = time.perf_counter()
        self.course.enter("switching")
        try:
            for each in self._moving:
                self._copy(each, each.dirty.take(len(each.dirty)))
            for each in self._moving:
                results(each.calls, self._cluster.patience.step)
        except Exception as error:
            self._give_up(error)
            return None
        executors = [each.new for each in self._moving]
        for old in self._old:
            old.retire()
        self._cluster.end_unused(executors)
        self._cluster.copy_to_hosts(executors)
        self._pause = time.perf_counter() - begun
        self.course.enter("done")
        self._moving, self._old = [], []
        return executors

    def _count_pages(self) -> None:
        order = self._order
        for each, in_use, plan in zip(
            self._moving, order.pages_in_use, order.before.replicas, strict=False
        ):
            if each.page_bytes:
                each.dirty = DirtyPages(in_use(), plan.microbatches)
        self._counted = True

    def _copy_slices(self) -> bool:
        """Copy some pages of each replica; whether what is left is as little as it can be."""
        ready = True
        for each in self._moving:
            if not all(call.done for call in each.calls):
                ready = False
                continue
            results(each.calls, self._cluster.patience.step)
            each.calls = []
            written = each.dirty.written_again()  # it is left for the switch
            if each.page_bytes and len(each.dirty) > written:
                ready = False
                most = max(_SLICE_BYTES // each.page_bytes, 1)
                self._copy(each, each.dirty.take(min(most, len(each.dirty) - written)))
        self._rounds += 1
        return ready

    def _copy(self, moving: _Moving, pages: Sequence[int]) -> None:
        """Begin to copy pages, as the steps sent before leave them."""
        if moving.old is None:
            return
        first = sum(moving.dirty.first_time(page) for page in pages)
        self._bytes["kv"] += first * moving.page_bytes
        self._bytes["dirty"] += (len(pages) - first) * moving.page_bytes
        begin = 0
        while begin < len(pages):
            count = next(count for count in PAGE_COUNTS if count <= len(pages) - begin)
            ids = list(pages[begin : begin + count])
            begin += count
            for route in moving.routes:
                numbers = list(islice(self._cluster.driver.numbers, len(route.granules)))
                offered = PieceOffer(Remote(route.source.address, numbers[0]), route.degree)
                old, new = moving.old.number, moving.new.number
                moving.calls += [
                    route.source.step("offer_pages", old, route.granules, ids, numbers[0]),
                    route.target.call("put_pages", new, route.granules, ids, offered),
                ]

    def _give_up(self, error: Exception) -> None:
        self.course.give_up(error)
        for each in self._moving:
            each.new.retire()
        self._cluster.end_unused(self._old)
        self._moving, self._old = [], []

    def _progress(self, left: int) -> float:
        """Programs with parameters, and pages, count a half each."""
        if self.course.state == "done":
            return 1.0
        if not self._counted:
            return 0.5 * (len(self._moving) / len(self._order.after.replicas))
        total = sum(each.dirty.total for each in self._moving)
        return 1.0 - 0.5 * left / max(total, 1)

    # In a thread of its own.

    def _prepare(self) -> None:
        self.course.enter("compiling")
        for index in range(len(self._order.after.replicas)):
            self.course.check_wanted()
            self._moving.append(self._prepared(index))
        self.course.enter("copying")

    def _prepared(self, index: int) -> _Moving:
        """Let the workers of a replica compile its programs and get its parameters."""
        plan, old = self._order.after.replicas[index], None
        if index < len(self._old):
            old = self._old[index]
        new = self._cluster.open(
            index, plan, old, self._old, keeps_pages=True, check=self.course.check_wanted
        )
        self._bytes["parameters"] += sum(each.fetched_bytes for each in self._cluster.loaded)
        if old is None:
            return _Moving(None, new)
        routes = _routes(old, new)
        return _Moving(old, new, routes, sum(self._page_bytes(route) for route in routes))

    def _page_bytes(self, route: _Route) -> int:
        programs = self._cluster.driver.programs
        depths = [len(programs.model.granules[int(name)]) for name in route.granules]
        pages = [programs.kv_struct(depth) for depth in depths]
        return sum(each.size * each.dtype.itemsize // each.shape[1] for each in pages)


def _routes(old: ClusterExecutor, new: ClusterExecutor) -> list[_Route]:
    """Which granules go from which worker to which, because their mesh changes."""
    before, after = holdings(old), holdings(new)
    grouped: dict[tuple[Member, Member, int], list[str]] = {}
    for name, (target, mesh) in after.items():
        source, held = before[name]
        if name not in ("embed", "head") and (source, held) != (target, mesh):
            grouped.setdefault((source, target, held.tensor), []).append(name)
    return [
        _Route(source, target, degree, tuple(names))
        for (source, target, degree), names in grouped.items()
    ]
