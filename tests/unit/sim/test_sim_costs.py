"""What steps cost, and when a pipeline's steps end."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fjx.sharding.costs.figures import Workload, plan_figures
from fjx.sharding.costs.timeline import round_seconds
from fjx.sharding.planner.assign import places_of
from fjx.sim.costs import StageCosts, profile_costs, roofline_costs
from fjx.sim.setup import named_setup
from fjx.sim.timing import Stages
from tests.unit.sim.sim_cases import pipeline_costs, setup


def steps_end(costs: StageCosts, microbatches: int, rows: int, steps: int) -> np.ndarray:
    """When steps of parts of so many rows have left the pipeline; nothing is attended to."""
    costs = replace(
        costs, pair_seconds=0 * costs.pair_seconds, context_seconds=0 * costs.pair_seconds
    )
    group_ids = range(microbatches)
    batch = [rows] * microbatches, [rows] * microbatches, [0] * microbatches, [0] * microbatches
    stages = Stages(costs, microbatches, 0.0, 0.0)
    leaves, _ = stages.plan(group_ids, batch, 0.0, [0.0] * microbatches, steps)
    return leaves[:, -1]


def test_decoding_reads_all_parameters_and_a_large_prefill_is_bound_by_arithmetic() -> None:
    of = setup()
    costs = of.costs(of.deployment(1).replicas[0])
    entries = sum(piece.split_parameter_bytes for _, piece in of.graph.pieces()) / 2
    head = of.sizes.vocab_size * of.sizes.hidden_size  # embed reads its rows only
    reading = 2 * (entries - head) / of.device.memory_bytes_per_second
    launches = float(costs.fixed[:, 1].sum())
    assert costs.alone_seconds(1, 1, 0.0, 0.0) == pytest.approx(reading + launches, rel=0.01)
    arithmetic = 512 * 2 * (entries - 2 * head) / of.device.flops_per_second
    assert costs.alone_seconds(512, 1, 0.0, 0.0) == pytest.approx(arithmetic, rel=0.05)


def test_more_stages_share_the_work_and_add_hops() -> None:
    of = setup()
    one, four = (of.costs(of.deployment(n).replicas[0]) for n in (1, 4))
    assert four.alone_seconds(64, 64, 0.0, 0.0) > one.alone_seconds(64, 64, 0.0, 0.0)
    period = np.diff(steps_end(four, 4, 64, 160))[-1]
    assert period < 0.3 * np.diff(steps_end(one, 1, 64, 40))[-1]


def test_tensor_parallel_stages_are_faster_by_less_than_their_devices() -> None:
    of = setup()
    plans = (of.deployment(1, 1, tensor).replicas[0] for tensor in (1, 4))
    alone, split = (
        roofline_costs(of.sizes, of.graph, plan, of.topology, of.device, 8) for plan in plans
    )
    ratio = alone.alone_seconds(1, 1, 0.0, 0.0) / split.alone_seconds(1, 1, 0.0, 0.0)
    assert 2 < ratio < 4


@pytest.mark.parametrize(("stages", "microbatches"), [(1, 1), (2, 2), (4, 4), (4, 8)])
def test_a_full_pipeline_steps_as_the_planners_timeline_says(
    stages: int, microbatches: int
) -> None:
    of, rows = setup(), 16
    plan = of.deployment(stages).replicas[0]
    places = places_of(plan, of.topology)
    figures = plan_figures(of.graph, plan, places, Workload(rows=rows))
    costs = profile_costs(of.graph, plan, of.topology, rows)
    ends = steps_end(costs, microbatches, rows, 60 * microbatches)[::microbatches]
    period = np.diff(ends)[-8:].mean()
    assert period == pytest.approx(round_seconds(figures, microbatches), rel=1e-6)


def test_a_profile_counts_by_its_padded_sizes() -> None:
    of = setup()
    costs = profile_costs(of.graph, of.deployment(1).replicas[0], of.topology, 40)
    seconds = costs.compute.sum(axis=0)
    assert seconds[17] == seconds[24]
    assert seconds[24] < seconds[25]


def test_a_step_waits_until_the_host_has_read_the_one_before_the_last() -> None:
    costs = pipeline_costs(4, 8)
    ends = steps_end(costs, 1, 1, 6)
    assert np.all(np.diff(ends) >= costs.alone_seconds(1, 1, 0.0, 0.0) - 1e-12)


def test_shares_of_a_device_slow_arithmetic_and_reading_each_by_their_own() -> None:
    costs = pipeline_costs(1, 512)
    halved = costs.shared(0.5, 1.0)
    assert halved.alone_seconds(1, 1, 0.0, 0.0) == costs.alone_seconds(1, 1, 0.0, 0.0)
    many = costs.alone_seconds(512, 0, 0.0, 0.0) - costs.fixed[0, 512]
    assert halved.alone_seconds(512, 0, 0.0, 0.0) - costs.fixed[0, 512] == pytest.approx(2 * many)


def test_a_model_of_132_gb_needs_two_devices_of_80() -> None:
    assert named_setup("opt-66b").smallest().replicas[0].granularity == 2
