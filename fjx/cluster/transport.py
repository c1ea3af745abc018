"""A change of plan on a cluster: the workers do the work.

They compile and fetch parameters in a thread of their own while steps run in another; KV pages are
offered between two steps and written into the new run beside the steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from fjx.cluster.actor import Call, WorkerHandle, results
from fjx.cluster.cluster import Cluster, holdings
from fjx.cluster.cluster_executor import ClusterExecutor
from fjx.cluster.messages import PieceOffer, RemoteArray
from fjx.errors import StageLostError
from fjx.pipeline.batch import Batch
from fjx.pipeline.limits import Limits
from fjx.pipeline.programs import PAGE_COUNTS
from fjx.pipeline.step_output import StepOutput
from fjx.regranularization.change import ChangeSpec, Check, PageTransport
from fjx.regranularization.probe import LOG_PROBABILITIES, Probe, two_tokens


class ClusterTransport:
    """Has workers compile, fetch and copy; see `PlanTransport`."""

    probed = LOG_PROBABILITIES

    def __init__(self, spec: ChangeSpec, cluster: Cluster) -> None:
        self.parameter_bytes = 0
        self._plans, self._cluster = spec.after.replicas, cluster
        self._old = [each for each in spec.executors if isinstance(each, ClusterExecutor)]
        self._new: list[ClusterExecutor] = []

    @property
    def prepared(self) -> float:
        """See `PlanTransport`."""
        return len(self._new) / len(self._plans)

    def compile(self, check: Check) -> None:
        """See `PlanTransport`; a run's workers get its parameters, too."""
        for index, plan in enumerate(self._plans):
            check()
            old = self._old_of(index)
            self._new.append(
                self._cluster.open(index, plan, old, self._old, keeps_pages=True, check=check)
            )
            self.parameter_bytes += sum(each.fetched_bytes for each in self._cluster.loaded)

    def load(self, index: int, check: Check) -> PageTransport:
        """See `PlanTransport`; the parameters are there."""
        return _WorkerPages(self._cluster, self._old_of(index), self._new[index])

    def _old_of(self, index: int) -> ClusterExecutor | None:
        return self._old[index] if index < len(self._old) else None

    def probe(self, index: int | None) -> Probe:
        """See `PlanTransport`; it is sent at once."""
        executor = self._old[0] if index is None else self._new[index]
        return _answer(executor, executor.dispatch(_probe(executor.limits)))

    def take_over(self) -> Sequence[ClusterExecutor]:
        """See `PlanTransport`."""
        for old in self._old:
            old.retire()
        self._cluster.end_unused(self._new)
        self._cluster.copy_to_hosts(self._new)
        return self._new

    def give_up(self) -> None:
        """See `PlanTransport`."""
        for new in self._new:
            new.retire()
        self._cluster.end_unused(self._old)


@dataclass(frozen=True)
class _Route:
    """Granules that one worker gives to another."""

    source: WorkerHandle
    target: WorkerHandle
    degree: int
    """Tensor-parallel degree of their mesh at the source."""
    granules: tuple[str, ...]


class _WorkerPages:
    """Copies a replica's pages from worker to worker; see `PageTransport`."""

    def __init__(self, cluster: Cluster, old: ClusterExecutor | None, new: ClusterExecutor) -> None:
        """``old``: None: the replica is new."""
        self._cluster, self._new = cluster, new.number
        self._old = 0 if old is None else old.number
        self._routes = [] if old is None else _routes(old, new)
        self._calls: list[Call] = []
        """Copies under way."""
        self.page_bytes = sum(self._page_bytes(route) for route in self._routes)

    def copy(self, pages: Sequence[int]) -> None:
        """See `PageTransport`."""
        begin = 0
        while begin < len(pages):
            count = next(count for count in PAGE_COUNTS if count <= len(pages) - begin)
            ids = list(pages[begin : begin + count])
            begin += count
            for route in self._routes:
                numbers = list(islice(self._cluster.driver.numbers, len(route.granules)))
                offered = PieceOffer(RemoteArray(route.source.address, numbers[0]), route.degree)
                self._calls += [
                    route.source.step("offer_pages", self._old, route.granules, ids, numbers[0]),
                    route.target.call("put_pages", self._new, route.granules, ids, offered),
                ]

    def finish(self) -> bool:
        """See `PageTransport`; one slice is under way at once."""
        if not all(call.done for call in self._calls):
            return False
        self.wait()
        return True

    @property
    def arrived(self) -> bool:
        """See `PageTransport`."""
        return all(call.done for call in self._calls)

    def wait(self) -> None:
        """See `PageTransport`.

        Raises:
            StageLostError: a worker is lost, and the copies with it.
        """
        results(self._calls, self._cluster.timeouts.step)
        self._calls = []

    def _page_bytes(self, route: _Route) -> int:
        programs = self._cluster.driver.programs
        depths = [len(programs.model.granules[int(name)]) for name in route.granules]
        pages = [programs.kv_struct(depth) for depth in depths]
        return sum(each.size * each.dtype.itemsize // each.shape[1] for each in pages)


def _routes(old: ClusterExecutor, new: ClusterExecutor) -> list[_Route]:
    """Which granules go from which worker to which, because their mesh changes."""
    before, after = holdings(old), holdings(new)
    grouped: dict[tuple[WorkerHandle, WorkerHandle, int], list[str]] = {}
    for name, (target, mesh) in after.items():
        source, held = before[name]
        if name not in ("embed", "head") and (source, held) != (target, mesh):
            grouped.setdefault((source, target, held.tensor), []).append(name)
    return [
        _Route(source, target, degree, tuple(names))
        for (source, target, degree), names in grouped.items()
    ]


def _answer(executor: ClusterExecutor, output: StepOutput) -> Probe:
    """Log-probabilities of the likeliest tokens after the probe.

    Raises:
        StageLostError: a stage is lost.
    """
    while not output.tokens.is_ready():
        if executor.failure is not None:
            raise StageLostError(executor.failure)  # what it promised may never come
        yield
    output.read_tokens()
    _, _, best, _ = output.read_logprobs()
    first: np.ndarray = best[0]
    return first


def _probe(limits: Limits) -> Batch:
    layout = limits.layout(limits.row_buckets[0])
    return Batch(
        packed=two_tokens(layout),
        num_rows=layout.rows,
        num_samples=1,
        sample_bucket=limits.coarse_sample_buckets[0],
        sampling=None,
        edits=None,
        pending_slot=None,
        logprobs=True,
        scored=np.full(layout.samples, -1, np.int32),
    )
