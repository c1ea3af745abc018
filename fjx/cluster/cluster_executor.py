"""A replica whose stages are in other processes, as the engine sees it."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import jax

from fjx.cluster.actor import Call, WorkerHandle
from fjx.cluster.messages import (
    AssignedStage,
    RemoteArray,
    RunAssignment,
    StageTransfer,
    StepAssignment,
    narrow,
)
from fjx.cluster.run import on_first
from fjx.cluster.transfer_endpoint import TransferEndpoint
from fjx.errors import StageLostError
from fjx.pipeline.batch import Batch
from fjx.pipeline.bound_mesh import BoundMesh
from fjx.pipeline.chain import OverlappedChain
from fjx.pipeline.compiler import Compiler
from fjx.pipeline.limits import Limits
from fjx.pipeline.programs import Programs
from fjx.pipeline.protocol import Pruner
from fjx.pipeline.step_output import StepOutput
from fjx.sharding.plan.plan import Mesh, Plan
from fjx.sharding.topology.topology import key_of

logger = logging.getLogger(__name__)

_POLL_SECONDS = 0.0001
_CHECK_SECONDS = 0.25
"""How often a wait for a step looks whether its calls have failed."""
_CALLS_KEPT = 64


@dataclass(frozen=True)
class Driver:
    """What the executors of one driver share."""

    programs: Programs
    compiler: Compiler
    """The driver's compiler. It has no programs, because the driver runs no steps."""
    endpoint: TransferEndpoint
    numbers: Iterator[int]
    """Numbers for offers; each is used once."""
    step_seconds: float
    """How long a step may take until one of its stages counts as lost."""


class ClusterExecutor:
    """Sends steps to the workers of a plan's stages, all at once: what a stage needs from the one
    before comes to it without the driver.

    A call is a small message; arrays go from process to process by the `TransferEndpoint`.
    """

    def __init__(
        self, driver: Driver, plan: Plan, number: int, workers: Sequence[WorkerHandle]
    ) -> None:
        """
        Args:
            driver: who it belongs to.
            plan: by which steps run.
            number: of the run, see `RunAssignment`.
            workers: the worker of each stage.
        """
        self.plan, self.number = plan, number
        self.workers = tuple(workers)
        self._driver = driver
        self._parts = stages_by_worker(plan, workers)
        self._fed: dict[int, RemoteArray] = {}
        self._calls: list[Call] = []
        self._failure: str | None = None
        self._here = _here()
        self.steps = 0
        self.brought = False
        """Whether any of its steps has brought tokens."""
        self.opened = time.monotonic()
        """When it became ready for steps, in seconds of `time.monotonic`."""

    @property
    def programs(self) -> Programs:
        """What the workers run."""
        return self._driver.programs

    @property
    def compiler(self) -> Compiler:
        """See `Driver`."""
        return self._driver.compiler

    @property
    def limits(self) -> Limits:
        """The sizes that programs are compiled for."""
        return self.programs.limits

    @property
    def failure(self) -> str | None:
        """Why its pages are lost, and with them what its steps would have brought; None: they are
        not."""
        lost = (worker.lost for worker in self.workers)
        return self._failure or next((why for why in lost if why is not None), None)

    @property
    def lost(self) -> bool:
        """Whether its pages are lost: another executor must take over."""
        return self.failure is not None

    def fail(self, why: str) -> None:
        """Count its stages and their pages as lost from now on."""
        self._failure = self._failure or why

    def retire(self) -> None:
        """Another executor has taken over."""
        for worker in dict.fromkeys(self.workers):
            if worker.lost is None:
                worker.step("drop", self.number)

    def dispatch(
        self,
        batch: Batch,
        group_id: int = 0,
        pruner: Pruner | None = None,
        overlapped: OverlappedChain | None = None,
    ) -> StepOutput:
        """Send a microbatch; see `Executor.dispatch`. Nothing prunes it or runs beside it."""
        del pruner, overlapped
        numbers, workers = self._driver.numbers, list(self._parts)
        links = {
            index: next(numbers)
            for index, (one, other) in enumerate(pairwise(self.workers))
            if one is not other
        }
        first, last = self.workers[0], self.workers[-1]
        chooses = batch.num_samples > 0
        result = next(numbers) if chooses else None
        feed = next(numbers) if chooses and first is not last else None
        fed = self._fed.pop(group_id, None)
        narrowed = narrow(batch, self.limits, chooses=True)
        others = narrow(batch, self.limits, chooses=False)
        for worker in workers:
            assignment = StepAssignment(
                self.number,
                group_id,
                narrowed if worker is last else others,
                tuple(self._transfer(index, links) for index in self._parts[worker]),
                last_token=fed if worker is first else None,
                feed=feed if worker is last else None,
                result=result if worker is last else None,
            )
            self._calls.append(worker.step("step", assignment))
        del self._calls[:-_CALLS_KEPT]
        self.steps += 1
        if result is None:
            return StepOutput(None, 0)
        if feed is not None:
            self._fed[group_id] = RemoteArray(last.address, feed)
        return self._output(batch, RemoteArray(last.address, result))

    def _transfer(self, index: int, links: dict[int, int]) -> StageTransfer:
        source = None
        if index - 1 in links:
            source = RemoteArray(self.workers[index - 1].address, links[index - 1])
        return StageTransfer(source, links.get(index))

    def _output(self, batch: Batch, remote: RemoteArray) -> StepOutput:
        structs = self.programs.chosen(batch.sample_bucket, batch.logprobs)
        leaves, tree = jax.tree.flatten(structs)
        got = self._driver.endpoint.fetch(remote, [on_first(leaf, self._here) for leaf in leaves])
        tokens, logprobs, confidences = jax.tree.unflatten(tree, got)
        return StepOutput(
            tokens,
            batch.num_samples,
            logprobs,
            confidences,
            wait=lambda: self._wait(got),
        )

    def _wait(self, arrays: Sequence[Any]) -> None:
        """Return when arrays are here.

        Raises:
            StageLostError: they will not come.
        """
        now = time.monotonic()
        deadline, next_check = now + self._driver.step_seconds, now + _CHECK_SECONDS
        while not all(array.is_ready() for array in arrays):
            if self.failure is not None:
                raise StageLostError(self.failure)
            now = time.monotonic()
            if now > deadline:
                self.fail(self._late())
            elif now > next_check:
                next_check = now + _CHECK_SECONDS
                error = self._call_error()
                if error is not None:
                    self.fail(error)
            time.sleep(_POLL_SECONDS)
        try:
            jax.block_until_ready(list(arrays))  # type: ignore[no-untyped-call]
        except jax.errors.JaxRuntimeError as error:
            self.fail(self._cause(error))
            raise StageLostError(self.failure) from None
        self.brought = True

    def _cause(self, error: Exception) -> str:
        """What is known of an error that came in place of arrays."""
        what = str(error).strip().splitlines()[0]
        return self._call_error() or f"a step of run {self.number} failed: {what}"

    def _call_error(self) -> str | None:
        """What a worker could not do of what it was sent."""
        for call in self._calls:
            if call.done:
                try:
                    call.result(_CHECK_SECONDS)
                except StageLostError as error:
                    return str(error)
                except Exception as error:
                    return f"{call.worker} could not run a step: {error!r}"
        return None

    def _late(self) -> str:
        """Names the first stage that is behind, which is why a step is late; its worker counts as
        lost."""
        seconds = self._driver.step_seconds
        worker = min(self._parts, key=lambda worker: worker.steps.get(self.number, 0))
        reached = worker.steps.get(self.number, 0)
        worker.lose(f"{worker} was at step {reached} of {self.steps}, {seconds:g} s after the last")
        return str(worker.lost)


def stages_by_worker(plan: Plan, workers: Sequence[WorkerHandle]) -> dict[WorkerHandle, list[int]]:
    """The stages that each worker holds, in order; ``workers``: that of each stage."""
    held: dict[WorkerHandle, list[int]] = {}
    for index, worker in zip(range(len(plan.stages)), workers, strict=True):
        held.setdefault(worker, []).append(index)
    return held


def run_assignments(
    plan: Plan,
    workers: Sequence[WorkerHandle],
    replica: int,
    number: int,
    before: int | None,
    keeps_pages: bool,
) -> dict[WorkerHandle, RunAssignment]:
    """What each worker is to hold for a run."""
    last = len(plan.stages) - 1
    return {
        worker: RunAssignment(
            run=number,
            replica=replica,
            microbatches=plan.microbatches,
            stages=tuple(
                AssignedStage(index, plan.stages[index], first=index == 0, last=index == last)
                for index in held
            ),
            before=before,
            keeps_pages=keeps_pages,
            # What the last stage chooses goes to the first one.
            sources=tuple(
                {workers[index - 1].address for index in held if workers[index - 1] is not worker}
            ),
        )
        for worker, held in stages_by_worker(plan, workers).items()
    }


def _here() -> BoundMesh:
    """The driver's own device."""
    device = jax.local_devices()[0]
    return BoundMesh(Mesh((key_of(device),)), (device,))
