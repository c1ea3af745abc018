"""The systems that are compared, behind one protocol."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from fjx.granularity.autopilot import Autopilot
from fjx.granularity.ladder import Ladder
from fjx.granularity.policy import PolicyConfig
from fjx.sharding.plan.plan import Deployment
from fjx.sim.blocking import Process
from fjx.sim.changes import Deployed, Switching
from fjx.sim.hardware import Storage
from fjx.sim.loads import Tier, load_seconds
from fjx.sim.service import Instance, Service

LOOK_SECONDS = 1.0
"""From one look of a system at its service to the next."""


class System(Protocol):
    """Decides how a model is served."""

    @property
    def name(self) -> str:
        """In tables."""

    def run(self, service: Service) -> Process:
        """Start what serves at the beginning, and decide from then on. A process."""


@dataclass(frozen=True, kw_only=True)
class Static:
    """One deployment for good, chosen by someone else: AlpaServe's plans do not change while they
    serve.

    With shares below 1 it is spatial sharing as in MuxServe: another model has the rest of each
    device. Prefill needs arithmetic, of which it gets its share; decoding needs bandwidth, of which
    a part of the multiprocessors can use most (MuxServe, arXiv:2404.02015, figure 3).
    """

    name: str
    """See `System`."""
    deployment: Deployment
    kv_tokens: int
    compute_share: float = 1.0
    memory_share: float = 1.0

    def run(self, service: Service) -> Process:
        """Start, and leave it at that."""
        limits = service.setup.limits(self.kv_tokens)
        for plan in self.deployment.replicas:
            need = service.need(plan, limits)
            chosen = service.cluster.take(need, service.env.now, self.compute_share)
            if chosen is None:
                raise RuntimeError(
                    f"{self.name}: the cluster has no room for {need.devices} devices"
                )
            devices = dict(zip(plan.devices, chosen, strict=True))
            costs = service.costs(plan, devices).shared(self.compute_share, self.memory_share)
            service.add_instance(plan, devices, limits, costs)
        yield service.done


@dataclass(frozen=True, kw_only=True)
class Elastic:
    """fjx: the engine's own autopilot, with its policy and its ladder, changes the deployment."""

    name: str
    """See `System`."""
    ladder: Ladder
    kv_tokens: int
    policy: PolicyConfig
    switching: Switching = field(default_factory=Switching)
    first: str | None = None
    """The rung to begin with; by default the coarsest."""
    rebalances: bool = True
    """Whether new replicas take their share of the waiting requests, as in the engine."""

    def run(self, service: Service) -> Process:
        """Look once a second, as the engine does."""
        env, limits = service.env, service.setup.limits(self.kv_tokens)
        autopilot = Autopilot(self.ladder, self.policy, None, env.now)
        service.watchers.append(autopilot)
        service.rebalances = self.rebalances
        rung = self.ladder.rung(self.first or self.ladder.rungs[0].name)
        deployed = Deployed(service, rung.deployment, limits, self.switching)
        while not service.done.triggered:
            if autopilot.due(env.now):
                self._look(service, autopilot, deployed)
            yield env.timeout(autopilot.interval)

    def _look(self, service: Service, autopilot: Autopilot, deployed: Deployed) -> None:
        """As `Engine.adjust_plan`."""
        replicas = [each.replica for each in service.instances]
        for replica in replicas:
            replica.catch_up()
        usage = sum(each.scheduler.pool.usage for each in replicas) / len(replicas)
        preempted = sum(each.scheduler.num_preemptions for each in replicas)
        decision = autopilot.observe_and_decide(
            service.env.now,
            serving=deployed.deployment,
            switching=deployed.changing,
            running=service.running,
            waiting=service.waiting,
            kv_usage=min(max(usage, 0.0), 1.0),
            preemptions=service.preemptions + preempted,
        )
        if decision.target is not None:
            deployed.change(autopilot.ladder.rung(decision.target).deployment)


@dataclass(frozen=True, kw_only=True)
class Foresight:
    """Perfect foresight: it knows who will come, changes for nothing, and takes the rung with the
    fewest devices that serves them."""

    name: str
    """See `System`."""
    ladder: Ladder
    kv_tokens: int
    seconds: float = 5.0
    """How far it looks ahead."""
    utilization: float = 0.6
    """Of a rung's throughput that it uses."""

    def run(self, service: Service) -> Process:
        """Choose a rung every second."""
        env, limits = service.env, service.setup.limits(self.kv_tokens)
        coming = deque((each.arrival, each.prompt + each.output) for each in service.workload)
        near: deque[tuple[float, int]] = deque()
        first = self.ladder.rungs[0].deployment
        service.rebalances = True
        deployed = Deployed(service, first, limits, Switching(free=True))
        mean = sum(tokens for _, tokens in coming) / len(coming)
        while not service.done.triggered:
            while coming and coming[0][0] < env.now + self.seconds:
                near.append(coming.popleft())
            while near and near[0][0] < env.now:
                near.popleft()
            tokens = sum(size for _, size in near) + service.waiting * mean
            wanted = tokens / self.seconds / self.utilization
            rung = next(
                (r for r in self.ladder.rungs if r.tokens_per_second >= wanted),
                self.ladder.rungs[-1],
            )
            if not deployed.changing and rung.deployment != deployed.deployment:
                deployed.change(rung.deployment)
            yield env.timeout(LOOK_SECONDS)


@dataclass(frozen=True, kw_only=True)
class ScaleOut:
    """Replicas of one plan, started when requests pile up and stopped when they are empty.

    With parameters on the hosts' disks this is ServerlessLLM (arXiv:2401.14351); a host that had a
    replica before still has them in its memory. With ``max_num_seqs`` it is Tetris (ATC '22):
    functions with small batches, whose tensors come from networked storage.
    """

    name: str
    """See `System`."""
    deployment: Deployment
    """One replica."""
    kv_tokens: int
    first_tier: Tier
    """Where parameters are the first time that a host needs them."""
    target: int
    """Requests of each replica above which another one is started."""
    most: int
    """Replicas."""
    keep_seconds: float = 60.0
    """For how long an empty replica is kept."""
    max_num_seqs: int | None = None
    """In a batch; None: as many as in other systems."""
    storage: Storage = field(default_factory=Storage)

    def run(self, service: Service) -> Process:
        """Look once a second."""
        env = service.env
        service.rebalances = True  # they have one queue for all replicas
        limits = service.setup.limits(self.kv_tokens)
        if self.max_num_seqs is not None:
            limits = replace(limits, max_num_seqs=self.max_num_seqs)
        plan = self.deployment.replicas[0]
        parameters = [
            size
            for size, stage in zip(service.setup.parameter_bytes(plan), plan.stages, strict=True)
            for _ in stage.mesh.devices
        ]
        warm: set[str] = set()

        def seconds(chosen: Sequence[int]) -> float:
            hosts = {service.cluster.devices[index].host for index in chosen}
            tier: Tier = "host" if hosts <= warm else self.first_tier
            warm.update(hosts)
            return load_seconds(parameters, chosen, service.cluster, tier, self.storage)

        service.start(plan, limits, lambda _: 0.0)
        begun = 1
        yield env.timeout(0)
        while not service.done.triggered:
            load = service.running + service.waiting
            wanted = min(max(math.ceil(load / self.target), 1), self.most)
            while begun < wanted and service.start(plan, limits, seconds):
                begun += 1
            for instance in list(service.instances):
                if self._is_left(instance, env.now) and begun > wanted:
                    begun -= 1
                    env.process(service.stop(instance))
            yield env.timeout(LOOK_SECONDS)

    def _is_left(self, instance: Instance, now: float) -> bool:
        """Whether a replica has been empty for long enough."""
        if instance.replica.load:
            instance.empty_since = None
            return False
        if instance.empty_since is None:
            instance.empty_since = now
        return now - instance.empty_since >= self.keep_seconds
