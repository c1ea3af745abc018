"""Pruning takes drafted tokens out of a step under way, and changes no token."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from fjx.engine.engine import Engine
from fjx.pipeline.prune_programs import PrunePrograms
from fjx.scheduling.batch_builder import BatchBuilder
from fjx.speculation.policy.lengths import Fixed
from fjx.speculation.runtime.draft_model import DraftModel
from fjx.speculation.runtime.pruning import Pruning
from tests.unit.engine.plan_cases import (
    MIXED,
    Ask,
    deep_engine,
    even,
)
from tests.unit.engine.tiny import run, tiny_engine, tokens_alone
from tests.unit.speculation.runtime.draft_cases import LONGEST, RandomPruning, head_drafter, lens_of
from tests.unit.speculation.runtime.test_speculation import (
    Guesses,
    assert_same,
    assert_same_while_the_plan_changes,
    draft_replica,
    guesses,
    speculating,
)

PLANS = {"1 stage": even(1), "2 stages": even(2), "4 stages": even(4)}


@pytest.fixture(autouse=True)
def _plain_again() -> Iterator[None]:
    """Engines are shared by tests."""
    yield
    for plan in PLANS.values():
        for sizes in ({}, {"num_pages": 17}, {"hidden": True}):
            deep_engine(plan, max_draft_rows=20, lens=True, **sizes).speculator = None


def pruned(engine: Engine, drafter: Any, seed: int = 0, frontiers: int = 1) -> RandomPruning:
    """The engine speculates, and drafts are cut at random."""
    speculating(engine, drafter, policy=Fixed(LONGEST), frontiers=frontiers)
    pruning = RandomPruning(lens_of(engine), random.Random(seed))
    engine.speculator.pruning = pruning
    return pruning


@pytest.mark.parametrize("error_rate", [0.0, 0.3])
@pytest.mark.parametrize("plan", PLANS)
def test_cuts_at_random_change_no_token(plan: str, error_rate: float) -> None:
    engine = deep_engine(PLANS[plan], max_draft_rows=20, lens=True)
    pruning = pruned(engine, guesses(MIXED, error_rate))
    assert_same(engine)
    # Every place between two stages is one; a single stage has a place of its own.
    places = {"1 stage": {"6"}, "2 stages": {"4"}, "4 stages": {"2", "4", "6"}}[plan]
    assert set(pruning.pruned) == places
    assert sum(pruning.pruned.values()) > 50
    stats = engine.stats().speculation
    assert stats.num_pruned_tokens == pruning.pruned
    assert stats.num_draft_tokens > 50


@pytest.mark.parametrize("frontiers", [1, 2])
def test_a_draft_head_reads_what_is_left(frontiers: int) -> None:
    engine = deep_engine(even(2), max_draft_rows=20, lens=True, hidden=True)
    pruning = pruned(engine, head_drafter(engine), frontiers=frontiers)
    assert_same(engine)
    assert sum(pruning.pruned.values()) > (20 if frontiers == 1 else 0)


def test_a_draft_model_drafts_again_what_was_cut() -> None:
    engine = deep_engine(even(1), max_draft_rows=20, lens=True)
    asks = [ask for ask in MIXED if not ask.params.edits_logits]
    pruning = pruned(engine, DraftModel("itself", draft_replica(8), LONGEST))
    assert_same(engine, asks)
    stats = engine.stats().speculation
    assert stats.num_accepted_tokens == stats.num_draft_tokens > 50
    assert sum(pruning.pruned.values()) > 50


def test_rows_are_compacted_into_smaller_steps() -> None:
    asks = [Ask(ask.prompt, replace(ask.params, logprobs=None)) for ask in MIXED]
    plain = tiny_engine(max_draft_rows=20)
    right = [tokens_alone(plain, list(ask.prompt), ask.params) for ask in asks]
    engine = tiny_engine(max_draft_rows=20, lens=True)
    drafter = Guesses(random.Random(0), 0.2)
    drafter.known = {str(i): tokens for i, tokens in enumerate(right)}
    pruning = pruned(engine, drafter)
    sizes = set()
    get = engine.executor.compiler.get

    def counted(key: Any) -> Any:
        if key[0] == "resize":
            sizes.add(key[1])
        return get(key)

    engine.executor.compiler.get = counted  # type: ignore[method-assign]
    try:
        requests = [
            engine.add(str(i), list(ask.prompt), ask.params)[0] for i, ask in enumerate(asks)
        ]
        run(engine)
    finally:
        engine.executor.compiler.get = get  # type: ignore[method-assign]
        engine.speculator = None
    assert [request.tokens[request.prompt_len :] for request in requests] == right
    assert len(sizes) >= 3
    assert sum(request.pruned_tokens for request in requests) == sum(pruning.pruned.values()) > 50


def test_pages_run_out_while_drafts_are_cut() -> None:
    engine = deep_engine(even(1), num_pages=17, max_draft_rows=20, lens=True)
    preempted = engine.stats().num_preemptions
    pruned(engine, guesses(MIXED, 0.2))
    assert_same(engine)
    assert engine.stats().num_preemptions > preempted


@pytest.mark.parametrize("target", ["2 stages", "4 stages", "2 replicas"])
def test_the_plan_changes_while_drafts_are_cut(target: str) -> None:
    engine = deep_engine(even(1), max_draft_rows=20, lens=True)
    pruning = pruned(engine, guesses(MIXED, 0.3), seed=3)
    assert_same_while_the_plan_changes(engine, target)
    assert sum(pruning.pruned.values()) > 20


def test_steps_with_microbatches_are_left_alone() -> None:
    engine = deep_engine(even(4, microbatches=2), max_draft_rows=20, lens=True)
    pruning = pruned(engine, guesses(MIXED, 0.2))
    try:
        assert_same(engine)
    finally:
        engine.speculator = None
    assert not pruning.looks


def test_trials_cut_nothing_and_teach() -> None:
    engine = deep_engine(even(1), max_draft_rows=20, lens=True)
    speculating(engine, guesses(MIXED, 0.3), policy=Fixed(LONGEST))
    speculator = engine.speculator
    pruning = Pruning(lens_of(engine), speculator._acceptance, speculator._target_cost)
    speculator.pruning = pruning
    pruning._ready[engine.executor.plan] = True
    prunes = PrunePrograms(engine.executor.programs)
    engine.executor.compiler.register(prunes.specs(engine.executor.pieces.shapes))
    for _ in range(4):
        assert_same(engine)
    assert pruning.looks > 3
    assert not pruning.pruned
    (evidence,) = pruning._evidence.values()
    assert evidence._accepted.sum() > evidence._rejected.sum() > 0


@pytest.mark.parametrize("breaks", ["_can_look", "ranks", "survival", "keep"])
def test_what_fails_in_pruning_leaves_the_step_as_it_was(
    breaks: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = deep_engine(PLANS["4 stages"], max_draft_rows=20, lens=True)
    pruning = pruned(engine, guesses(MIXED, 0.3))
    calls = [0]
    works = getattr(pruning, breaks)

    def fails_later(*given: Any) -> Any:
        calls[0] += 1
        if calls[0] > 5:
            raise ZeroDivisionError("of pruning")
        return works(*given)

    monkeypatch.setattr(pruning, breaks, fails_later)
    assert_same(engine)
    assert calls[0] == 6
    assert engine.stats().speculation.num_accepted_tokens > 50


def test_a_cut_that_cannot_be_built_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = deep_engine(PLANS["2 stages"], max_draft_rows=20, lens=True)
    pruning = pruned(engine, guesses(MIXED, 0.3))
    build, failed = BatchBuilder.build, [0]

    def breaks(self: BatchBuilder, scheduled: Any, group_id: int = 0) -> Any:
        if group_id == -1:
            failed[0] += 1
            raise ZeroDivisionError("of a cut")
        return build(self, scheduled, group_id)

    monkeypatch.setattr(BatchBuilder, "build", breaks)
    assert_same(engine)
    assert failed[0] == 1
    assert not pruning.pruned
    assert pruning.looks < 20
