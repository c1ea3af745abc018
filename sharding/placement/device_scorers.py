"""How dear a device is for a stage: an answer of our own, and FlexPipe's.

A scorer looks at one stage on one device. What it says of different devices adds up, because no two
stages of a model share a device; the search finds the devices with the least sum.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np

from fjx.errors import MeshError
from fjx.sharding.partition.needs import PlanNeed
from fjx.sharding.topology.fleet import Fleet, Floats, Integers
from fjx.sharding.topology.topology import UNKNOWN_MEMORY

_MIB = 1 << 20
_COLD_BITS = 24
"""Room for the cold MiB of all stages: 16 TiB. With as many for stranded MiB, sums of prices stay
whole numbers that a float64 holds exactly."""
_PARTS = 1 << 10
"""Into how many parts the largest device is divided where devices are filled with pieces."""
_FLEXPIPE_UNIT = 1e9


class DeviceScorer(Protocol):
    """Judges devices."""

    name: ClassVar[str]
    """On the command line and in results."""

    def terms(self, fleet: Fleet, need: PlanNeed) -> dict[str, Floats]:
        """What the price is made of, by name, each [S, D] for S stages and D devices."""

    def price(self, fleet: Fleet, need: PlanNeed) -> Integers:
        """What each stage costs on each device, [S, D]; the least sum wins. Below 2 ** 52."""


@dataclass(frozen=True)
class Demand:
    """A model that others will want to place, in pieces of these sizes.

    Raises:
        MeshError: there are no sizes, one is not above 0, or the weight is below 0.
    """

    sizes: tuple[int, ...]
    """Bytes on a device; any mixture of them is of use."""
    weight: float = 1.0
    """How often it is wanted, relative to the others."""

    def __post_init__(self) -> None:
        if not self.sizes or min(self.sizes) < 1 or self.weight < 0:
            raise MeshError(f"a demand needs sizes above 0 and a weight of at least 0, got {self}")


@dataclass(frozen=True)
class FragmentScorer:
    """The memory that a stage leaves stranded, then the parameters that it has to load cold.

    The terms, in bytes:

    - ``stranded``: by how much the device's stranded memory grows; see `stranded_bytes`. It is
      negative where the stage fills a fragment that was of little use.
    - ``cold``: parameters that the device's node does not hold in host memory.

    The order is strict, as far as it shows in whole MiB.
    """

    name: ClassVar[str] = "fragment"

    demands: tuple[Demand, ...] = ()
    """What others will want; none: the stages of the plan itself."""

    def terms(self, fleet: Fleet, need: PlanNeed) -> dict[str, Floats]:
        """Bytes."""
        demands = self.demands or demands_of([need])
        before = stranded_bytes(fleet.free_bytes, demands)
        sizes, of_stage = np.unique([s.needed_bytes for s in need.stages], return_inverse=True)
        grown = [stranded_bytes(_left(fleet, int(size)), demands) - before for size in sizes]
        return {
            "stranded": np.array(grown)[of_stage],
            "cold": cold_bytes(fleet, need).astype(np.float64),
        }

    def price(self, fleet: Fleet, need: PlanNeed) -> Integers:
        """Stranded MiB in the high bits, cold MiB in the low ones."""
        terms = self.terms(fleet, need)
        stranded, cold = (
            np.rint(terms[name] / _MIB).astype(np.int64) for name in ("stranded", "cold")
        )
        price: Integers = (stranded << _COLD_BITS) + cold
        return price


@dataclass(frozen=True, kw_only=True)
class FlexPipeDeviceScorer:
    """What FlexPipe (arXiv:2510.11938) says of a device: sharing costs, an old host is dear to it.

    The terms, each to be had as much of as possible:

    - ``pace``: a device's speed over the fastest one's, for T_ij / m_j of equation 6. The paper
      does not say what m_j is.
    - ``sharing``: minus gamma_0 (1 + alpha cv^2) on a device that others use (equation 9).
    - ``affinity``: on a node that holds the model in host memory, w_t exp(-lambda age) + w_g times
      the share of its devices that have room (equation 13). The paper counts devices that the model
      used before; here all of the node's count.

    The paper gives no values for any of the factors.

    Raises:
        MeshError: a field is below zero.
    """

    name: ClassVar[str] = "flexpipe"

    cv: float = 1.0
    """Coefficient of variation of the times between the model's requests."""
    sharing_weight: float = 0.5
    """gamma_0"""
    burst_weight: float = 0.1
    """alpha"""
    decay: float = 1 / 300
    """lambda, per second: here the paper's window of reclamation."""
    time_weight: float = 1.0
    """w_t"""
    device_weight: float = 1.0
    """w_g"""

    def __post_init__(self) -> None:
        for field in ("cv", "sharing_weight", "burst_weight", "decay"):
            if getattr(self, field) < 0:
                raise MeshError(f"FlexPipeDeviceScorer: {field} must be at least 0")

    def terms(self, fleet: Fleet, need: PlanNeed) -> dict[str, Floats]:
        """The parts of equations 6, 9 and 13."""
        shape = (len(need.stages), len(fleet.devices))
        penalty = self.sharing_weight * (1 + self.burst_weight * self.cv**2)
        return {
            "pace": np.broadcast_to(fleet.speed / fleet.speed.max(), shape),
            "sharing": np.broadcast_to(np.where(fleet.tenants > 0, -penalty, 0.0), shape),
            "affinity": self._affinity(fleet, need),
        }

    def price(self, fleet: Fleet, need: PlanNeed) -> Integers:
        """Minus the sum of the terms, in whole billionths."""
        total = sum(self.terms(fleet, need).values())
        price: Integers = np.rint(-np.asarray(total) * _FLEXPIPE_UNIT).astype(np.int64)
        return price

    def _affinity(self, fleet: Fleet, need: PlanNeed) -> Floats:
        nodes = len(fleet.hosts)
        recent = np.full(nodes, -1.0)
        number = {host: i for i, host in enumerate(fleet.hosts)}
        for copy in fleet.topology.copies:
            if copy.model == need.model and copy.host in number:
                index = number[copy.host]
                recent[index] = max(recent[index], np.exp(-self.decay * copy.age_seconds))
        sizes = np.array([stage.needed_bytes for stage in need.stages], np.int64)
        rooms = fleet.free_bytes >= sizes[:, None]
        counts = np.array([np.bincount(fleet.node[room], minlength=nodes) for room in rooms])
        shares = counts / np.bincount(fleet.node, minlength=nodes)
        by_node = self.time_weight * recent + self.device_weight * shares
        affinity: Floats = np.where(recent >= 0, by_node, 0.0)[:, fleet.node]
        return affinity


def stranded_bytes(free: Integers, demands: Sequence[Demand]) -> Floats:
    """Free memory that stays unused however a device is filled with pieces of a model, [D].

    The mean over the demands. What pieces can fill is the largest sum of their sizes, each rounded
    up to a 1024th of the largest device, so that of two ways to fill a device the one with fewer
    pieces counts as a little better. Fragmentation in the sense of FGD (Weng et al., ATC '23) is a
    first step of it: there memory is lost where not even one piece fits. Memory of unknown size is
    never stranded.
    """
    known = np.where(free < UNKNOWN_MEMORY, free, 0)
    unit = -(-int(known.max(initial=0)) // _PARTS) or 1
    units, total = known // unit, sum(demand.weight for demand in demands)
    filled = np.zeros(len(free))
    for demand in demands:
        sizes = {-(-size // unit) for size in demand.sizes}
        filled += demand.weight / total * _filled(sizes)[units]
    stranded: Floats = known - unit * filled
    return stranded


def demands_of(needs: Sequence[PlanNeed]) -> tuple[Demand, ...]:
    """The models of some plans as what others will want: each counts the same."""
    sizes: dict[str, set[int]] = defaultdict(set)
    for need in needs:
        sizes[need.model] |= {max(1, stage.needed_bytes) for stage in need.stages}
    return tuple(Demand(tuple(sorted(each))) for each in sizes.values())


def _filled(sizes: set[int]) -> Integers:
    """The largest sum of sizes, each taken any number of times, up to each number, [parts + 1]."""
    sums, within = 1, (1 << _PARTS + 1) - 1  # bit n: n is a sum
    for size in sizes:
        step = size
        while step <= _PARTS:
            sums |= sums << step & within
            step *= 2
    bits = np.frombuffer(sums.to_bytes(_PARTS // 8 + 1, "little"), np.uint8)
    is_sum = np.unpackbits(bits, bitorder="little")[: _PARTS + 1]
    filled: Integers = np.maximum.accumulate(is_sum * np.arange(_PARTS + 1))
    return filled


def cold_bytes(fleet: Fleet, need: PlanNeed) -> Integers:
    """Parameters of each stage that a device would get from elsewhere than its node's host memory,
    [S, D]."""
    granules = need.stages[-1].granules.stop
    absent = ~fleet.held(need.model, granules)
    by_node = [
        absent[:, stage.granules.start : stage.granules.stop]
        @ np.array(stage.granule_bytes, np.int64)
        for stage in need.stages
    ]
    cold: Integers = np.array(by_node, np.int64)[:, fleet.node]
    return cold


def _left(fleet: Fleet, size: int) -> Integers:
    known = fleet.free_bytes < UNKNOWN_MEMORY
    left: Integers = np.where(known, np.maximum(fleet.free_bytes - size, 0), fleet.free_bytes)
    return left
