"""Small fleets and plans, by hand and drawn, and all placements of them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from hypothesis import strategies as st

from fjx.sharding.partition.needs import PlanNeed, StageNeed
from fjx.sharding.placement.placement import Placement, placement_on
from fjx.sharding.plan.plan import Device
from fjx.sharding.topology.fleet import Fleet
from fjx.sharding.topology.topology import INSTANT, DeviceState, HostCopy, Link, Topology

GIB = 1 << 30

LINKS = WITHIN, RACK, BETWEEN = Link(1e9, 1e-3), Link(1e9, 2e-3), Link(1e9, 4e-3)


def need(
    *gibibytes: float,
    model: str = "toy",
    seconds: float | tuple[float, ...] = 0.01,
    sent_bytes: int = 0,
    tensor: int = 1,
) -> PlanNeed:
    """A plan whose stages are one granule each and need so much."""
    each = seconds if isinstance(seconds, tuple) else (seconds,) * len(gibibytes)
    return PlanNeed(
        model=model,
        stages=tuple(
            StageNeed(
                granules=range(index, index + 1),
                granule_bytes=(int(size * GIB),),
                seconds=each[index],
                sent_bytes=sent_bytes,
                tensor=tensor,
            )
            for index, size in enumerate(gibibytes)
        ),
    )


def cluster(
    free: dict[str, list[float]],
    *,
    racks: dict[str, str] | None = None,
    speeds: dict[str, float] | None = None,
    copies: tuple[HostCopy, ...] = (),
    pairs: tuple[tuple[frozenset[str], Link], ...] = (),
    links: tuple[Link, Link, Link] = (INSTANT, INSTANT, INSTANT),
) -> Topology:
    """Nodes by name with the GiB that are free on each of their devices."""
    return Topology(
        tuple(
            DeviceState(Device(host, "gpu", i), int(size * GIB), (speeds or {}).get(host, 1.0))
            for host, sizes in free.items()
            for i, size in enumerate(sizes)
        ),
        within=links[0],
        within_rack=links[1],
        between=links[2],
        pairs=pairs,
        racks=tuple((racks or {}).items()),
        copies=copies,
    )


# Milliseconds that links and speeds divide without rest, and few sizes: ties are common, and the
# checker's sums are exact.
seconds = st.sampled_from([0.0, 0.002, 0.004])
links = st.sampled_from([Link(), Link(1e6, 0.001), Link(1e6, 0.002), Link(1e5), Link(1e6, 0.005)])


@st.composite
def topologies(draw: st.DrawFn) -> Topology:
    names = ["a", "b", "c", "d"][: draw(st.integers(1, 4))]
    states = []
    for name in names:
        speed = draw(st.sampled_from([1.0, 1.0, 2.0]))
        for index in range(draw(st.integers(1, 2))):
            size = draw(st.sampled_from([1, 2, 3, 5])) * GIB
            states.append(DeviceState(Device(name, "gpu", index), size, speed, tenants=index))
    pairs = ()
    if len(names) > 1 and draw(st.booleans()):
        pairs = ((frozenset(draw(st.permutations(names))[:2]), draw(links)),)
    copies = tuple(
        HostCopy(
            host=name,
            model="toy",
            granules=draw(st.sampled_from([None, frozenset({0}), frozenset({1, 2})])),
            age_seconds=draw(st.sampled_from([0.0, 100.0])),
        )
        for name in names
        if draw(st.booleans())
    )
    return Topology(
        tuple(states),
        within=draw(links),
        between=draw(links),
        pairs=pairs,
        within_rack=draw(st.none() | links),
        racks=tuple((n, draw(st.sampled_from("xy"))) for n in names if draw(st.booleans())),
        copies=copies,
    )


@st.composite
def plans(draw: st.DrawFn) -> PlanNeed:
    tensor = draw(st.sampled_from([1, 1, 1, 2]))
    stages = [
        StageNeed(
            granules=range(index, index + 1),
            granule_bytes=(draw(st.integers(0, 2)) * GIB,),
            kv_bytes=draw(st.integers(0, 1)) * GIB,
            seconds=draw(seconds),
            sent_bytes=draw(st.sampled_from([0, 1000, 2000])),
            tensor=tensor,
        )
        for index in range(draw(st.integers(1, 4 // tensor)))
    ]
    return PlanNeed(model="toy", stages=tuple(stages))


def all_placements(fleet: Fleet, plan: PlanNeed) -> Iterator[Placement]:
    rows = [stage for stage in plan.stages for _ in range(stage.tensor)]
    for devices in itertools.permutations(range(len(fleet.devices)), len(rows)):
        if any(
            fleet.free_bytes[d] < row.needed_bytes for d, row in zip(devices, rows, strict=True)
        ):
            continue
        placement = placement_on(fleet, plan, devices)
        if all(len({d.host for d in s.mesh.devices}) == 1 for s in placement.stages):
            yield placement
