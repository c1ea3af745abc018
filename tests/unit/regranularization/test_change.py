"""Plans change while requests are in flight: no token changes, none is lost, bytes are as planned,
and nothing compiles on the request path."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any

import pytest

import fjx.regranularization.change as regranularize
from fjx.engine.engine import Engine
from fjx.sampling_params import SamplingParams
from fjx.sharding.costs.difference import difference
from fjx.sharding.plan.plan import Deployment
from tests.unit.engine.plan_cases import (
    MIXED,
    PATIENCE,
    PLAIN_TARGETS,
    TENSOR_TARGETS,
    Answer,
    Ask,
    answers,
    change,
    deep_engine,
    even,
    expected,
    finish_change,
    is_near_tie,
    live_bytes,
    serve_through,
)
from tests.unit.engine.tiny import VOCABULARY, run, staged

GREEDY = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)


@pytest.fixture
def small_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """One page between two steps, or twice what a step writes: copying takes many steps."""
    monkeypatch.setattr(regranularize, "_SLICE_BYTES", 1)


@cache
def changing() -> Engine:
    """The engine of most tests here, with the programs of every plan."""
    engine = deep_engine(num_pages=33)
    for target in (*PLAIN_TARGETS.values(), *TENSOR_TARGETS.values()):
        change(engine, target)
    return engine


@pytest.fixture
def engine(small_slices: None) -> Iterator[Engine]:
    """It serves by one stage at the beginning, and is idle at the end."""
    engine = changing()
    change(engine, PLAIN_TARGETS["1 stage"])
    yield engine
    finish_change(engine)
    run(engine)


LONG = tuple(
    Ask(ask.prompt, dataclasses.replace(ask.params, max_tokens=60, min_tokens=60)) for ask in MIXED
)


def assert_right(asks: Sequence[Ask], got: Sequence[Answer]) -> None:
    for ask, answer in zip(asks, got, strict=True):
        assert answer == expected(ask), ask


@pytest.mark.parametrize("target", PLAIN_TARGETS)
def test_regranularization_changes_no_token_of_running_requests(
    engine: Engine, target: str
) -> None:
    targets = [PLAIN_TARGETS[target], PLAIN_TARGETS["1 stage"], PLAIN_TARGETS[target]]
    got, _ = serve_through(engine, LONG, targets)
    assert_right(LONG, got)
    engine.check_idle()


def test_regranularization_back_and_forth_under_load(engine: Engine) -> None:
    for ask in LONG:
        expected(ask)  # by another engine, whose memory stays
    before = live_bytes()
    got, records = serve_through(engine, LONG, [8, 1, 8, 2, 4, 1], steps_apart=1)
    assert_right(LONG, got)
    assert [len(record.after.replicas[0].stages) for record in records] == [8, 1, 8, 2, 4, 1]
    assert sum(record.kv_bytes for record in records) > 0
    change(engine, PLAIN_TARGETS["1 stage"])
    engine.check_idle()
    assert live_bytes() == before


def test_regranularization_to_the_plan_that_serves_moves_nothing(engine: Engine) -> None:
    got, records = serve_through(engine, LONG, [1, PLAIN_TARGETS["1 stage"]])
    assert_right(LONG, got)
    assert [record.moved_bytes for record in records] == [0, 0]
    assert [record.planned_bytes for record in records] == [0, 0]


def test_regranularization_keeps_the_prefix_cache(engine: Engine) -> None:
    prompt = [(3 * i + 5) % VOCABULARY for i in range(100)]
    right = expected(Ask(tuple(prompt), GREEDY)).tokens
    for target in (1, 8, PLAIN_TARGETS["another device"], 4, PLAIN_TARGETS["2 replicas"]):
        change(engine, target)
        # Replica 0 inherits the pages, and gets the first request of an idle engine.
        (request,) = engine.add("again", prompt, GREEDY)
        run(engine)
        assert request.tokens[len(prompt) :] == right
        assert request.cached_tokens == (0 if target == 1 else 96)


def test_regranularization_that_drops_a_replica_computes_its_requests_again(
    engine: Engine,
) -> None:
    change(engine, PLAIN_TARGETS["2 replicas"])
    params = SamplingParams(seed=3, n=3, max_tokens=90, ignore_eos=True)
    engine.add("three", [9, 8, 7], params, arrival=1.0)
    engine.add("more", [6, 5], dataclasses.replace(params, n=2), arrival=1.0)
    requests = [r for each in engine.replicas for r in each.scheduler.waiting]
    assert [replica.load for replica in engine.replicas] == [3, 2]
    for _ in range(5):
        engine.step()
    stats = engine.stats()
    assert stats.num_requests_running == 5
    engine.regranularize(PLAIN_TARGETS["4 stages, 1 replica"])
    finish_change_of_running(engine)
    assert [replica.load for replica in engine.replicas] == [5]
    run(engine)
    for request in requests:
        alone = dataclasses.replace(params, n=1, seed=3 + request.index)
        ask = Ask(tuple(request.tokens[: request.prompt_len]), alone)
        assert request.tokens[request.prompt_len :] == expected(ask).tokens
    after = engine.stats()
    assert after.prompt_tokens == stats.prompt_tokens
    assert after.prefix_cache_queries == stats.prefix_cache_queries


def finish_change_of_running(engine: Engine) -> None:
    """Step until the change is done; requests must still run then."""
    engine.plans.wait(PATIENCE)
    while engine.plans.active:
        engine.step()
    assert engine.has_work


# Bytes.


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("1 stage", "8 stages"),
        ("8 stages", "1 stage"),
        ("2 stages", "3 stages, 2 microbatches"),
        ("4 stages", "another device"),
        ("1 stage", "2 replicas"),
        ("2 replicas", "2 replicas, the other way round"),
        ("2 replicas", "4 stages, 1 replica"),
        ("one device for all", "2 stages"),
    ],
)
def test_regranularization_moves_the_bytes_that_the_difference_of_the_plans_says(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, before: str, after: str
) -> None:
    change(engine, PLAIN_TARGETS[before])
    deployment = engine.plans.deployment
    tokens = [0] * len(engine.replicas)
    for index, replica in enumerate(engine.replicas):
        count_pages(monkeypatch, replica.scheduler.pool, tokens, index)
    got, (record,) = serve_through(engine, LONG, [PLAIN_TARGETS[after]])
    assert_right(LONG, got)
    graph = engine.plans.planner.graph
    planned = difference(deployment, record.after, graph, tokens)
    assert record.planned_bytes == planned.total_bytes
    assert record.parameter_bytes == planned.parameter_bytes
    assert record.kv_bytes == planned.kv_bytes
    assert record.moved_bytes == record.planned_bytes + record.dirty_bytes
    if len(record.after.replicas) <= len(deployment.replicas):
        assert record.kv_bytes > 0
        # With several microbatches a page may be copied between two writes, and only once.
        assert record.dirty_bytes > 0 or deployment.replicas[0].microbatches > 1
    page = 16 * graph.granules[0].kv_bytes_per_token
    assert record.dirty_bytes % page == 0
    assert record.dirty_pages == 0
    assert record.pause_seconds is not None


def count_pages(monkeypatch: pytest.MonkeyPatch, pool: Any, tokens: list[int], index: int) -> None:
    """Note the token slots in use when the copy of KV pages begins."""
    pages_in_use: Callable[[], list[int]] = pool.pages_in_use

    def noting() -> list[int]:
        pages = pages_in_use()
        tokens[index] = len(pages) * pool.page_size
        return pages

    monkeypatch.setattr(pool, "pages_in_use", noting)


def test_regranularization_of_an_idle_engine_moves_exactly_what_is_planned(
    engine: Engine,
) -> None:
    answers(engine, LONG)
    used = len(engine.scheduler.pool.pages_in_use())
    before = engine.plans.deployment
    record = change(engine, 8)
    planned = difference(before, record.after, engine.plans.planner.graph, 16 * used)
    assert used > 0
    assert record.dirty_bytes == 0
    assert record.moved_bytes == record.planned_bytes == planned.total_bytes


# Tensor parallelism.

GREEDY_LONG = tuple(
    Ask(ask.prompt, SamplingParams(temperature=0, max_tokens=60, min_tokens=60, logprobs=2))
    for ask in MIXED
)


@pytest.mark.parametrize("target", TENSOR_TARGETS)
def test_regranularization_to_another_tensor_degree_keeps_running_requests(
    engine: Engine, target: str
) -> None:
    others = [TENSOR_TARGETS["tensor 2"], TENSOR_TARGETS[target], TENSOR_TARGETS["1 stage"]]
    got, _ = serve_through(engine, GREEDY_LONG, others)
    assert [len(answer.tokens) for answer in got] == [60] * len(got)
    ties = [is_near_tie(ask, each.tokens) for ask, each in zip(GREEDY_LONG, got, strict=True)]
    assert sum(ties) <= len(ties) // 4
    engine.check_idle()


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("1 stage", "tensor 2"),
        ("tensor 2", "the other way round"),
        ("tensor 2", "pipeline 2, tensor 2"),
        ("pipeline 2, tensor 2", "tensor 1, then tensor 2"),
        ("tensor 1, then tensor 2", "tensor 2 and a replica"),
        ("tensor 2", "1 stage"),
    ],
)
def test_regranularization_between_tensor_degrees_moves_the_planned_bytes(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, before: str, after: str
) -> None:
    change(engine, TENSOR_TARGETS[before])
    deployment, tokens = engine.plans.deployment, [0] * len(engine.replicas)
    for index, replica in enumerate(engine.replicas):
        count_pages(monkeypatch, replica.scheduler.pool, tokens, index)
    _, (record,) = serve_through(engine, GREEDY_LONG, [TENSOR_TARGETS[after]])
    planned = difference(deployment, record.after, engine.plans.planner.graph, tokens)
    assert record.parameter_bytes == planned.parameter_bytes > 0
    assert record.kv_bytes == planned.kv_bytes > 0
    assert record.moved_bytes == record.planned_bytes + record.dirty_bytes


def test_regranularization_takes_a_new_replica_from_where_it_spares_the_most_bytes() -> None:
    """Shares of a piece count in other units where tensor degrees differ."""
    engine = deep_engine(even(1), staged((8, (2, 3))), num_pages=33)
    before = engine.plans.deployment
    after = Deployment((even(1), staged((8, (4, 5))), staged((8, (3, 2)))))
    record = change(engine, after)
    planned = difference(before, after, engine.plans.planner.graph)
    assert record.parameter_bytes == planned.parameter_bytes
    assert record.moved_bytes == record.planned_bytes == planned.total_bytes
    change(engine, before)


# Nothing compiles on the request path.


def test_regranularization_compiles_nothing_on_the_request_path(small_slices: None) -> None:
    engine = deep_engine(num_pages=35)  # nobody else warms up its programs
    engine.executor.compiler.compile_all(progress=False)
    targets = [2, PLAIN_TARGETS["2 replicas"], staged((8, (0, 1))), even(4)]
    for target in targets:
        serve_through(engine, MIXED, [target])
        answers(engine, MIXED)
    assert engine.plans.stats().switches == {"done": len(targets)}
    assert set(engine.stats().compiles) == {"warmup", "background"}


def test_regranularization_lets_go_of_programs_that_it_compiles_again_when_they_are_wanted(
    small_slices: None,
) -> None:
    engine = deep_engine(num_pages=38)  # nobody else uses its programs
    compiler = engine.executor.compiler
    compiler.compile_all(progress=False)
    compiler.max_programs = 0  # of one plan and the next there are more
    targets = [2, PLAIN_TARGETS["2 replicas"], even(4)]
    compiled = []
    for target in (*targets, 1, *targets):
        got, _ = serve_through(engine, LONG, [target])
        assert_right(LONG, got)
        compiler.wait_background()
        compiled.append(engine.stats().compiles["background"])
    assert compiled[-1] - compiled[-2] > 20
    assert set(engine.stats().compiles) == {"warmup", "background"}
    engine.check_idle()
