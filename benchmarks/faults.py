"""What is done to a cluster's workers, and what it is like until all is well again.

Each fault takes a `Scene` and returns what was measured, JSON-able.
"""

from __future__ import annotations

import os
import random
import signal
import statistics
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from local_cluster.networks import Network
from local_cluster.workers import is_running, pid_of, stopped_mostly

from fjx.cluster.actor import WorkerHandle
from fjx.cluster.cluster_plan_runtime import ClusterPlanRuntime
from fjx.cluster.health.link_failures import KEPT_SECONDS
from fjx.engine.engine import Engine
from fjx.errors import MeshError
from fjx.sampling_params import SamplingParams

PATIENCE_SECONDS = 300.0
"""Without a token, or what else is waited for, after which the run counts as hanging."""
ANSWER_SECONDS = 30.0
STOPPED_SECONDS, RUNNING_SECONDS = 0.1, 0.02
"""Of a slow worker, again and again."""
REJOIN_SECONDS = 15.0
"""For a node that was cut off to be found again."""
RATE_SECONDS = 8.0
"""Over which tokens are counted."""


class Load:
    """Keeps requests in flight, and their tokens as they stream."""

    def __init__(
        self, engine: Engine, prompts: Sequence[list[int]], tokens: int, count: int
    ) -> None:
        """``tokens``: of each request; ``count``: of requests in flight."""
        self.engine, self.prompts, self._tokens, self._count = engine, prompts, tokens, count
        self.streams: dict[str, tuple[int, list[int]]] = {}
        """For each request, which prompt it has, and the tokens so far."""
        self.finished: set[str] = set()
        self.last_token = time.monotonic()
        """When any request got one."""
        self.num_tokens = 0

    def step(self, keep_up: bool = True) -> None:
        """Run a step; ``keep_up``: with as many requests in flight as there should be."""
        while keep_up and self.unfinished < self._count:
            number = len(self.streams)
            kind = number % len(self.prompts)
            self.engine.add(f"{number}", self.prompts[kind], params_of(kind, self._tokens))
            self.streams[f"{number}"] = kind, []
        for progress in self.engine.step():
            self.streams[progress.request.id][1].extend(progress.token_ids)
            self.num_tokens += len(progress.token_ids)
            self.last_token = time.monotonic()
            if progress.finish_reason is not None:
                self.finished.add(progress.request.id)
        if time.monotonic() - self.last_token > PATIENCE_SECONDS:
            raise RuntimeError(f"no token for {PATIENCE_SECONDS:g} s")

    @property
    def unfinished(self) -> int:
        """Requests in flight."""
        return len(self.streams) - len(self.finished)

    def until(self, happened: Callable[[], object]) -> float:
        """Serve until something has happened: the seconds that it took."""
        begun = time.monotonic()
        while not happened():
            self.step()
            if time.monotonic() > begun + PATIENCE_SECONDS:
                raise RuntimeError(f"waited {PATIENCE_SECONDS:g} s")
        return time.monotonic() - begun

    def rate(self) -> float:
        """Tokens a second, over a while."""
        before, until = self.num_tokens, time.monotonic() + RATE_SECONDS
        seconds = self.until(lambda: time.monotonic() > until)
        return (self.num_tokens - before) / seconds


def params_of(kind: int, tokens: int) -> SamplingParams:
    """How the requests of a prompt are sampled."""
    temperature = 0.0 if kind % 2 else 0.8
    return SamplingParams(
        temperature=temperature, top_p=0.95, seed=kind, max_tokens=tokens, ignore_eos=True
    )


@dataclass(frozen=True)
class Scene:
    """Where faults happen."""

    load: Load
    plan_runtime: ClusterPlanRuntime
    draw: random.Random
    networks: Mapping[str, Network]
    """Of the nodes that can be cut off, by name."""
    start_node: Callable[[str], None]
    """Starts such a node again."""

    def choose(self, hosts: Collection[str] | None = None) -> WorkerHandle:
        """One of the workers; ``hosts``: of those on these nodes."""
        workers = self.plan_runtime.cluster.workers
        return workers[self.draw.choice(sorted(workers.keys() & (hosts or workers)))]

    def recover(self) -> float:
        """Serve until what is lost now is replaced and brings tokens."""
        begun, repairs = time.monotonic(), len(self.plan_runtime.repairs)
        self.load.until(lambda: len(self.plan_runtime.repairs) > repairs)
        repaired = time.monotonic()
        self.load.until(lambda: self.load.last_token > repaired)
        return self.load.last_token - begun


def kill(scene: Scene) -> dict[str, Any]:
    """A worker's process is killed."""
    worker = scene.choose()
    os.kill(pid_of(worker, ANSWER_SECONDS), signal.SIGKILL)
    return {"worker": str(worker), "recovery_seconds": scene.recover()}


def hang(scene: Scene) -> dict[str, Any]:
    """A worker's process is stopped for good."""
    worker = scene.choose()
    pid = pid_of(worker, ANSWER_SECONDS)
    os.kill(pid, signal.SIGSTOP)
    recovery, begun = scene.recover(), time.monotonic()
    scene.load.until(lambda: not is_running(pid))
    return {
        "worker": str(worker),
        "recovery_seconds": recovery,
        "ended_after_seconds": recovery + time.monotonic() - begun,
    }


def cut(scene: Scene) -> dict[str, Any]:
    """A worker's node is cut off, until its worker has ended; then the plan uses it again."""
    worker = scene.choose(scene.networks)
    host, pid = worker.node.host, pid_of(worker, ANSWER_SECONDS)
    stages = scene.load.engine.plans.deployment.replicas[0].granularity
    begun = time.monotonic()
    scene.networks[host].cut()
    recovery = scene.recover()
    scene.load.until(lambda: not is_running(pid))
    ended = time.monotonic() - begun
    scene.networks[host].heal()
    kept = use_again(scene, host, stages)
    if not kept:
        scene.start_node(host)
        assert use_again(scene, host, stages), "the plan could not go back to the node"
    return {
        "worker": str(worker),
        "recovery_seconds": recovery,
        "ended_after_seconds": ended,
        "ray_kept_the_node": kept,
    }


def split(scene: Scene) -> dict[str, Any]:
    """Two neighbours are cut off from each other alone; once that is over and forgotten, the plan
    uses both again."""
    plan = scene.load.engine.plans.deployment.replicas[0]
    hosts = [stage.mesh.devices[0].host for stage in plan.stages]
    neighbours = zip(hosts, [*hosts[1:], hosts[0]], strict=True)
    pair = scene.draw.choice([each for each in neighbours if scene.networks.keys() >= set(each)])
    one, other = (scene.networks[host] for host in pair)
    one.cut_from(other)
    recovery = scene.recover()
    one.heal_to(other)
    (left_out,) = set(pair) - scene.plan_runtime.cluster.workers.keys()
    used = use_again(scene, left_out, plan.granularity, KEPT_SECONDS + REJOIN_SECONDS)
    assert used, "the plan could not go back to the node"
    return {"workers": pair, "left_out": left_out, "recovery_seconds": recovery}


def use_again(scene: Scene, host: str, stages: int, seconds: float = REJOIN_SECONDS) -> bool:
    """Change to a plan of so many stages once the node is there; whether that went well."""
    until = time.monotonic() + seconds

    def is_there() -> bool:
        hosts = {node.host for node in scene.plan_runtime.cluster.nodes()}
        return host in hosts or time.monotonic() > until

    scene.load.until(is_there)
    engine = scene.load.engine
    try:
        engine.regranularize(stages)
    except MeshError:
        return False
    scene.load.until(lambda: not engine.plans.active)
    last = engine.plans.status().last
    return last is not None and last.state == "done"


def slow(scene: Scene) -> dict[str, Any]:
    """A worker's process is stopped most of the time."""
    worker, load, plan_runtime = scene.choose(), scene.load, scene.plan_runtime
    before, repairs, pid = load.rate(), len(plan_runtime.repairs), pid_of(worker, ANSWER_SECONDS)
    with stopped_mostly(pid, STOPPED_SECONDS, RUNNING_SECONDS):
        named = load.until(lambda: str(worker) in plan_runtime.slow())
        others = [name for name in plan_runtime.slow() if name != str(worker)]
        meanwhile = load.rate()
    no_longer = load.until(lambda: str(worker) not in plan_runtime.slow())
    return {
        "worker": str(worker),
        "others_named": others,
        "named_after_seconds": named,
        "no_longer_after_seconds": no_longer,
        "tokens_per_second_before": before,
        "tokens_per_second_while_slow": meanwhile,
        "tokens_per_second_afterwards": load.rate(),
        "replaced": len(plan_runtime.repairs) > repairs,
    }


KINDS: dict[str, Callable[[Scene], dict[str, Any]]] = {
    "kill": kill,
    "hang": hang,
    "cut": cut,
    "slow": slow,
    "split": split,
}


def spread_of(values: Sequence[float]) -> dict[str, Any]:
    """Median, extremes, deviation, and all."""
    return {
        "median": statistics.median(values),
        "least": min(values),
        "most": max(values),
        "deviation": statistics.pstdev(values),
        "all": [round(each, 2) for each in values],
    }
