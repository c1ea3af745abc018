"""Several steps as one program: each takes its tokens from the one before, on the device."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
from jaxtyping import Array

from fjx.pipeline.batch import Batch
from fjx.pipeline.compiler import Compiler, ProgramSpec
from fjx.pipeline.flat_call import FlatCall
from fjx.pipeline.overlap import overlapped

if TYPE_CHECKING:
    from fjx.pipeline.executor import Executor
    from fjx.pipeline.step_output import StepOutput


class _Size(NamedTuple):
    """What the program of a step depends on."""

    rows: int
    """T, padding included."""
    samples: int
    """S, padding included."""
    sampled: bool
    """Whether a row is not greedy."""

    @property
    def choice(self) -> str:
        """The program that chooses its tokens."""
        return "choose" if self.sampled else "greedy"


class Chain:
    """Steps of an executor, built but not sent."""

    def __init__(self, executor: Executor, batches: Sequence[Batch]) -> None:
        """The executor must have one stage, and each batch a row that chooses a token, all of them
        without penalties, bias and log-probabilities."""
        self._executor = executor
        self._stage = executor.segments[0]
        self._batches = tuple(batches)
        self._sizes = tuple(
            _Size(each.num_rows, each.sample_bucket, each.sampling is not None) for each in batches
        )
        self.outputs: list[StepOutput] = []
        """What the steps will bring, once they are sent."""

    @staticmethod
    def can_hold(executor: Executor, batches: Sequence[Batch]) -> bool:
        """Whether these steps can be a chain."""
        plan = executor.plan
        return (
            len(plan.stages) == 1
            and plan.microbatches == 1
            and executor.segments[0].shape.last
            and all(
                each.num_samples and each.edits is None and not each.logprobs for each in batches
            )
        )

    @property
    def key(self) -> Hashable:
        """Of its program."""
        return "chain", self._sizes, self._stage.fused_key

    def spec(self) -> ProgramSpec:
        """Its program, made of those of its steps."""
        at, sizes = self._stage.placement.key, self._sizes
        spec = self._executor.compiler.spec
        stages = [spec(("stage", each.rows, *self._stage.fused_key)) for each in sizes]
        heads = [spec(("head", each.samples, at)) for each in sizes]
        choices = [spec((each.choice, each.samples, at)) for each in sizes]
        sure = []
        if self._executor.limits.confidences:
            sure = [spec(("confidence", each.samples, at)) for each in sizes]
        granules = len(self._stage.granules)

        def run(params: Any, head: Any, last_token: Any, kv_pages: Any, steps: Any) -> Any:
            chosen = []
            for i, (step, *sampling) in enumerate(steps):
                x, slots, *rest = stages[i].function(params, last_token, step, kv_pages)
                kv_pages = tuple(rest[-granules:])
                logits = heads[i].function(head, x)
                tokens, last_token = choices[i].function(logits, last_token, slots, *sampling)
                confidences = [sure[i].function(logits, tokens)] if sure else []
                chosen.append((tokens, *confidences))
                last_token = _barrier(last_token)
            return kv_pages, last_token, chosen

        params, last_token, _, kv_pages = stages[0].arguments
        steps = [
            (stage.arguments[2], *choice.arguments[3:])
            for stage, choice in zip(stages, choices, strict=True)
        ]
        arguments = (params, heads[0].arguments[0], last_token, kv_pages, steps)
        return ProgramSpec(self.key, run, arguments, donate=(2, 3), flat=True, background=True)

    def arrays(self) -> list[Any]:
        """What the program takes, flat."""
        whole = self._stage.placement.whole
        steps = [
            (each.packed, *(() if each.sampling is None else (each.sampling,)))
            for each in self._batches
        ]
        return [
            *self._stage.arrays,
            *jax.tree.leaves(self._executor.pieces.head.params),
            self._executor.last_token,
            *(granule.kv_pages for granule in self._stage.granules),
            *jax.tree.leaves(jax.device_put(steps, whole)),
        ]

    @property
    def num_results(self) -> int:
        """Arrays that the program gives."""
        each = 2 if self._executor.limits.confidences else 1
        return len(self._stage.granules) + 1 + each * len(self._batches)

    def take(self, results: Sequence[Any]) -> None:
        """The program was sent, and will give these."""
        granules = self._stage.granules
        for granule, kv_pages in zip(granules, results, strict=False):
            granule.kv_pages = kv_pages
        last_token, *chosen = results[len(granules) :]
        self.outputs = self._executor.took_chain(self._batches, last_token, chosen)


class OverlappedChain:
    """A chain that runs beside a stage of another executor's step, in one program."""

    def __init__(self, program: FlatCall, chain: Chain) -> None:
        self._program = program
        self._chain = chain

    def run(self, arrays: Sequence[Any]) -> list[Any]:
        """Send both: what the stage's program takes, and what it gives."""
        results = self._program([*arrays, *self._chain.arrays()])
        count = len(results) - self._chain.num_results
        self._chain.take(results[count:])
        return results[:count]


def overlap_chain(stage_key: Hashable, compiler: Compiler, chain: Chain) -> OverlappedChain | None:
    """A chain beside a stage of a compiler's program; None while that of both is not there."""
    key = "beside", stage_key, chain.key

    def spec() -> ProgramSpec:
        platform = jax.default_backend()
        return overlapped(compiler.spec(stage_key), chain.spec(), key, platform)

    program = compiler.find_or_begin(key, spec)
    return None if program is None else OverlappedChain(program, chain)


def _barrier(x: Array) -> Array:
    barred: Array = jax.lax.optimization_barrier(x)  # type: ignore[no-untyped-call]
    return barred
