"""A pipeline that loses its pages at any moment costs time, never a request or a token."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import jax.numpy as jnp
import pytest

from fjx.engine.engine import Engine
from fjx.errors import StageLostError
from fjx.pipeline.executor import Executor
from fjx.pipeline.protocol import Pipeline
from fjx.pipeline.step_output import StepOutput
from fjx.regranularization.plan_runtime import LocalPlanRuntime, Repaired
from fjx.regranularization.plan_target import Planner
from fjx.speculation.policy.frontiers import FrontierDepth
from fjx.speculation.policy.lengths import Fixed
from fjx.speculation.runtime.speculator import Speculator
from tests.unit.engine.plan_cases import MIXED, Served, deep_engine, even, expected
from tests.unit.speculation.runtime.test_speculation import guesses


class Fragile:
    """An executor that is lost once a while: what it was sent last may or may not have come."""

    def __init__(self, executor: Executor, source: random.Random) -> None:
        self.executor, self.source = executor, source
        self.left = source.randint(1, 25)
        """Looks at it until it is lost."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self.executor, name)

    @property
    def lost(self) -> bool:
        self.left -= 1
        return self.left < 0

    def dispatch(self, *arguments: Any) -> StepOutput:
        output = self.executor.dispatch(*arguments)

        def wait() -> None:
            if self.left < 0 or self.source.random() < 0.03:
                self.left = -1
                raise StageLostError("a stage is gone")

        output._wait = wait
        return output

    def repaired(self) -> Fragile:
        """Another one with the same parameters, whose pages hold anything."""
        pieces = self.executor.pieces
        granules = tuple(
            dataclasses.replace(each, kv_pages=jnp.full_like(each.kv_pages, 7.0))
            for each in pieces.granules
        )
        of_new = dataclasses.replace(pieces, granules=granules)
        return Fragile(
            Executor(self.executor.programs, self.executor.compiler, of_new), self.source
        )


class FragileRuntime(LocalPlanRuntime):
    """Replaces lost executors after a few calls."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = self.repairs = 0

    def repair(
        self, planner: Planner, executors: Sequence[Pipeline], seconds: float, asked: bool
    ) -> Repaired | None:
        self.calls += 1
        if self.calls % 3:
            return None
        self.repairs += 1
        return Repaired(planner, [each.repaired() if each.left < 0 else each for each in executors])  # type: ignore[attr-defined]


@contextmanager
def fragile(engine: Engine, source: random.Random) -> Iterator[FragileRuntime]:
    """Make an engine's pipelines fragile for a while; other tests use it, too."""
    before, plan_runtime = engine.plans.plan_runtime, FragileRuntime()
    engine.plans.plan_runtime = plan_runtime
    for replica in engine.replicas:
        replica.executor = Fragile(replica.local, source)
    try:
        yield plan_runtime
        engine.check_idle()
    finally:
        engine.plans.plan_runtime, engine.speculator = before, None
        for replica in engine.replicas:
            replica.scheduler.lose_pages()
            replica.executor = replica.executor.executor  # type: ignore[attr-defined]


@pytest.mark.parametrize("seed", range(6))
def test_tokens_stay_the_same(seed: int) -> None:
    engine = deep_engine(even(2), even(1, first_device=3))
    with fragile(engine, random.Random(seed)) as plan_runtime:
        assert Served(engine, MIXED).finish() == [expected(ask) for ask in MIXED]
    assert plan_runtime.repairs > 0


@pytest.mark.parametrize("frontiers", [1, 3])
@pytest.mark.parametrize("seed", range(3))
def test_tokens_stay_the_same_while_drafts_are_verified(seed: int, frontiers: int) -> None:
    engine = deep_engine(even(2), max_draft_rows=16)
    buckets = engine.executor.limits.row_buckets
    depth = FrontierDepth(frontiers, 2)
    engine.speculator = Speculator(guesses(MIXED, 0.3), Fixed(3), buckets, depth)
    with fragile(engine, random.Random(seed)) as plan_runtime:
        answers = Served(engine, MIXED).finish()
        stats = engine.stats().speculation
    assert [each.tokens for each in answers] == [expected(ask).tokens for ask in MIXED]
    assert plan_runtime.repairs > 0
    assert stats is not None
    assert stats.num_drafts > 0
