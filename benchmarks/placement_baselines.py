"""Placers to compare with: they take stage by stage, and know nothing of links.

Each tries the plans in the order given, and of a plan's stages one after the other in their order;
the first plan whose stages all find devices is taken. No two stages share a device. The shards of a
stage go to the node where they rank best together.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from fjx.sharding.partition.needs import PlanNeed, StageNeed
from fjx.sharding.placement.placement import Placement, Placer, fit_error, placement_on
from fjx.sharding.topology.fleet import Booleans, Fleet, Floats, Integers

Rank = Callable[[Fleet, StageNeed], Floats]
"""How good each device is for a stage, [D]: the least is taken."""


def first_fit(fleet: Fleet, candidates: Sequence[PlanNeed]) -> Placement:
    """The first devices with enough memory."""
    order = np.arange(len(fleet.devices), dtype=np.float64)
    return _place(fleet, candidates, lambda _, stage: order)


def best_fit(fleet: Fleet, candidates: Sequence[PlanNeed]) -> Placement:
    """The devices that have the least memory left afterwards."""
    return _place(fleet, candidates, lambda fleet, stage: fleet.free_bytes.astype(np.float64))


def random_fit(seed: int) -> Placer:
    """Any devices with enough memory, drawn anew for each stage; the same for a seed."""
    draws = np.random.default_rng(seed)

    def placed(fleet: Fleet, candidates: Sequence[PlanNeed]) -> Placement:
        def rank(fleet: Fleet, stage: StageNeed) -> Floats:
            return draws.random(len(fleet.devices))

        return _place(fleet, candidates, rank)

    return placed


def fragmentation_gradient(typical: Sequence[PlanNeed] = ()) -> Placer:
    """FGD (Weng et al., "Beware of Fragmentation", ATC '23) for pieces of memory.

    There, a GPU's free share is lost to a task that wants more; a node's fragmentation is the mean
    loss over the tasks that are typical for the cluster, and a task goes where it makes the least
    of it more. Here a stage is the task, and a device's free memory its share. The paper's other
    side, a node whose processors are used up, has no counterpart.

    Args:
        typical: The plans whose stages are; none: those to be placed. Each plan counts the same.
    """

    def placed(fleet: Fleet, candidates: Sequence[PlanNeed]) -> Placement:
        pieces = pieces_of(typical or candidates)

        def rank(fleet: Fleet, stage: StageNeed) -> Floats:
            left = np.maximum(fleet.free_bytes - stage.needed_bytes, 0)
            return fragmented_bytes(left, pieces) - fragmented_bytes(fleet.free_bytes, pieces)

        return _place(fleet, candidates, rank)

    return placed


def pieces_of(needs: Sequence[PlanNeed]) -> dict[int, float]:
    """How often a stage of some plans needs so many bytes on a device; the sum is 1."""
    pieces: dict[int, float] = defaultdict(float)
    for need in needs:
        for stage in need.stages:
            pieces[stage.needed_bytes] += stage.tensor / need.devices / len(needs)
    return dict(pieces)


def fragmented_bytes(free: Integers, pieces: Mapping[int, float]) -> Floats:
    """Free memory of each device that a typical piece finds too little, in the mean, [D].

    Args:
        free: Bytes, [D].
        pieces: Bytes of a piece, and how often it is wanted.
    """
    lost = np.zeros(len(free))
    for size, share in pieces.items():
        lost += share * np.where(free < size, free, 0)
    return lost


def _place(fleet: Fleet, candidates: Sequence[PlanNeed], rank: Rank) -> Placement:
    for need in candidates:
        devices = _devices(fleet, need, rank)
        if devices is not None:
            return placement_on(fleet, need, devices)
    raise fit_error(fleet, candidates)


def _devices(fleet: Fleet, need: PlanNeed, rank: Rank) -> list[int] | None:
    taken = np.zeros(len(fleet.devices), np.bool_)
    devices: list[int] = []
    for stage in need.stages:
        fits = ~taken & (fleet.free_bytes >= stage.needed_bytes)
        ranks = np.where(fits, rank(fleet, stage), np.inf)
        chosen = _shards(fleet, stage.tensor, fits, ranks)
        if chosen is None:
            return None
        taken[chosen] = True
        devices += chosen
    return devices


def _shards(fleet: Fleet, number: int, fits: Booleans, ranks: Floats) -> list[int] | None:
    """The devices of one node with the least sum of ranks."""
    if number == 1:
        return [int(ranks.argmin())] if fits.any() else None
    best: tuple[float, list[int]] | None = None
    for node in np.unique(fleet.node[fits]):
        devices = (fits & (fleet.node == node)).nonzero()[0]
        if len(devices) >= number:
            chosen = devices[np.argsort(ranks[devices], kind="stable")[:number]]
            total = float(ranks[chosen].sum())
            if best is None or total < best[0]:
                best = total, chosen.tolist()
    return None if best is None else best[1]
