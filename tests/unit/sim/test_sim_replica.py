"""A simulated replica: the engine's own objects, the same times in one go as step by step, and
queues whose waiting times are known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fjx.engine.engine
import fjx.engine.plan_changes
import fjx.engine.progress
import fjx.scheduling.scheduler
import fjx.speculation.runtime.speculator
from fjx.sim import reading as reading_module
from fjx.sim import sim_speculation as speculation_module
from fjx.sim.engine_replica import EngineReplica
from fjx.sim.sim_speculation import DrafterProfile
from fjx.sim.steps import ReplicaLimits
from fjx.sim.workload import SimRequest
from fjx.speculation.policy.lengths import Fixed
from tests.unit.sim.sim_cases import Change, constant_costs, pipeline_costs, poisson, serve

LIMITS = ReplicaLimits(num_pages=3000, max_num_seqs=32, max_num_batched_tokens=256)


@settings(max_examples=25, derandomize=True)
@given(
    rate=st.floats(0.5, 60),
    stages=st.integers(1, 5),
    microbatches=st.integers(1, 5),
    pages=st.integers(60, 900),
    seqs=st.integers(2, 40),
    budget=st.integers(40, 400),
    host=st.sampled_from([0.0, 5e-4, 1e-2]),
    seed=st.integers(0, 2**20),
)
def test_steps_at_once_give_the_times_of_the_engines_steps(
    rate: float,
    stages: int,
    microbatches: int,
    pages: int,
    seqs: int,
    budget: int,
    host: float,
    seed: int,
) -> None:
    workload = poisson(60, rate, seed=seed)
    limits = ReplicaLimits(num_pages=pages, max_num_seqs=seqs, max_num_batched_tokens=budget)
    costs = pipeline_costs(stages, budget)
    given = workload, limits, costs, microbatches
    exact, by_steps = serve(*given, exact=True, host_seconds=host)
    quick, at_once = serve(*given, host_seconds=host)
    assert quick.first == pytest.approx(exact.first, abs=1e-9)
    assert quick.end == pytest.approx(exact.end, abs=1e-9)
    assert quick.steps == pytest.approx(exact.steps, abs=1e-9)
    assert at_once.steps == by_steps.steps
    assert at_once.scheduler.num_preemptions == by_steps.scheduler.num_preemptions


@settings(max_examples=15, derandomize=True)
@given(
    rate=st.floats(2, 60),
    plans=st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), min_size=2, max_size=4),
    apart=st.floats(0.0, 3.0),
    pause=st.sampled_from([0.0, 0.01, 0.5]),
    pages=st.integers(60, 900),
    seed=st.integers(0, 2**20),
)
def test_changes_of_plan_happen_when_those_of_the_engine_do(
    rate: float, plans: list[tuple[int, int]], apart: float, pause: float, pages: int, seed: int
) -> None:
    workload = poisson(60, rate, seed=seed)
    limits = ReplicaLimits(num_pages=pages, max_num_seqs=16, max_num_batched_tokens=128)
    (stages, microbatches), *others = plans
    changes = [
        Change(number * apart, pipeline_costs(each, 128), num_groups, pause)
        for number, (each, num_groups) in enumerate(others, start=1)
    ]
    given = workload, limits, pipeline_costs(stages, 128), microbatches
    exact, by_steps = serve(*given, exact=True, changes=changes)
    quick, at_once = serve(*given, changes=changes)
    assert quick.first == pytest.approx(exact.first, abs=1e-9)
    assert quick.end == pytest.approx(exact.end, abs=1e-9)
    assert quick.steps == pytest.approx(exact.steps, abs=1e-9)
    assert at_once.steps == by_steps.steps
    assert isinstance(by_steps, EngineReplica)
    assert by_steps.engine.plans.stats().switches == {"done": len(changes)}


def test_requests_that_lose_their_pages_end_all_the_same() -> None:
    limits = ReplicaLimits(num_pages=60, max_num_seqs=32, max_num_batched_tokens=256)
    heard, replica = serve(poisson(80, 30.0), limits, pipeline_costs(2, 256), 2)
    assert len(heard.end) == 80
    assert replica.scheduler.num_preemptions > 0


def test_a_request_alone_takes_its_steps_one_after_the_other() -> None:
    step, output = 0.01, 7
    heard, _ = serve([SimRequest(1.0, 10, output)], LIMITS, constant_costs(step, 256))
    assert heard.first[0] == pytest.approx(1.0 + step)
    assert heard.end[0] == pytest.approx(1.0 + output * step)


def test_a_long_prompt_is_computed_in_chunks() -> None:
    step = 0.01
    heard, _ = serve([SimRequest(0.0, 600, 1)], LIMITS, constant_costs(step, 256))
    assert heard.first[0] == pytest.approx(3 * step)


def test_a_full_pipeline_takes_a_prompt_of_each_part_at_once() -> None:
    stages, budget, prompt = 4, 256, 2560
    limits = ReplicaLimits(num_pages=3000, max_num_seqs=32, max_num_batched_tokens=budget)
    costs = pipeline_costs(stages, budget)
    one, _ = serve([SimRequest(0.0, prompt, 1)], limits, costs, stages)
    four, _ = serve([SimRequest(0.0, prompt, 1)] * stages, limits, costs, stages)
    assert max(four.end.values()) < 1.2 * one.end[0]


def test_a_request_that_comes_runs_in_the_next_step_whosever_turn_it_is() -> None:
    num_groups, step, late = 4, 0.01, 0.505
    others = [SimRequest(0.0, 8, 100)] * num_groups
    heard, _ = serve(
        [*others, SimRequest(late, 8, 1)], LIMITS, constant_costs(step, 256), num_groups
    )
    ahead = num_groups + 1  # steps in flight when it comes
    assert heard.first[num_groups] - late <= (ahead + 1) * step


def test_the_gaps_that_are_reported_are_those_of_one_part() -> None:
    num_groups, step = 4, 0.01
    workload = [SimRequest(0.0, 8, 50)] * num_groups
    for exact in (False, True):
        heard, _ = serve(workload, LIMITS, constant_costs(step, 256), num_groups, exact=exact)
        while_all_run = heard.steps[num_groups:-num_groups]
        assert while_all_run == pytest.approx([num_groups * step] * (num_groups * 47))


def test_parts_without_requests_take_no_time() -> None:
    workload = [SimRequest(0.0, 8, 50)]
    one, four = (
        serve(workload, LIMITS, constant_costs(0.01, 256), num_groups) for num_groups in (1, 4)
    )
    assert one[0].end == pytest.approx(four[0].end)
    assert one[1].steps == four[1].steps


def test_the_host_sends_the_steps_of_several_parts_one_after_the_other() -> None:
    num_groups, host = 4, 0.02
    workload = [SimRequest(0.0, 8, 50)] * num_groups
    heard, replica = serve(
        *(workload, LIMITS, pipeline_costs(4, 256), num_groups), host_seconds=host
    )
    assert max(heard.end.values()) >= replica.steps * host


def test_one_at_a_time_with_equal_service_waits_as_in_an_m_d_1_queue() -> None:
    count, service, load = 60_000, 0.01, 0.8
    arrival = np.random.default_rng(5).exponential(service / load, count).cumsum()
    workload = [SimRequest(at, 1, 1) for at in arrival.tolist()]
    limits = ReplicaLimits(num_pages=20, max_num_seqs=1, max_num_batched_tokens=64)
    heard, _ = serve(workload, limits, constant_costs(service))
    waits = np.array([heard.end[i] for i in range(count)]) - arrival - service
    expected = load / (2 * (1 - load)) * service
    assert abs(waits.mean() - expected) < 3 * _standard_error(waits)


def test_one_at_a_time_with_random_service_waits_as_pollaczek_and_khinchine_say() -> None:
    count, step, load = 40_000, 0.001, 0.7
    random = np.random.default_rng(6)
    outputs = random.geometric(0.1, count)
    service = step * outputs
    rate = load / (step * 10)
    arrival = random.exponential(1 / rate, count).cumsum()
    workload = [
        SimRequest(*each)
        for each in zip(arrival.tolist(), [1] * count, outputs.tolist(), strict=True)
    ]
    limits = ReplicaLimits(num_pages=40, max_num_seqs=1, max_num_batched_tokens=64)
    heard, _ = serve(workload, limits, constant_costs(step))
    waits = np.array([heard.end[i] for i in range(count)]) - arrival - service
    expected = rate * (step**2 * (2 - 0.1) / 0.1**2) / (2 * (1 - load))
    assert abs(waits.mean() - expected) < 3 * _standard_error(waits)


def _standard_error(waits: np.ndarray) -> float:
    """From the means of 40 parts, because waits that follow each other are alike."""
    parts = waits[: len(waits) // 40 * 40].reshape(40, -1).mean(axis=1)
    return float(parts.std(ddof=1) / math.sqrt(40))


def test_good_drafts_make_a_request_faster_and_worthless_ones_hardly_slower() -> None:
    workload = poisson(40, 0.5)
    limits = ReplicaLimits(
        num_pages=3000, max_num_seqs=32, max_num_batched_tokens=256, max_draft_rows=64
    )
    costs = pipeline_costs(1, 256)

    def mean(drafting: DrafterProfile | None) -> float:
        heard, _ = serve(workload, limits, costs, exact=True, drafting=drafting)
        assert len(heard.end) == len(workload)
        return float(np.mean([heard.end[i] - r.arrival for i, r in enumerate(workload)]))

    cheap = {"first_seconds": 2e-4, "round_seconds": 2e-4}
    plain = mean(None)
    assert mean(DrafterProfile(rates=(0.9,), **cheap)) < 0.6 * plain
    assert mean(DrafterProfile(rates=(0.02,), **cheap)) < 1.1 * plain


DRAFTED = ReplicaLimits(
    num_pages=3000, max_num_seqs=64, max_num_batched_tokens=256, max_draft_rows=64
)


def test_the_stages_go_on_with_other_parts_while_one_is_drafted_for() -> None:
    stages, output, drafting = 4, 40, DrafterProfile(rates=(1e-3,), request_seconds=0.0)
    costs = pipeline_costs(stages, 256)
    alone, together = (
        serve(
            *([SimRequest(0.0, 8, output)] * requests, DRAFTED, costs, stages),
            drafting=drafting,
            lengths=Fixed(1),
        )[0]
        for requests in (1, stages)
    )
    assert max(together.end.values()) < 1.1 * alone.end[0]
    traversal = costs.alone_seconds(1, 1, 0.0, 0.0)
    assert alone.end[0] > 0.95 * output * (traversal + drafting.first_seconds)


@pytest.mark.parametrize(("round_seconds", "most"), [(2e-3, 0.65), (8e-3, 1.1)])
def test_drafting_for_all_parts_of_a_busy_pipeline_is_weighed(
    round_seconds: float, most: float
) -> None:
    workload = poisson(200, 20.0, prompt=60, output=60)
    drafting = DrafterProfile(
        rates=(0.85,), first_seconds=round_seconds, round_seconds=round_seconds
    )
    plain, drafted = (
        serve(workload, DRAFTED, pipeline_costs(4, 256), 4, exact=True, drafting=each)[0]
        for each in (None, drafting)
    )
    took = [
        sum(heard.end.values()) - sum(r.arrival for r in workload) for heard in (plain, drafted)
    ]
    assert took[1] < most * took[0]


def test_what_decides_is_the_engines_own_code() -> None:
    _, quick = serve(poisson(5, 5.0), LIMITS, pipeline_costs(1, 256))
    assert type(quick.scheduler) is fjx.scheduling.scheduler.Scheduler
    assert reading_module.commit is fjx.engine.progress.commit
    assert speculation_module.Speculator is fjx.speculation.runtime.speculator.Speculator
    _, exact = serve(poisson(5, 5.0), LIMITS, pipeline_costs(1, 256), exact=True)
    assert isinstance(exact, EngineReplica)
    assert type(exact.engine) is fjx.engine.engine.Engine
    assert type(exact.scheduler) is fjx.scheduling.scheduler.Scheduler
    assert type(exact.engine.plans) is fjx.engine.plan_changes.PlanChanges


def test_a_request_that_fits_into_no_memory_is_an_error_not_an_endless_run() -> None:
    limits = ReplicaLimits(num_pages=5, max_num_seqs=4, max_num_batched_tokens=64)
    with pytest.raises(ValueError, match="110 tokens, the replica has room for 64"):
        serve([SimRequest(0.0, 100, 10)], limits, constant_costs(0.01))
