"""A model that is served on a cluster: requests find a replica, replicas start, stop and change.

What a system decides it tells the service, which carries it out and takes the time that it takes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import simpy

from fjx.scheduling.balance import even_out
from fjx.scheduling.request import Request
from fjx.sharding.partition.needs import PlanNeed
from fjx.sharding.plan.plan import Device, Plan
from fjx.sim.blocking import Process
from fjx.sim.costs import StageCosts
from fjx.sim.engine_replica import EngineReplica
from fjx.sim.metrics import Outcomes
from fjx.sim.setup import SimSetup
from fjx.sim.sim_cluster import SimCluster
from fjx.sim.sim_replica import SimReplica
from fjx.sim.sim_speculation import DrafterProfile, SimSpeculation
from fjx.sim.steps import ReplicaLimits
from fjx.sim.workload import Workload
from fjx.speculation.policy.lengths import LengthPolicy

_SAMPLES = 200
"""Moments of a run that are kept for its picture."""


class Watcher(Protocol):
    """Hears what a policy wants to know."""

    def arrived(self, now: float) -> None:
        """A request has come."""

    def first_token(self, now: float, seconds: float) -> None:
        """A request got its first token so long after it came."""

    def step(self, now: float, seconds: float) -> None:
        """The tokens of a step came so long after those of the step before."""

    def ended(self, now: float, tokens: int) -> None:
        """A request has ended with so many tokens."""


@dataclass(eq=False)
class Instance:
    """A replica with its devices."""

    plan: Plan
    devices: dict[Device, int]
    """Of the plan, and which of the cluster's they are."""
    replica: SimReplica | EngineReplica
    empty_since: float | None = None


@dataclass(frozen=True)
class ServiceSample:
    """A moment of a run."""

    at: float
    devices: float
    running: int
    waiting: int


class Service:
    """Owns the replicas of one model."""

    def __init__(
        self,
        env: simpy.Environment,
        setup: SimSetup,
        cluster: SimCluster,
        workload: Workload,
        *,
        exact: bool = False,
        drafting: DrafterProfile | None = None,
        lengths: LengthPolicy | None = None,
        seed: int = 0,
    ) -> None:
        """
        Args:
            env: whose clock counts.
            setup: the model and its devices.
            cluster: where replicas run.
            workload: who comes when.
            exact: whether the engine makes every step even where nobody drafts.
            drafting: what drafts; None: nobody does.
            lengths: how long drafts are; by default the engine's own policy.
            seed: of what is drawn.
        """
        self.env, self.setup, self.cluster, self.workload = env, setup, cluster, workload
        self.instances: list[Instance] = []
        self.samples: list[ServiceSample] = []
        """What the run's picture shows."""
        self.changes = 0
        """Of plan, or replicas started."""
        self.preemptions = 0
        self.backlog: list[Request] = []
        """Requests that came while there was no replica."""
        self.rebalances = False
        """Whether a new replica takes over requests that wait at others."""
        self.max_tokens: int | None = None
        """Longest request that a replica's KV memory holds; None: no replica was made yet."""
        self.watchers: list[Watcher] = []
        self.done = env.event()
        self._exact, self._drafting, self._seed = exact, drafting, seed
        self._lengths = lengths
        self._first = np.full(len(workload), np.nan)
        self._end = np.full(len(workload), np.nan)
        self._left = len(workload)

    def begin(self) -> None:
        """Let the requests come."""
        self.env.process(self._arrivals())
        self.env.process(self._sample())

    @property
    def running(self) -> int:
        """Requests in batches."""
        return sum(each.replica.running for each in self.instances)

    @property
    def waiting(self) -> int:
        """Requests in queues."""
        queued = sum(each.replica.num_waiting for each in self.instances)
        return queued + len(self.backlog)

    def outcomes(self, alone: np.ndarray) -> Outcomes:
        """What came of the requests; ``alone``: see `Outcomes`."""
        return Outcomes(
            arrival=np.array([request.arrival for request in self.workload]),
            first=self._first,
            end=self._end,
            output=np.array([request.output for request in self.workload]),
            alone=alone,
        )

    def add_instance(
        self,
        plan: Plan,
        devices: dict[Device, int],
        limits: ReplicaLimits,
        costs: StageCosts | None = None,
    ) -> Instance:
        """A replica that serves from now on."""
        self.max_tokens = limits.kv_tokens
        replica = self._new_replica(limits, costs or self.costs(plan, devices), plan.microbatches)
        instance = Instance(plan, devices, replica)
        self.instances.append(instance)
        waiting, self.backlog = self.backlog, []
        for request in waiting:
            self.route(request)
        if self.rebalances:
            self._rebalance()
        return instance

    def _new_replica(
        self, limits: ReplicaLimits, costs: StageCosts, microbatches: int
    ) -> SimReplica | EngineReplica:
        given = self.env, limits, costs, microbatches, self
        if self._drafting is None and not self._exact:
            return SimReplica(*given)
        speculation = None
        if self._drafting is not None:
            seed = self._seed + len(self.instances)
            speculation = SimSpeculation(self._drafting, seed, self._lengths)
        sizes = (each.prompt + each.output for each in self.workload)
        longest = max((size for size in sizes if size <= limits.kv_tokens), default=1)
        return EngineReplica(*given, longest=longest, speculation=speculation)

    def close(self) -> None:
        """The simulation ends."""
        for instance in self.instances:
            instance.replica.close()

    def start(
        self, plan: Plan, limits: ReplicaLimits, seconds: Callable[[Sequence[int]], float]
    ) -> bool:
        """Begin to start a replica, which takes devices now and serves later; False: there is no
        room.

        Args:
            plan: Its stages.
            limits: Its sizes.
            seconds: From the devices that it gets to how long it takes to start.
        """
        chosen = self.cluster.take(self.need(plan, limits), self.env.now)
        if chosen is None:
            return False
        self.env.process(self._start(plan, chosen, limits, seconds(chosen)))
        return True

    def _start(
        self, plan: Plan, chosen: list[int], limits: ReplicaLimits, seconds: float
    ) -> Process:
        yield self.env.timeout(seconds)
        self.add_instance(plan, dict(zip(plan.devices, chosen, strict=True)), limits)
        self.changes += 1

    def stop(self, instance: Instance) -> Process:
        """Stop a replica; others take over its requests. A process."""
        self.instances.remove(instance)
        requests = yield instance.replica.stop()
        self.preemptions += instance.replica.scheduler.num_preemptions
        self.cluster.give_back(instance.devices.values(), self.env.now)
        for request in requests:
            self.route(request)

    def need(self, plan: Plan, limits: ReplicaLimits) -> PlanNeed:
        """What a replica of this plan and of these sizes needs of its devices."""
        return self.setup.need(plan, limits.kv_tokens)

    def costs(self, plan: Plan, devices: Mapping[Device, int]) -> StageCosts:
        """What a plan's steps cost on these devices, with the links between them."""
        return self.setup.costs(self.cluster.placed(plan, devices), self.cluster.topology)

    def route(self, request: Request) -> None:
        """To the replica with the fewest unfinished requests, as the engine does."""
        if not self.instances:
            self.backlog.append(request)
            return
        min(self.instances, key=lambda each: each.replica.load).replica.add(request)

    def _rebalance(self) -> None:
        """As `Replicas.adopt`."""
        replicas = [each.replica for each in self.instances]
        queues = [each.waiting for each in replicas]
        owners = {request: i for i, queue in enumerate(queues) for request in queue}
        moves = even_out([each.load for each in replicas], queues)
        for request, _ in moves:
            replicas[owners[request]].take(request)
        for request, to in moves:
            replicas[to].add(request)

    def _arrivals(self) -> Process:
        for number, each in enumerate(self.workload):
            if each.arrival > self.env.now:
                yield self.env.timeout(each.arrival - self.env.now)
            if self.max_tokens is not None and each.prompt + each.output > self.max_tokens:
                self._close()  # refused
                continue
            for watcher in self.watchers:
                watcher.arrived(self.env.now)
            self.route(each.to_engine(number, self.env.now))

    def _sample(self) -> Process:
        interval = max(self.workload[-1].arrival, 1.0) / _SAMPLES
        while self._left:
            sample = ServiceSample(self.env.now, self.cluster.held, self.running, self.waiting)
            self.samples.append(sample)
            yield self.env.timeout(interval)

    def first_token(self, request: Request, now: float) -> None:
        """See `Listener`."""
        self._first[request.index] = now
        for watcher in self.watchers:
            watcher.first_token(now, now - request.arrival)

    def ended(self, request: Request, now: float) -> None:
        """See `Listener`."""
        self._end[request.index] = now
        for watcher in self.watchers:
            watcher.ended(now, request.max_len)
        self._close()

    def _close(self) -> None:
        self._left -= 1
        if not self._left:
            self.done.succeed()

    def stepped(self, now: float, seconds: float) -> None:
        """See `Listener`."""
        for watcher in self.watchers:
            watcher.step(now, seconds)
