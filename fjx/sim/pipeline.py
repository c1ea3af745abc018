"""A pipeline without devices, behind the protocol of the real ones: the engine cannot tell."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from fjx.pipeline.batch import Batch
from fjx.pipeline.chain import OverlappedChain
from fjx.pipeline.limits import Limits
from fjx.pipeline.protocol import Pruner
from fjx.sharding.plan.plan import Device, Mesh, Plan, Stage
from fjx.sim.costs import StageCosts
from fjx.sim.steps import TOKEN, ReplicaLimits
from fjx.sim.timing import Stages

_VOCABULARY = 2
"""Token ids: the one that every step chooses, and the one that prompts and wrong drafts have."""


class Clock:
    """Seconds of a simulation, and how to let them go by."""

    def __init__(self, now: Callable[[], float], wait: Callable[[float], None]) -> None:
        """``wait``: returns when so many seconds have gone by."""
        self.now, self._wait = now, wait

    def wait(self, seconds: float) -> None:
        """Return so many seconds later."""
        if seconds > 0:
            self._wait(seconds)


class SimulatedCompiler:
    """See `fjx.pipeline.compiler.Compiler`: there is nothing to compile."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.num_programs = 0

    def hold_background(self, hold: bool) -> None:
        """It does nothing in the background."""


class SimulatedOutput:
    """See `fjx.pipeline.step_output.StepOutput`: reading waits until the last stage is done."""

    def __init__(self, clock: Clock, end: float, num_samples: int) -> None:
        self._clock, self._end, self._num_samples = clock, end, num_samples

    def read_tokens(self) -> list[int]:
        """The chosen tokens, which are all the same."""
        self._clock.wait(self._end - self._clock.now())
        return [TOKEN] * self._num_samples


class SimulatedPipeline:
    """See `fjx.pipeline.protocol.Pipeline`: when a step ends tells a cost model."""

    lost = False

    def __init__(
        self,
        plan: Plan,
        costs: StageCosts,
        limits: Limits,
        clock: Clock,
        host_seconds: float = 0.0,
        compiler: SimulatedCompiler | None = None,
    ) -> None:
        """
        Args:
            plan: how many microbatches there are.
            costs: of its stages.
            limits: sizes of batches and KV memory.
            clock: the engine's, too.
            host_seconds: of the host's work, for each step.
            compiler: that of the pipeline before.
        """
        self.plan, self.limits = plan, limits
        self.compiler: Any = compiler or SimulatedCompiler()
        model = SimpleNamespace(config=SimpleNamespace(vocab_size=_VOCABULARY))
        self.programs: Any = SimpleNamespace(limits=limits, model=model)
        self._costs, self._clock, self._host_seconds = costs, clock, host_seconds
        self._stages = Stages(costs, plan.microbatches, clock.now(), host_seconds)
        self._layouts = {rows: limits.layout(rows) for rows in limits.row_buckets}
        self.steps = 0
        """Steps sent so far."""

    def slow_down(self, factor: float) -> None:
        """From the next step on, steps take so many times their seconds (1: their own)."""
        self._stages.costs = self._costs if factor == 1.0 else self._costs.slower(factor)

    def retire(self) -> None:
        """See `Pipeline`."""

    def dispatch(
        self,
        batch: Batch,
        part: int = 0,
        pruner: Pruner | None = None,
        beside: OverlappedChain | None = None,
    ) -> Any:
        """See `Pipeline`: an output whose tokens are there when the last stage is done."""
        rows = self._layouts[batch.num_rows].split(batch.packed).rows
        count = rows.query_start[1:] - rows.query_start[:-1]
        end = rows.context_len
        pairs = float((count * (2 * end - count + 1)).sum()) / 2
        now = self._clock.now()
        of_step = [int(count.sum())], [batch.num_samples], [pairs], [float(end.sum())]
        leaves, _ = self._stages.plan([part], of_step, now, [now], 1)
        self._stages.take([part], leaves)
        self.steps += 1
        self._clock.wait(self._host_seconds)
        return SimulatedOutput(self._clock, float(leaves[0, -1]), batch.num_samples)


def simulated_plan(stages: int, microbatches: int) -> Plan:
    """A plan of so many stages, each with a device of its own."""
    meshes = (Mesh((Device("simulated", "gpu", i),)) for i in range(stages))
    each = tuple(Stage(range(i, i + 1), mesh) for i, mesh in enumerate(meshes))
    return Plan(each, microbatches)


def simulated_limits(limits: ReplicaLimits, longest: int) -> Limits:
    """The engine's limits.

    Args:
        limits: of the replica.
        longest: tokens of the longest request; step arrays are as long as its page table.
    """
    return Limits(
        max_model_len=longest,
        max_num_seqs=limits.max_num_seqs,
        max_num_batched_tokens=limits.max_num_batched_tokens,
        num_pages=limits.num_pages,
        page_size=limits.page_size,
        bias_entries=0,
        max_draft_rows=limits.max_draft_rows,
    )


class SimulatedTokenizer:
    """See `fjx.models.tokenizer.Tokenizer`: tokens have no text, and none ends a request."""

    eos_token_ids: tuple[int, ...] = ()

    def stream(self, skip_special_tokens: bool = True, continuation: bool = False) -> _NoText:
        """See `Tokenizer.stream`."""
        return _NO_TEXT


class _NoText:
    """See `fjx.models.tokenizer.DecodeStream`."""

    def add(self, ids: object) -> str:
        """See `TextStream.add`."""
        return ""

    def flush(self) -> str:
        """See `TextStream.flush`."""
        return ""


_NO_TEXT = _NoText()
