"""The driver's side of a cluster: its workers, and the runs on them."""

from __future__ import annotations

import itertools
import logging
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fjx.cluster.actor import START_SECONDS, Call, WorkerHandle, results
from fjx.cluster.cluster_executor import ClusterExecutor, Driver, run_assignments
from fjx.cluster.health.link_failures import LinkFailures
from fjx.cluster.health.monitor import HealthMonitor
from fjx.cluster.messages import PieceOffer, RemoteArray, RunAssignment, WorkerConfig
from fjx.cluster.nodes import Node, live_nodes, topology_of
from fjx.cluster.transfer_endpoint import TransferEndpoint
from fjx.cluster.worker import LoadReport
from fjx.errors import MeshError, StageLostError
from fjx.pipeline.compiler import Compiler
from fjx.pipeline.programs import Programs
from fjx.sharding.plan.plan import Deployment, Mesh, Plan
from fjx.sharding.topology.topology import Topology
from fjx.wording import listed

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Timeouts:
    """Limits of the driver's waits, in seconds."""

    heartbeat: float = 5.0
    """A worker without a sign of life for this long counts as lost."""
    step: float = 60.0
    """For a step, compilation on the way included."""
    load: float = 1800.0
    """For a stage to compile its programs and load its parameters."""
    start: float = START_SECONDS
    """For a node to start a worker."""
    repair: float = 600.0
    """For lost stages to be replaced, all attempts together; counted while requests wait."""
    pause: float = 2.0
    """From a replacement in vain to the next one, where no request waits; it grows, see
    `RestartBackoff`."""


class Cluster:
    """Starts workers, gives them stages, and ends them.

    Not thread-safe, but for `HealthMonitor`: one thread at a time changes workers and runs.
    """

    def __init__(
        self,
        setup: WorkerConfig,
        programs: Programs,
        address: str,
        timeouts: Timeouts,
        cpu_devices: int,
        known: Topology | None = None,
    ) -> None:
        """
        Args:
            setup: what workers run.
            programs: the same, for the driver.
            address: the driver's network address, for transfers.
            timeouts: limits of all waits.
            cpu_devices: of a node without GPUs.
            known: what a cluster file says of the nodes.
        """
        self._setup, self._cpu_devices, self._known = setup, cpu_devices, known
        self.timeouts = timeouts
        self.workers: dict[str, WorkerHandle] = {}
        """The workers, by the name of their node."""
        # Another driver's worker may get the address of one of ours that has ended: numbers of
        # different drivers are different.
        numbers = itertools.count(secrets.randbits(48))
        compiler = Compiler(cache_dir=None)
        self.driver = Driver(programs, compiler, TransferEndpoint(address), numbers, timeouts.step)
        self._runs = itertools.count(1)
        self._link_failures = LinkFailures(timeouts.heartbeat / 4)
        self._watch = HealthMonitor(self.workers, timeouts.heartbeat, self._link_failures)
        self._copies: dict[str, _HostPieceCopy] = {}
        """Copies of pieces in the host memory of workers that do not run them, by piece."""
        self.loaded: list[LoadReport] = []
        """What the workers did for the last run."""

    def nodes(self) -> tuple[Node, ...]:
        """Where workers can run now: the driver and the other nodes reach it."""
        avoided = self._link_failures.avoided
        return tuple(node for node in live_nodes(self._cpu_devices) if node.host not in avoided)

    def topology(self) -> Topology:
        """The devices of these nodes, and what is known of them.

        Raises:
            UserError: there is no node, or none of its devices may be used.
        """
        found = topology_of(self.nodes())
        return found if self._known is None else found.known_by(self._known)

    def start(self, deployment: Deployment) -> list[ClusterExecutor]:
        """An executor for each replica, ready to run steps.

        Raises:
            StageLostError: a worker does not start, or dies.
            MeshError: a node of the deployment is not there.
        """
        executors = [self.open(replica, plan) for replica, plan in enumerate(deployment.replicas)]
        self.copy_to_hosts(executors)
        self._watch.start()
        return executors

    def open(
        self,
        replica: int,
        plan: Plan,
        before: ClusterExecutor | None = None,
        holders: Sequence[ClusterExecutor] = (),
        *,
        keeps_pages: bool = False,
        check: Callable[[], None] | None = None,
    ) -> ClusterExecutor:
        """Begin a run: start the workers that it needs, let them compile and load.

        Args:
            replica: which one it is of.
            plan: its stages.
            before: the replica's run so far; its parameters stay where they are.
            holders: runs from which parameters may be copied instead of read.
            keeps_pages: ``before`` serves on, and the pages of granules that stay are those of both
                runs. Otherwise the pages of ``before`` are let go.
            check: called while workers are waited for; raises to give up.

        Raises:
            StageLostError: a worker does not start, or dies, or does not answer in time.
            MeshError: a node is not there.
            Exception: what a worker could not do.
        """
        workers = self.workers_of(plan, replica)
        number = next(self._runs)
        old = None if before is None else before.number
        assignments = run_assignments(plan, workers, replica, number, old, keeps_pages)
        executor = ClusterExecutor(self.driver, plan, number, workers)
        try:
            self._fill(executor, assignments, before, holders, check)
        except BaseException:
            executor.retire()
            raise
        executor.opened = time.monotonic()
        return executor

    def _fill(
        self,
        executor: ClusterExecutor,
        assignments: Mapping[WorkerHandle, RunAssignment],
        before: ClusterExecutor | None,
        holders: Sequence[ClusterExecutor],
        check: Callable[[], None] | None,
    ) -> None:
        """Let workers compile a run's programs and load its pieces."""
        limit, moves = (
            self.timeouts.load,
            any(assignment.keeps_pages for assignment in assignments.values()),
        )
        compiling = [
            worker.call("compile", assignment, moves, "background" if moves else "warmup")
            for worker, assignment in assignments.items()
        ]
        if moves and before is not None:
            compiling += [
                worker.call("compile_pages", before.number) for worker in set(before.workers)
            ]
        results(compiling, limit, check)
        offers = self._offers(executor.plan, executor.workers, before, holders)
        self.loaded = results(
            [
                worker.call("load", assignment, offers[worker])
                for worker, assignment in assignments.items()
            ],
            limit,
            check,
        )
        opening = [worker.step("open", executor.number) for worker in assignments]
        results(opening, self.timeouts.step)

    def workers_of(self, plan: Plan, replica: int) -> list[WorkerHandle]:
        """The worker of each stage, started where it is not there.

        Raises:
            StageLostError: one does not start.
            MeshError: a node is not there, or a stage is on several.
        """
        nodes = {node.host: node for node in self.nodes()}
        hosts = [_host_of(plan, index) for index in range(len(plan.stages))]
        absent = sorted({host for host in hosts if host not in nodes and host not in self.workers})
        if absent:
            raise MeshError(
                f"the plan uses {listed(absent)}, the cluster has {listed(nodes)}; "
                "make a plan of these"
            )
        begun = []
        for host in dict.fromkeys(hosts):
            if host not in self.workers:
                held = [index for index, of in enumerate(hosts) if of == host]
                self.workers[host] = WorkerHandle(
                    self._setup, nodes[host], label(replica, held), self.timeouts.heartbeat
                )
                begun.append(self.workers[host])
        try:
            for worker in begun:
                worker.wait_started(self.timeouts.start, lambda node: node in self.nodes())
        except BaseException:
            for worker in begun:
                self.end_worker(worker.node.host)
            raise
        return [self.workers[host] for host in hosts]

    def slow(self) -> dict[str, float]:
        """How many times as long as usual each of those workers takes that are slow."""
        workers = list(self.workers.values())
        return {f"{each}": each.slowdown for each in workers if each.slowdown is not None}

    def check(self, executor: ClusterExecutor) -> None:
        """Find out which of a run's workers are gone: those that do not answer now."""
        asked = {worker: worker.heartbeat() for worker in executor.workers if worker.lost is None}
        for worker, heartbeat in asked.items():
            try:
                heartbeat.result(self.timeouts.heartbeat)
            except StageLostError as error:
                worker.lose(str(error))

    def end_lost(self) -> None:
        """End the workers that are lost, so that nothing waits for them."""
        for host, worker in list(self.workers.items()):
            if worker.lost is not None:
                self.end_worker(host)

    def end_unused(self, executors: Sequence[ClusterExecutor]) -> None:
        """End the workers that hold no stage of these, so that their nodes are free for others."""
        used = {worker for executor in executors for worker in executor.workers}
        for host, worker in list(self.workers.items()):
            if worker not in used:
                self.end_worker(host)

    def end_worker(self, host: str) -> None:
        """End a worker; those that are left forget it."""
        worker = self.workers.pop(host)
        worker.end()
        self.driver.endpoint.forget(worker.address)
        for other in self.workers.values():
            other.forget(worker.address)

    def end_all(self) -> None:
        """End all workers; those that are needed again are started again."""
        for host in list(self.workers):
            self.workers.pop(host).end()

    def close(self) -> None:
        """End all workers, for good."""
        self._watch.stop()
        self.end_all()

    def _offers(
        self,
        plan: Plan,
        workers: Sequence[WorkerHandle],
        before: ClusterExecutor | None,
        holders: Sequence[ClusterExecutor],
    ) -> dict[WorkerHandle, Mapping[str, PieceOffer]]:
        """Where each worker gets the pieces that another one holds."""
        stays = {} if before is None else dict(holdings(before))
        offers: dict[WorkerHandle, dict[str, PieceOffer]] = {worker: {} for worker in workers}
        for piece, (worker, mesh) in holdings_of(plan, workers).items():
            if piece in stays and stays[piece] == (worker, mesh):
                continue
            for holder in (*([before] if before else []), *holders):
                source, at = holdings(holder)[piece]
                if source.lost is None:
                    offers[worker][piece] = self._offer(
                        source, at.tensor, "offer_params", holder.number, piece
                    )
                    break
            else:
                copy = self._copies.get(piece)
                if copy is not None and copy.is_there:
                    offers[worker][piece] = self._offer(
                        copy.keeper, copy.degree, "offer_kept", piece
                    )
        return dict(offers)

    def _offer(self, source: WorkerHandle, degree: int, method: str, *arguments: Any) -> PieceOffer:
        """Have a worker offer a piece."""
        number = next(self.driver.numbers)
        source.call(method, *arguments, number)
        return PieceOffer(RemoteArray(source.address, number), degree)

    def copy_to_hosts(self, executors: Sequence[ClusterExecutor]) -> None:
        """Have each worker keep the parameters of the next one in its host memory, beside its
        steps: if that one is lost, they need not be read from files."""
        held: dict[WorkerHandle, dict[str, tuple[ClusterExecutor, int]]] = {}
        for executor in executors:
            for piece, (worker, mesh) in holdings(executor).items():
                held.setdefault(worker, {}).setdefault(piece, (executor, mesh.tensor))
        workers, self._copies = list(held), {}
        for keeper, source in zip(workers, [*workers[1:], *workers[:1]], strict=True):
            if keeper is source:
                return
            offers = {
                piece: self._offer(source, degree, "offer_params", executor.number, piece)
                for piece, (executor, degree) in held[source].items()
            }
            keeping = keeper.call("keep", offers)
            for piece, offer in offers.items():
                self._copies.setdefault(piece, _HostPieceCopy(keeper, offer.degree, keeping))


@dataclass(frozen=True)
class _HostPieceCopy:
    """A piece's parameters in the host memory of a worker that does not run it."""

    keeper: WorkerHandle
    degree: int
    keeping: Call
    """Gives the bytes that are kept."""

    @property
    def is_there(self) -> bool:
        """Whether it can be fetched."""
        if self.keeper.lost is not None or not self.keeping.done:
            return False
        try:
            return bool(self.keeping.result(0))
        except Exception as error:
            logger.warning("%s keeps no copies: %s", self.keeper, error)
            return False


def holdings(executor: ClusterExecutor) -> dict[str, tuple[WorkerHandle, Mesh]]:
    """The worker and the mesh of each piece of a run."""
    return holdings_of(executor.plan, executor.workers)


def holdings_of(
    plan: Plan, workers: Sequence[WorkerHandle]
) -> dict[str, tuple[WorkerHandle, Mesh]]:
    """The worker and the mesh of each piece of a plan; ``workers``: the worker of each stage."""
    held = {
        f"{granule}": (worker, stage.mesh)
        for stage, worker in zip(plan.stages, workers, strict=True)
        for granule in stage.granules
    }
    first, last = plan.stages[0].mesh, plan.stages[-1].mesh
    return {"embed": (workers[0], first), **held, "head": (workers[-1], last)}


def label(replica: int, stages: Sequence[int]) -> str:
    """What a worker is called, in Ray's dashboard, too: the stages that it is started for."""
    numbers = f"stages {stages[0]}-{stages[-1]}" if len(stages) > 1 else f"stage {stages[0]}"
    return numbers if replica == 0 else f"{numbers} of replica {replica}"


def _host_of(plan: Plan, index: int) -> str:
    """The node of a stage.

    Raises:
        MeshError: it is on several.
    """
    hosts = sorted({device.host for device in plan.stages[index].mesh.devices})
    if len(hosts) > 1:
        raise MeshError(
            f"stage {index} is on {listed(hosts)}; the devices of a stage must be on one node"
        )
    return hosts[0]
