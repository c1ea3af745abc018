"""Drafters, policies, pruning and frontiers, while requests come and go and the plan changes: every
request gets the tokens that it gets alone."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize

from fjx.engine.engine import Engine
from fjx.sampling_params import SamplingParams
from fjx.speculation.policy.lengths import Fixed, policy_by_name
from fjx.speculation.runtime.draft_ahead import DraftAheadMode
from fjx.speculation.runtime.draft_model import DraftModel
from fjx.speculation.runtime.drafter import LookupOrHead, PromptLookup
from fjx.speculation.runtime.speculator import Speculator
from tests.unit.engine.plan_cases import Ask, change, deep_engine, even, expected
from tests.unit.regranularization.test_change_states import (
    MACHINE,
    TARGETS,
    PlanChanges,
    run_until,
    switched,
)
from tests.unit.speculation.runtime.draft_cases import LONGEST, RandomPruning, head_drafter, lens_of
from tests.unit.speculation.runtime.test_speculation import (
    Always,
    Guesses,
    RandomLengths,
    draft_replica,
)

STAGES = ("1 stage", "2 stages", "4 stages, 1 replica", "2 replicas")
"""Those of 1 and 4 stages have one microbatch, and can be pruned."""


@cache
def speculating_engine() -> Engine:
    """An engine with few pages and the programs of all plans; it can be pruned."""
    engine = deep_engine(num_pages=23, max_draft_rows=20, hidden=True, lens=True)
    for name in STAGES:
        change(engine, TARGETS[name])
    change(engine, even(1))
    engine.executor.compiler.compile_background()
    engine.executor.compiler.wait_background()
    return engine


@cache
def head() -> Any:
    return head_drafter(speculating_engine())


DRAFTERS: dict[str, Callable[[random.Random], Any]] = {
    "guesses, often right": lambda source: Guesses(source, 0.1),
    "guesses, often wrong": lambda source: Guesses(source, 0.6),
    "ngram": lambda source: PromptLookup(LONGEST),
    "ngram+head": lambda source: LookupOrHead(PromptLookup(LONGEST), head()),
    "a model": lambda source: DraftModel("small", draft_replica(2), LONGEST),
}
POLICIES: dict[str, Callable[[random.Random], Any]] = {
    "random": RandomLengths,
    **{
        name: lambda source, name=name: policy_by_name(name)  # type: ignore[misc]
        for name in ("fixed:4", "batch", "confidence", "faser", "marginal")
    },
}


class SpeculatingPlanChanges(PlanChanges):
    """The same, with whatever drafts."""

    targets = STAGES
    seen: dict[str, int] = {}  # noqa: RUF012  # of the class: over all its runs

    def engine_of(self) -> Engine:
        return speculating_engine()

    @initialize(
        drafter=st.sampled_from(list(DRAFTERS)),
        policy=st.sampled_from(list(POLICIES)),
        frontiers=st.integers(1, 3),
        prunes=st.booleans(),
        seed=st.integers(0, 9),
    )
    def speculate(self, drafter: str, policy: str, frontiers: int, prunes: bool, seed: int) -> None:
        source = random.Random(seed)
        self._speculate(DRAFTERS[drafter](source), POLICIES[policy](source), frontiers)
        if prunes:
            self.speculator.pruning = RandomPruning(lens_of(self.engine), source)

    def _speculate(
        self, drafter: Any, policy: Any, frontiers: int, ahead: DraftAheadMode = "off"
    ) -> None:
        self.drafter, executor = drafter, self.engine.executor
        self.engine.speculator = self.speculator = Speculator(
            drafter,
            policy,
            executor.limits.row_buckets,
            Always(frontiers, len(executor.plan.stages)),
            ahead=ahead,
        )

    def add_one(self, prompt: tuple[int, ...], params: SamplingParams) -> None:
        if isinstance(self.drafter, Guesses):
            alone = Ask(prompt, replace(params, n=1))
            self.drafter.known[str(len(self.asked))] = expected(alone).tokens
        super().add_one(prompt, params)

    def teardown(self) -> None:
        super().teardown()
        stats = self.speculator.stats()
        for name, count in (
            ("drafted", stats.num_draft_tokens),
            ("accepted", stats.num_accepted_tokens),
            ("pruned", sum(stats.num_pruned_tokens.values())),
            ("drafted ahead", stats.ahead_steps),
        ):
            self.seen[name] = self.seen.get(name, 0) + count
        self.engine.speculator = None


class DraftingAhead(SpeculatingPlanChanges):
    """A model drafts beside every verification that runs on its device."""

    seen: dict[str, int] = {}  # noqa: RUF012

    @initialize(layers=st.sampled_from([2, 8]), length=st.integers(1, 2))
    def speculate(self, layers: int, length: int) -> None:
        drafter = DraftModel("model", draft_replica(layers), LONGEST)
        self._speculate(drafter, Fixed(length), 1, "always")

    def teardown(self) -> None:
        super().teardown()
        # What this run has wanted the next ones find, however busy the machine is.
        for replica in (self.engine, draft_replica(2), draft_replica(8)):
            replica.executor.compiler.wait_background()


def test_whatever_drafts_and_prunes_no_token_changes_while_the_plan_does() -> None:
    before = speculating_engine().stats()

    def came_by() -> dict[str, bool]:
        after, seen = speculating_engine().stats(), SpeculatingPlanChanges.seen
        return {
            "drafts": seen["drafted"] > seen["accepted"] > 300,
            "pruning": seen["pruned"] > 50,
            "preemptions": after.num_preemptions > before.num_preemptions,
        } | switched(before, after)

    given = settings(MACHINE, max_examples=25, stateful_step_count=25)
    run_until(SpeculatingPlanChanges, given, came_by)


def test_drafting_ahead_changes_no_token_while_the_plan_changes() -> None:
    def came_by() -> dict[str, bool]:
        seen = DraftingAhead.seen
        return {
            "drafting ahead": seen["drafted ahead"] > 10,
            "drafts": seen["drafted"] > seen["accepted"] > 200,
        }

    given = settings(MACHINE, max_examples=15, stateful_step_count=25)
    run_until(DraftingAhead, given, came_by)
