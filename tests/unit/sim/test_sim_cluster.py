"""Devices: who gets them, how long they are held, how long loading and copying takes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.placement_baselines import first_fit, random_fit
from fjx.errors import UserError
from fjx.sharding.costs.difference import difference
from fjx.sharding.partition.needs import PlanNeed, StageNeed
from fjx.sharding.topology.topology import Link
from fjx.sim.hardware import Storage
from fjx.sim.loads import copy_seconds, load_seconds
from fjx.sim.metrics import Outcomes, measure, stall_seconds
from fjx.sim.sim_cluster import SimCluster, Tenancy, flexpipe_hosts, tenancies_from_pods
from tests.unit.sim.sim_cases import DEVICES, cluster, setup

GB = 10**9


def need(*sizes: int, sent: int = 0, tensor: int = 1) -> PlanNeed:
    """A plan whose stages need so many bytes on each of their devices."""
    stages = (
        StageNeed(
            granules=range(i, i + 1),
            granule_bytes=(size,),
            seconds=1.0,
            sent_bytes=sent,
            tensor=tensor,
        )
        for i, size in enumerate(sizes)
    )
    return PlanNeed(model="any", stages=tuple(stages))


def test_flexpipes_cluster_has_82_devices_on_42_hosts() -> None:
    hosts = flexpipe_hosts()
    assert (sum(hosts), len(hosts)) == (82, 42)


def test_held_devices_are_counted_over_time_and_shares_as_shares() -> None:
    of = SimCluster([2, 2], GB, placer=first_fit)
    assert of.take(need(1, 1), 0.0) == [0, 1]
    assert of.take(need(1), 5.0, share=0.5) == [2]
    of.give_back([0], 10.0)
    of.end(20.0)
    assert of.held_seconds == pytest.approx(2 * 10 + 1 * 10 + 0.5 * 15)
    assert of.max_held == 2.5


def test_a_device_that_others_fill_is_passed_over_until_they_leave() -> None:
    of = SimCluster([2], GB, [Tenancy(0, 0.8, 0.0, 10.0)])
    assert of.take(need(GB // 2, GB // 2), 5.0) is None
    assert of.take(need(GB // 2), 5.0) == [1]
    assert of.take(need(GB // 2), 11.0) == [0]


def test_the_products_placement_keeps_slow_links_out_of_a_pipeline() -> None:
    # First fit would begin on the first host, and send from host to host.
    slow, sent = Link(bytes_per_second=1.0 * GB), GB // 10
    own = SimCluster([1, 2], GB, between=slow)
    assert own.take(need(1, 1, sent=sent), 0.0) == [1, 2]
    assert SimCluster([1, 2], GB, between=slow, placer=first_fit).take(need(1, 1), 0.0) == [0, 1]


@pytest.mark.parametrize("seed", range(5))
def test_shards_of_a_stage_are_on_one_host_whoever_places_them(seed: int) -> None:
    for placer in (None, first_fit, random_fit(seed)):
        of = SimCluster([1, 2, 1, 2], GB, **({} if placer is None else {"placer": placer}))
        chosen = of.take(need(1, 1, tensor=2), 0.0)
        assert chosen is not None
        assert {frozenset(chosen[:2]), frozenset(chosen[2:])} == {
            frozenset({1, 2}),
            frozenset({4, 5}),
        }
        assert of.take(need(1, tensor=2), 0.0) is None


def test_a_plan_gets_the_devices_and_the_links_that_it_was_placed_on() -> None:
    of, spread, together = setup(), SimCluster([1, 1], GB), SimCluster([2], GB)
    plan = of.deployment(2).replicas[0]
    devices = {plan.devices[0]: 1, plan.devices[1]: 0}
    assert [device.host for device in spread.placed(plan, devices).devices] == ["host-1", "host-0"]
    far, near = (of.costs(each.placed(plan, devices), each.topology) for each in (spread, together))
    rows = 64
    residual = rows * of.sizes.hidden_size * 4
    expected = spread.topology.between.transfer_seconds(
        residual
    ) - together.topology.within.transfer_seconds(residual)
    assert far.fixed[1, rows] - near.fixed[1, rows] == pytest.approx(expected)
    assert np.array_equal(far.fixed[0], near.fixed[0])


def test_tenants_take_the_wanted_share(tmp_path: Path) -> None:
    path = tmp_path / "pods.csv"
    header = "name,num_gpu,gpu_milli,creation_time,deletion_time\n"
    path.write_text(header + "a,1,500,0,100\nb,2,1000,0,300\nc,0,0,0,100\n")
    found = tenancies_from_pods(path, 20, 1000.0, 0.4, 0)
    taken = sum(t.share * (min(t.end, 1000) - max(t.begin, 0)) for t in found)
    assert taken / (20 * 1000) == pytest.approx(0.4, rel=0.1)
    path.write_text("name\na\n")
    with pytest.raises(UserError, match="no list of pods"):
        tenancies_from_pods(path, 20, 1000.0, 0.4, 0)


def test_devices_of_one_host_share_its_disks_and_not_its_memory() -> None:
    storage = Storage(host_rate=25 * GB, disk_rate=5 * GB, start_seconds=1.0)
    of = SimCluster([2, 2], 80 * GB)
    needs = [10 * GB, 10 * GB]
    assert load_seconds(needs, [0, 1], of, "disk", storage) == pytest.approx(1 + 4)
    assert load_seconds(needs, [0, 2], of, "disk", storage) == pytest.approx(1 + 2)
    assert load_seconds(needs, [0, 1], of, "host", storage) == pytest.approx(1 + 0.4)


def test_a_change_copies_what_its_busiest_link_must_carry() -> None:
    of = setup()
    before, after = of.deployment(2), of.deployment(4)
    moved = difference(before, after, of.graph, [0])
    devices = {device: device.index for device in after.devices}
    peers, memory = (
        copy_seconds(moved, devices, cluster(), Storage(), from_host_memory=each)
        for each in (False, True)
    )
    received = max(moved.received().values())
    assert memory.parameters == pytest.approx(received / Storage().host_rate)
    assert peers.parameters >= memory.parameters
    assert peers.kv == 0.0
    with_pages = difference(before, after, of.graph, [1000])
    assert copy_seconds(with_pages, devices, cluster(), Storage(), from_host_memory=True).kv > 0
    assert len(devices) <= DEVICES


def test_a_stall_lasts_until_requests_are_as_fast_as_before() -> None:
    arrival = np.arange(10.0)
    slowness = np.array([1, 1, 1, 2, 3, 1.3, 1.1, 1, 1.4, 1])
    assert stall_seconds(arrival, slowness).tolist() == [3.0]


def test_one_slow_request_is_a_stall_and_no_burst() -> None:
    arrival = np.arange(400.0)
    latency = np.ones(400)
    latency[50] = 9.0  # alone
    latency[200:300] = 9.0
    latency[250] = 1.0  # one that was lucky
    output = np.full(400, 5)
    outcomes = Outcomes(arrival, arrival + 0.5, arrival + latency, output, np.ones(400))
    metrics = measure(outcomes, objective=5, device_seconds=1, devices=(1, 1), changes=0)
    assert metrics.stalls == 3
    assert metrics.burst_recovery_most == pytest.approx(100, abs=1)
    assert metrics.burst_recovery_mean == metrics.burst_recovery_most
