"""Notices lost workers, and slow ones."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from fjx.cluster.actor import Call, WorkerHandle, first_done
from fjx.cluster.health.link_failures import LinkFailures
from fjx.cluster.health.speed import SLOW, SLOW_ANSWER, slowdown
from fjx.cluster.messages import Heartbeat
from fjx.errors import StageLostError
from fjx.wording import listed

logger = logging.getLogger(__name__)

_BEATS = 8
"""Signs of life that are asked for within the limit."""


class HealthMonitor:
    """Asks all workers for signs of life, in a thread of its own."""

    def __init__(
        self, workers: Mapping[str, WorkerHandle], seconds: float, link_failures: LinkFailures
    ) -> None:
        """
        Args:
            workers: those to watch; may change meanwhile.
            seconds: without a sign of life after which a worker counts as lost.
            link_failures: is told who does not reach whom.
        """
        self._workers, self._seconds, self._link_failures = workers, seconds, link_failures
        self._asked: dict[WorkerHandle, tuple[Call, float]] = {}
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin."""
        self._thread = threading.Thread(target=self._run, name="fjx-watch", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while not self._stopped.is_set():
            next_time = time.monotonic() + self._seconds / _BEATS
            self._ask()
            while self._asked and (left := next_time - time.monotonic()) > 0:
                done = first_done([call for call, _ in self._asked.values()], left)
                for call in done:
                    self._receive(call)
            self._lose_silent()
            self._lose_cut_off()
            self._judge()
            self._stopped.wait(max(next_time - time.monotonic(), 0.0))

    def _ask(self) -> None:
        """Ask those that owe no answer."""
        now = time.monotonic()
        self._asked = {
            worker: self._asked.get(worker) or (worker.heartbeat(), now) for worker in self._live()
        }

    def _receive(self, call: Call) -> None:
        worker = call.worker
        _, when = self._asked.pop(worker)
        try:
            heartbeat: Heartbeat = call.result(1.0)
        except StageLostError as error:
            worker.lose(str(error))
            return
        worker.steps, learn = heartbeat.steps, worker.slowdown is None
        seconds = time.monotonic() - when
        worker.answers_speed.observe(None, seconds, learn)
        if heartbeat.timed:
            worker.answers_level.observe(None, seconds)
        at = {each.address: each.node.host for each in self._live()}
        unreached = {at[address] for address in heartbeat.unreached if address in at}
        self._link_failures.heard(worker.node.host, when, unreached)
        for timed in heartbeat.timed:
            worker.steps_speed.observe((timed.run, timed.rows), timed.seconds, learn)
            # A device that runs two plans, or stages of two replicas, is not compared.
            if timed.layers and len(heartbeat.steps) == 1:
                kind = timed.run, timed.rows, timed.devices
                worker.layers_level.observe(kind, timed.seconds, timed.layers)

    def _lose_silent(self) -> None:
        for worker, (_, when) in self._asked.items():
            if time.monotonic() - when > self._seconds:
                worker.lose(f"{worker} gave no sign of life for {self._seconds:g} s")

    def _lose_cut_off(self) -> None:
        workers = {each.node.host: each for each in self._live()}
        for host, others in self._link_failures.judge(workers).items():
            workers[host].lose(
                f"{workers[host]} and {listed(others)} do not reach each other, though both answer"
            )

    def _live(self) -> list[WorkerHandle]:
        workers = list(self._workers.values())
        return [worker for worker in workers if worker.started and worker.lost is None]

    def _judge(self) -> None:
        """Say who has become slow, and who is no longer."""
        workers = self._live()
        for worker in workers:
            was = worker.slowdown is not None
            slow = _slowness(worker, [each for each in workers if each is not worker], was)
            worker.slowdown = None if slow is None else slow.factor
            if slow is not None and not was:
                logger.warning(
                    "slow: %s: %s takes %.2g s, %.1f times as long as %s",
                    worker, slow.what, slow.seconds, slow.factor, slow.than,
                )  # fmt: skip
            elif was and slow is None:
                logger.info("no longer slow: %s", worker)


class _Slow(NamedTuple):
    """One respect in which a worker may be slow."""

    what: str
    seconds: float
    factor: float | None
    """Times as long as it should; None: it is not slow in that."""
    than: str


def _slowness(worker: WorkerHandle, others: Sequence[WorkerHandle], was: bool) -> _Slow | None:
    """The respect in which a worker is slow; None: it is not. ``was``: whether it was so far."""
    steps, answers = worker.steps_speed, worker.answers_speed
    layers, level = worker.layers_level, worker.answers_level
    load = [each.steps_speed.factor for each in others]
    like = [each.layers_level for each in others if each.node.kind == worker.node.kind]
    levels = [each.answers_level for each in others]
    part, answer = "its part of a step", "an answer"
    judged = (
        _Slow(part, steps.seconds, slowdown(steps.factor, load, SLOW, was), "usual"),
        _Slow(answer, answers.seconds, slowdown(answers.factor, (), SLOW_ANSWER, was), "usual"),
        _Slow(part, layers.seconds, slowdown(layers.against(like), (), SLOW, was), "elsewhere"),
        _Slow(
            answer,
            level.seconds,
            slowdown(level.against(levels), (), SLOW_ANSWER, was),
            "elsewhere",
        ),
    )
    return next((each for each in judged if each.factor is not None), None)
