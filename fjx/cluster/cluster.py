"""The driver's side of a cluster: its workers, and the runs on them."""

from __future__ import annotations

import itertools
import logging
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fjx.cluster.actor import START_SECONDS, Call, Member, results
from fjx.cluster.executor import ClusterExecutor, Driver, run_orders
from fjx.cluster.health.cuts import Cuts
from fjx.cluster.health.monitor import HealthMonitor
from fjx.cluster.messages import PieceOffer, Remote, RunOrder, Setup
from fjx.cluster.nodes import Node, live_nodes, topology_of
from fjx.cluster.wire import Wire
from fjx.cluster.worker import Loaded
from fjx.errors import MeshError, StageLostError
from fjx.pipeline.compiler import Compiler
from fjx.pipeline.programs import Programs
from fjx.sharding.plan.plan import Deployment, Mesh, Plan
from fjx.sharding.topology.topology import Topology
from fjx.wording import listed

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Patience:
    """Limits of the driver's waits, in seconds."""

    beat: float = 5.0
    """A worker without a sign of life for this long counts as lost."""
    step: float = 60.0
    """For a step, compilation on the way included."""
    load: float = 1800.0
    """For a stage to compile its programs and load its parameters."""
    start: float = START_SECONDS
    """For a node to start a worker."""
    mend: float = 600.0
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
        setup: Setup,
        programs: Programs,
        address: str,
        patience: Patience,
        cpu_devices: int,
        known: Topology | None = None,
    ) -> None:
        """
        Args:
            setup: what workers run.
            programs: the same, for the driver.
            address: the driver's network address, for transfers.
            patience: limits of all waits.
            cpu_devices: of a node without GPUs.
            known: what a cluster file says of the nodes.
        """
        self._setup, self._cpu_devices, self._known = setup, cpu_devices, known
        self.patience = patience
        self.members: dict[str, Member] = {}
        """The workers, by the name of their node."""
        # Another driver's worker may get the address of one of ours that has ended: numbers of
        # different drivers are different.
        numbers = itertools.count(secrets.randbits(48))
        compiler = Compiler(cache_dir=None)
        self.driver = Driver(programs, compiler, Wire(address), numbers, patience.step)
        self._runs = itertools.count(1)
        self._cuts = Cuts(patience.beat / 4)
        self._watch = HealthMonitor(self.members, patience.beat, self._cuts)
        self._copies: dict[str, _Copy] = {}
        """Copies of pieces in the host memory of workers that do not run them, by piece."""
        self.loaded: list[Loaded] = []
        """What the workers did for the last run."""

    def nodes(self) -> tuple[Node, ...]:
        """Where workers can run now: the driver and the other nodes reach it."""
        avoided = self._cuts.avoided
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
        members = self.members_of(plan, replica)
        number = next(self._runs)
        old = None if before is None else before.number
        orders = run_orders(plan, members, replica, number, old, keeps_pages)
        executor = ClusterExecutor(self.driver, plan, number, members)
        try:
            self._fill(executor, orders, before, holders, check)
        except BaseException:
            executor.retire()
            raise
        executor.opened = time.monotonic()
        return executor

    def _fill(
        self,
        executor: ClusterExecutor,
        orders: Mapping[Member, RunOrder],
        before: ClusterExecutor | None,
        holders: Sequence[ClusterExecutor],
        check: Callable[[], None] | None,
    ) -> None:
        """Let workers compile a run's programs and load its pieces."""
        limit, moves = self.patience.load, any(order.keeps_pages for order in orders.values())
        compiling = [
            member.call("compile", order, moves, "background" if moves else "warmup")
            for member, order in orders.items()
        ]
        if moves and before is not None:
            compiling += [
                member.call("compile_pages", before.number) for member in set(before.members)
            ]
        results(compiling, limit, check)
        offers = self._offers(executor.plan, executor.members, before, holders)
        self.loaded = results(
            [member.call("load", order, offers[member]) for member, order in orders.items()],
            limit,
            check,
        )
        opening = [member.step("open", executor.number) for member in orders]
        results(opening, self.patience.step)

    def members_of(self, plan: Plan, replica: int) -> list[Member]:
        """The worker of each stage, started where it is not there.

        Raises:
            StageLostError: one does not start.
            MeshError: a node is not there, or a stage is on several.
        """
        nodes = {node.host: node for node in self.nodes()}
        hosts = [_host_of(plan, index) for index in range(len(plan.stages))]
        absent = sorted({host for host in hosts if host not in nodes and host not in self.members})
        if absent:
            raise MeshError(
                f"the plan uses {listed(absent)}, the cluster has {listed(nodes)}; "
                "make a plan of these"
            )
        begun = []
        for host in dict.fromkeys(hosts):
            if host not in self.members:
                held = [index for index, of in enumerate(hosts) if of == host]
                self.members[host] = Member(
                    self._setup, nodes[host], label(replica, held), self.patience.beat
                )
                begun.append(self.members[host])
        try:
            for member in begun:
                member.wait_started(self.patience.start, lambda node: node in self.nodes())
        except BaseException:
            for member in begun:
                self.end_member(member.node.host)
            raise
        return [self.members[host] for host in hosts]

    def slow(self) -> dict[str, float]:
        """How many times as long as usual each of those workers takes that are slow."""
        members = list(self.members.values())
        return {f"{each}": each.slowdown for each in members if each.slowdown is not None}

    def check(self, executor: ClusterExecutor) -> None:
        """Find out which of a run's workers are gone: those that do not answer now."""
        asked = {member: member.beat() for member in executor.members if member.lost is None}
        for member, beat in asked.items():
            try:
                beat.result(self.patience.beat)
            except StageLostError as error:
                member.lose(str(error))

    def end_lost(self) -> None:
        """End the workers that are lost, so that nothing waits for them."""
        for host, member in list(self.members.items()):
            if member.lost is not None:
                self.end_member(host)

    def end_unused(self, executors: Sequence[ClusterExecutor]) -> None:
        """End the workers that hold no stage of these, so that their nodes are free for others."""
        used = {member for executor in executors for member in executor.members}
        for host, member in list(self.members.items()):
            if member not in used:
                self.end_member(host)

    def end_member(self, host: str) -> None:
        """End a worker; those that are left forget it."""
        member = self.members.pop(host)
        member.end()
        self.driver.wire.forget(member.address)
        for other in self.members.values():
            other.forget(member.address)

    def end_all(self) -> None:
        """End all workers; those that are needed again are started again."""
        for host in list(self.members):
            self.members.pop(host).end()

    def close(self) -> None:
        """End all workers, for good."""
        self._watch.stop()
        self.end_all()

    def _offers(
        self,
        plan: Plan,
        members: Sequence[Member],
        before: ClusterExecutor | None,
        holders: Sequence[ClusterExecutor],
    ) -> dict[Member, Mapping[str, PieceOffer]]:
        """Where each worker gets the pieces that another one holds."""
        stays = {} if before is None else dict(holdings(before))
        offers: dict[Member, dict[str, PieceOffer]] = {member: {} for member in members}
        for piece, (member, mesh) in holdings_of(plan, members).items():
            if piece in stays and stays[piece] == (member, mesh):
                continue
            for holder in (*([before] if before else []), *holders):
                source, at = holdings(holder)[piece]
                if source.lost is None:
                    offers[member][piece] = self._offer(
                        source, at.tensor, "offer_params", holder.number, piece
                    )
                    break
            else:
                copy = self._copies.get(piece)
                if copy is not None and copy.is_there:
                    offers[member][piece] = self._offer(
                        copy.keeper, copy.degree, "offer_kept", piece
                    )
        return dict(offers)

    def _offer(self, source: Member, degree: int, method: str, *arguments: Any) -> PieceOffer:
        """Have a worker offer a piece."""
        number = next(self.driver.numbers)
        source.call(method, *arguments, number)
        return PieceOffer(Remote(source.address, number), degree)

    def copy_to_hosts(self, executors: Sequence[ClusterExecutor]) -> None:
        """Have each worker keep the parameters of the next one in its host memory, beside its
        steps: if that one is lost, they need not be read from files."""
        held: dict[Member, dict[str, tuple[ClusterExecutor, int]]] = {}
        for executor in executors:
            for piece, (member, mesh) in holdings(executor).items():
                held.setdefault(member, {}).setdefault(piece, (executor, mesh.tensor))
        members, self._copies = list(held), {}
        for keeper, source in zip(members, [*members[1:], *members[:1]], strict=True):
            if keeper is source:
                return
            offers = {
                piece: self._offer(source, degree, "offer_params", executor.number, piece)
                for piece, (executor, degree) in held[source].items()
            }
            keeping = keeper.call("keep", offers)
            for piece, offer in offers.items():
                self._copies.setdefault(piece, _Copy(keeper, offer.degree, keeping))


@dataclass(frozen=True)
class _Copy:
    """A piece's parameters in the host memory of a worker that does not run it."""

    keeper: Member
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


def holdings(executor: ClusterExecutor) -> dict[str, tuple[Member, Mesh]]:
    """The worker and the mesh of each piece of a run."""
    return holdings_of(executor.plan, executor.members)


def holdings_of(plan: Plan, members: Sequence[Member]) -> dict[str, tuple[Member, Mesh]]:
    """The worker and the mesh of each piece of a plan; ``members``: the worker of each stage."""
    held = {
        f"{granule}": (member, stage.mesh)
        for stage, member in zip(plan.stages, members, strict=True)
        for granule in stage.granules
    }
    first, last = plan.stages[0].mesh, plan.stages[-1].mesh
    return {"embed": (members[0], first), **held, "head": (members[-1], last)}


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
