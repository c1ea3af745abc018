"""A change of plan as the engine makes it: copy while the old plan serves, then a short pause."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from fjx.sharding.costs.difference import difference
from fjx.sharding.plan.plan import Deployment, Device, Plan
from fjx.sim.blocking import Process
from fjx.sim.hardware import Storage
from fjx.sim.loads import CopySeconds, copy_seconds
from fjx.sim.service import Instance, Service
from fjx.sim.steps import ReplicaLimits


@dataclass(frozen=True, kw_only=True)
class Switching:
    """What changes of plan cost.

    The pause and the slow-down are those that `benchmarks/regranularize.py` measured on a CPU, the
    pause rounded up: there a change stopped 16 requests for 2 to 8 ms.
    """

    prepare_seconds: float = 0.1
    """Planning, and programs that were compiled before."""
    pause_seconds: float = 0.01
    """Of the switch, besides the dirty pages."""
    slowdown: float = 0.2
    """Share of the service that is lost while bytes are copied, 0 to 1."""
    copies_ahead: bool = True
    """Whether KV pages are copied while the old plan serves; otherwise during the pause."""
    loads_ahead: bool = True
    """Likewise for parameters; otherwise it is a restart."""
    from_host_memory: bool = True
    """Whether each host keeps the parameters in its memory."""
    storage: Storage = field(default_factory=Storage)
    free: bool = False
    """Whether a change costs nothing: for bounds."""


class Deployed:
    """Owns a deployment of a service, and changes it."""

    def __init__(
        self, service: Service, deployment: Deployment, limits: ReplicaLimits, switching: Switching
    ) -> None:
        """Start with a deployment that serves at once.

        Raises:
            RuntimeError: the cluster has no room for it.
        """
        self.deployment = deployment
        self.changing = False
        self._service, self._limits, self._switching = service, limits, switching
        self._instances: list[Instance] = []
        self._devices: dict[Device, int] = {}
        if not self._allocate(deployment):
            raise RuntimeError(f"the cluster has no {len(deployment.devices)} devices to start on")
        self._grow(deployment)

    def change(self, after: Deployment) -> None:
        """Begin to change to another deployment, if there are devices for it."""
        if self._allocate(after):
            self.changing = True
            self._service.env.process(self._change(after))

    def _allocate(self, after: Deployment) -> bool:
        """Take the devices that a deployment needs on top."""
        before = dict(self._devices)
        if all(self._take_plan(plan) for plan in after.replicas):
            return True
        taken = [self._devices[device] for device in self._devices.keys() - before.keys()]
        self._service.cluster.give_back(taken, self._service.env.now)
        self._devices = before
        return False

    def _take_plan(self, plan: Plan) -> bool:
        """Place the stages of one plan that have no devices yet; the others stay where they are."""
        cluster, need = self._service.cluster, self._service.need(plan, self._limits)
        absent = []
        for stage, needed in zip(plan.stages, need.stages, strict=True):
            held = [self._devices[d] for d in stage.mesh.devices if d in self._devices]
            if not held:
                absent.append((stage, needed))
            elif len(held) < needed.tensor or len({cluster.devices[i].host for i in held}) > 1:
                return False  # shards that are to be on one host, and are not
        if not absent:
            return True
        chosen = cluster.take(
            replace(need, stages=tuple(each for _, each in absent)), self._service.env.now
        )
        if chosen is None:
            return False
        wanted = [device for stage, _ in absent for device in stage.mesh.devices]
        self._devices |= dict(zip(wanted, chosen, strict=True))
        return True

    def _change(self, after: Deployment) -> Process:
        env, switching, pause = self._service.env, self._switching, 0.0
        if not switching.free:
            copying = self._copying(after)
            ahead = switching.prepare_seconds
            ahead += copying.parameters if switching.loads_ahead else 0.0
            ahead += copying.kv if switching.copies_ahead else 0.0
            yield from self._copy(ahead)
            pause = switching.pause_seconds
            pause += self._dirty_seconds(after) if switching.copies_ahead else copying.kv
            pause += 0.0 if switching.loads_ahead else copying.parameters
        common = min(len(self.deployment.replicas), len(after.replicas))
        switched = []
        for instance, plan in zip(self._instances[:common], after.replicas, strict=False):
            costs = self._service.costs(plan, self._devices)
            switched.append(instance.replica.switch(costs, plan.microbatches, pause))
            instance.plan = plan
        yield env.all_of(switched)
        self._grow(after)
        for instance in self._instances[len(after.replicas) :]:
            instance.devices = {}  # given back below, as far as no other replica has them
            yield from self._service.stop(instance)
        del self._instances[len(after.replicas) :]
        self.deployment = after
        self._give_back(after)
        self.changing = False
        self._service.changes += 1

    def _copy(self, seconds: float) -> Process:
        for instance in self._instances:
            instance.replica.slow_down(1 / (1 - self._switching.slowdown))
        yield self._service.env.timeout(seconds)
        for instance in self._instances:
            instance.replica.slow_down(1.0)

    def _copying(self, after: Deployment) -> CopySeconds:
        pools = [each.replica.scheduler.pool for each in self._instances]
        tokens = [round(p.usage * (p.num_pages - 1)) * p.page_size for p in pools]
        return self._seconds(after, tokens)

    def _dirty_seconds(self, after: Deployment) -> float:
        """To copy once more the page that each running request has written since."""
        size = self._limits.page_size
        return self._seconds(after, [each.replica.running * size for each in self._instances]).kv

    def _seconds(self, after: Deployment, kv_tokens: list[int]) -> CopySeconds:
        moved = difference(self.deployment, after, self._service.setup.graph, kv_tokens)
        return copy_seconds(
            moved,
            self._devices,
            self._service.cluster,
            self._switching.storage,
            from_host_memory=self._switching.from_host_memory,
        )

    def _grow(self, after: Deployment) -> None:
        """Let the replicas serve that were not there before, and note where each one is."""
        for plan in after.replicas[len(self._instances) :]:
            held = {device: self._devices[device] for device in plan.devices}
            self._instances.append(self._service.add_instance(plan, held, self._limits))
        for instance, plan in zip(self._instances, after.replicas, strict=False):
            instance.devices = {device: self._devices[device] for device in plan.devices}

    def _give_back(self, after: Deployment) -> None:
        gone = set(self._devices) - set(after.devices)
        self._service.cluster.give_back([self._devices[d] for d in gone], self._service.env.now)
        for device in gone:
            del self._devices[device]
