"""A worker as a Ray actor, and calls to it with a limit. Only this file and `nodes` know Ray."""

from __future__ import annotations

import itertools
import logging
import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import ray
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from fjx.cluster.health.lease import Lease
from fjx.cluster.health.speed import Level, Speed
from fjx.cluster.messages import Heartbeat, WorkerConfig
from fjx.cluster.nodes import Node
from fjx.errors import StageLostError

logger = logging.getLogger(__name__)

_CHECK_SECONDS = 0.5
"""How often a call that waits looks whether its worker is lost."""
_QUICK_STEP, _QUICK_ANSWER = 0.002, 0.01
"""Seconds; what takes less is not told from what takes this."""
_LEASE_BEATS = 4
"""A worker that hears nothing from the driver ends by itself after this many times the limit at
which it counts as lost: by then it is lost in any case, unless the driver itself stood still."""
_THREADS = {"steps": 1, "work": 1, "beats": 1}
START_SECONDS = 120.0
"""Limit for a node to start a process with JAX in it."""

_started = itertools.count(1)
"""Tells the names of workers apart: Ray gives a name away once."""


class _StageActor:
    """Runs a `Worker`. Three threads: steps in the order of the calls, work beside them, beats."""

    def __init__(
        self,
        setup: WorkerConfig,
        host: str,
        address: str,
        cpu_devices: int,
        label: str,
        seconds: float,
    ) -> None:
        if cpu_devices:
            update: Callable[[str, Any], None] = jax.config.update
            update("jax_platforms", "cpu")
            update("jax_num_cpu_devices", cpu_devices)
        from fjx.cluster.worker import Worker

        self._worker, self._label = Worker(setup, host, address, seconds), label
        self._lease = Lease(_LEASE_BEATS * seconds, partial(_end_process, label))

    def __repr__(self) -> str:
        return self._label

    @ray.method(concurrency_group="steps")  # type: ignore[untyped-decorator]
    def steps(self, method: str, *arguments: Any) -> Any:
        """Call a method of the worker in the order of these calls."""
        self._lease.check()
        return getattr(self._worker, method)(*arguments)

    @ray.method(concurrency_group="work")  # type: ignore[untyped-decorator]
    def work(self, method: str, *arguments: Any) -> Any:
        """Call a method of the worker beside its steps."""
        return getattr(self._worker, method)(*arguments)

    @ray.method(concurrency_group="beats")  # type: ignore[untyped-decorator]
    def heartbeat(self) -> Heartbeat:
        """See `Worker.heartbeat`."""
        self._lease.renew()
        return self._worker.heartbeat()

    @ray.method(concurrency_group="beats")  # type: ignore[untyped-decorator]
    def forget(self, address: str) -> None:
        """See `Worker.forget`. Steps and work may be waiting for just this."""
        self._worker.forget(address)


def _end_process(label: str, seconds: float) -> None:
    """End a worker without waiting for anything."""
    logger.error("%s has heard nothing from its driver for %.1f s, and ends", label, seconds)
    os._exit(1)


class Call:
    """A call that was sent to a worker."""

    def __init__(self, worker: WorkerHandle, method: str, reference: Any) -> None:
        self.worker, self._method, self.reference = worker, method, reference

    @property
    def done(self) -> bool:
        """Whether the call has returned or failed."""
        return self.done_within(0)

    def done_within(self, seconds: float) -> bool:
        """Wait up to ``seconds`` for the call; whether it has returned or failed."""
        ready, _ = ray.wait([self.reference], timeout=seconds)
        return bool(ready)

    def result(self, seconds: float, check: Callable[[], None] | None = None) -> Any:
        """The call's result; ``check`` is called again and again while waiting for it, and may
        raise.

        Raises:
            StageLostError: the worker is gone, or does not answer within ``seconds``.
            Exception: what the call raised.
        """
        deadline = time.monotonic() + seconds
        while not self.done_within(min(_CHECK_SECONDS, max(deadline - time.monotonic(), 0.0))):
            if check is not None:
                check()
            if self.worker.lost is not None:
                raise StageLostError(self.worker.lost)
            if time.monotonic() >= deadline:
                raise self.worker.lost_error(
                    f"did not answer {self._method!r} within {seconds:g} s"
                )
        try:
            return ray.get(self.reference)
        except RayTaskError as error:
            cause = error.cause
            raise (cause if isinstance(cause, Exception) else error) from None
        except RayActorError as error:
            raise self.worker.lost_error(f"is gone: {_first_line(error)}") from None
        except RayError as error:
            raise self.worker.lost_error(f"failed: {_first_line(error)}") from None


class WorkerHandle:
    """The driver's handle of a worker."""

    def __init__(self, setup: WorkerConfig, node: Node, label: str, seconds: float) -> None:
        """Begin to start a worker on a node; `wait_started` returns when it is there. ``seconds``:
        seconds without a sign of life after which it counts as lost."""
        self.node, self.label = node, label
        self.address = ""
        """Address (``host:port``) at which other processes fetch what the worker offers."""
        self.started = False
        self.steps: dict[int, int] = {}
        """Steps of each run that it had begun by then."""
        self.steps_speed, self.answers_speed = Speed(_QUICK_STEP), Speed(_QUICK_ANSWER)
        """How long its part of a step takes, and how long it takes to answer."""
        self.layers_level, self.answers_level = Level(_QUICK_STEP), Level(_QUICK_ANSWER)
        """The same, of a layer, and of an answer while it serves, to be compared with others."""
        self.slowdown: float | None = None
        """How many times as long as usual it takes; None: it is not slow."""
        self.lost: str | None = None
        """Why nothing is to be expected of it any more."""
        name = f"{label} ({node.host}, {next(_started)})"
        bundle = {"CPU": 1.0} | ({"GPU": float(node.gpus)} if node.gpus else {})
        self._group = placement_group(
            [bundle], bundle_label_selector=[{"ray.io/node-id": node.id}], name=name
        )
        strategy = PlacementGroupSchedulingStrategy(self._group, placement_group_bundle_index=0)
        actor: Any = ray.remote(concurrency_groups=_THREADS)(_StageActor)
        self._actor = actor.options(
            name=name,
            num_cpus=1,
            num_gpus=node.gpus,
            max_restarts=0,
            scheduling_strategy=strategy,
        ).remote(
            setup, node.host, node.address, 0 if node.gpus else node.cpu_devices, label, seconds
        )

    def wait_started(self, seconds: float, is_there: Callable[[Node], bool]) -> None:
        """Return when the worker answers; ``is_there``: whether a node is.

        Raises:
            StageLostError: it does not start.
        """
        answer, deadline = self.call("address"), time.monotonic() + seconds
        while not answer.done_within(_CHECK_SECONDS) and time.monotonic() < deadline:
            if not is_there(self.node):
                raise self.lost_error("cannot start: the node is gone")
        self.address = answer.result(0)
        self.started = True

    def step(self, method: str, *arguments: Any) -> Call:
        """Call a method of the worker in order with its steps."""
        return Call(self, method, self._actor.steps.remote(method, *arguments))

    def call(self, method: str, *arguments: Any) -> Call:
        """Call a method of the worker beside its steps."""
        return Call(self, method, self._actor.work.remote(method, *arguments))

    def heartbeat(self) -> Call:
        """Ask for a sign of life."""
        return Call(self, "beat", self._actor.heartbeat.remote())

    def forget(self, address: str) -> None:
        """Have it forget another worker."""
        self._actor.forget.remote(address)

    def lose(self, why: str) -> None:
        """Expect nothing of it any more; the message says which stage on which node."""
        if self.lost is None:
            self.lost = why
            logger.warning("lost: %s", why)

    def end(self) -> None:
        """End the process now, and give its place back."""
        self.lost = self.lost or f"{self} was ended"
        ray.kill(self._actor, no_restart=True)
        remove_placement_group(self._group)

    def lost_error(self, what: str) -> StageLostError:
        """An error that says which stage on which node."""
        return StageLostError(f"{self} {what}")

    def __str__(self) -> str:
        return f"{self.label} on node {self.node.host}"


def first_done(calls: Sequence[Call], seconds: float) -> list[Call]:
    """Wait up to ``seconds`` for the first call to end; the calls that have ended by then."""
    by_reference = {call.reference: call for call in calls}
    ready, _ = ray.wait(list(by_reference), timeout=seconds)
    return [by_reference[each] for each in ready]


def results(
    calls: Sequence[Call], seconds: float, check: Callable[[], None] | None = None
) -> list[Any]:
    """The results of several calls, which together may take up to ``seconds``. ``check``: see
    `Call.result`.

    Raises:
        StageLostError: a worker is gone or does not answer.
        Exception: what a call raised.
    """
    deadline = time.monotonic() + seconds
    return [call.result(max(deadline - time.monotonic(), 0.1), check) for call in calls]


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
