"""Small fleets and plans."""

from __future__ import annotations

from fjx.sharding.needs import PlanNeed, StageNeed
from fjx.sharding.plan import Device
from fjx.sharding.topology import INSTANT, DeviceState, HostCopy, Link, Topology

GIB = 1 << 30

WITHIN, RACK, BETWEEN = Link(1e9, 1e-3), Link(1e9, 2e-3), Link(1e9, 4e-3)


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
