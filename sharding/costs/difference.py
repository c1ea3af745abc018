"""The difference between two plans: which bytes must cross from one device to another.

What counts, to the byte:

- A byte is moved when a device of the new plan holds it and did not hold it for the same piece
  under the old plan. Slicing or joining what a device already has is not a move.
- An array that is split over ``tensor`` of degree t lies on device i of the mesh as the i-th of t
  equal contiguous parts of its split axis. An array that is not split lies whole on each device.
- A fused array (query, key and value; gate and up) is split part by part, so the same fractions
  hold.
- KV pages count with the token slots in use, split like the KV heads. Pages that are written while
  the copy runs (dirty pages) come on top.
- A piece whose mesh is the same in both plans, devices in the same order, is not touched.
- ``embed`` and ``head`` count on their own, also where the embeddings are tied: each holds a copy.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from fjx.errors import MeshError
from fjx.sharding.costs.graph import GranuleGraph, PieceCost
from fjx.sharding.plan.plan import Deployment, Device, Mesh, Plan
from fjx.wording import counted


@dataclass(frozen=True)
class Received:
    """What one device gets in a move."""

    device: Device
    parameter_bytes: int
    kv_bytes: int


@dataclass(frozen=True)
class PieceMove:
    """One piece that changes its mesh."""

    piece: str
    """``embed``, ``granule 0``, ..., ``head``."""
    source: Mesh
    target: Mesh
    received: tuple[Received, ...]
    """What each device of the target gets."""
    replica: int = 0
    """Index of the new plan's replica."""

    @property
    def parameter_bytes(self) -> int:
        """Parameters that cross between devices."""
        return sum(each.parameter_bytes for each in self.received)

    @property
    def kv_bytes(self) -> int:
        """KV pages that cross between devices."""
        return sum(each.kv_bytes for each in self.received)


@dataclass(frozen=True)
class Difference:
    """What going from one plan to another moves, in the order of the pieces."""

    moves: tuple[PieceMove, ...]

    @property
    def parameter_bytes(self) -> int:
        """Parameters that cross between devices."""
        return sum(move.parameter_bytes for move in self.moves)

    @property
    def kv_bytes(self) -> int:
        """KV pages that cross between devices."""
        return sum(move.kv_bytes for move in self.moves)

    @property
    def total_bytes(self) -> int:
        """All that crosses between devices."""
        return self.parameter_bytes + self.kv_bytes

    def received(self) -> dict[Device, int]:
        """Bytes that each device gets; those that get none are left out."""
        totals: Counter[Device] = Counter()
        for move in self.moves:
            for each in move.received:
                totals[each.device] += each.parameter_bytes + each.kv_bytes
        return {device: size for device, size in totals.items() if size}


@dataclass(frozen=True)
class MissingShares:
    """What the devices of a mesh lack of a piece that lies on another mesh."""

    whole: tuple[bool, ...]
    """For each device, whether it lacks the arrays that are not split."""
    split: tuple[int, ...]
    """For each device, how much of the split arrays it lacks, in units of 1 / ``denominator``."""
    denominator: int


def missing_shares(source: Mesh | None, target: Mesh) -> MissingShares:
    """What each device of ``target`` lacks of a piece on ``source`` (None: it is nowhere)."""
    before, after = 1 if source is None else source.tensor, target.tensor
    held = {} if source is None else {device: i for i, device in enumerate(source.devices)}
    whole, split = [], []
    for index, device in enumerate(target.devices):
        at = held.get(device)
        lacking = before
        if at is not None:
            # In units of 1 / (before * after), a part is `before` wide here and `after` wide there.
            begin = max(index * before, at * after)
            end = min((index + 1) * before, (at + 1) * after)
            lacking -= max(0, end - begin)
        whole.append(at is None)
        split.append(lacking)
    return MissingShares(tuple(whole), tuple(split), before * after)


def received_bytes(
    piece: PieceCost, source: Mesh | None, target: Mesh, kv_tokens: int
) -> tuple[Received, ...]:
    """What each device of ``target`` gets when a piece moves there from ``source``.

    Args:
        piece: The piece's costs.
        source: Where it lies now; None: nowhere on these devices.
        target: Where it shall lie.
        kv_tokens: Token slots in use.

    Raises:
        MeshError: the piece does not split into equal parts of whole bytes.
    """
    missing = missing_shares(source, target)
    received = []
    for device, whole, split in zip(target.devices, missing.whole, missing.split, strict=True):
        parameters = _part(piece.split_parameter_bytes, split, missing.denominator)
        kv = _part(piece.kv_bytes_per_token * kv_tokens, split, missing.denominator)
        received.append(Received(device, whole * piece.whole_parameter_bytes + parameters, kv))
    return tuple(received)


def difference(
    old: Plan | Deployment,
    new: Plan | Deployment,
    graph: GranuleGraph,
    kv_tokens: int | Sequence[int] = 0,
) -> Difference:
    """The moves that lead from one plan to another.

    Replica i becomes replica i. A replica that is new takes its parameters, piece by piece, from
    the old replica that spares the most bytes, and starts without KV pages. Of an old replica that
    has no successor nothing moves: where its requests go on is not for the plan to say.

    Args:
        old: What serves now.
        new: What shall serve.
        graph: The costs of the model's pieces.
        kv_tokens: Token slots in use in each old replica; one number means all have as many.

    Raises:
        MeshError: the plans are not of this model, or ``kv_tokens`` is not for these replicas.
    """
    before, after = _replicas(old), _replicas(new)
    tokens = [kv_tokens] * len(before) if isinstance(kv_tokens, int) else list(kv_tokens)
    if len(tokens) != len(before):
        raise MeshError(
            f"kv_tokens has {counted(len(tokens), 'entry', 'entries')}, expected one for each of "
            f"{counted(len(before), 'old replica')}"
        )
    for plan in (*before, *after):
        plan.check_model(len(graph.granules), dict(graph.split_sizes))
    moves: list[PieceMove] = []
    for index, plan in enumerate(after):
        if index < len(before):
            moves += _moves([before[index]], plan, graph, tokens[index], index)
        else:
            moves += _moves(before, plan, graph, 0, index)
    return Difference(tuple(moves))


def _moves(
    sources: Sequence[Plan], plan: Plan, graph: GranuleGraph, tokens: int, replica: int
) -> list[PieceMove]:
    moves = []
    meshes = [dict(source.pieces()) for source in sources]
    for (name, piece), (_, target) in zip(graph.pieces(), plan.pieces(), strict=True):
        candidates = []
        for mesh in meshes:
            received = received_bytes(piece, mesh[name], target, tokens)
            candidates.append(PieceMove(name, mesh[name], target, received, replica))
        move = min(candidates, key=lambda move: move.parameter_bytes)
        if move.source != target:
            moves.append(move)
    return moves


def _replicas(plan: Plan | Deployment) -> tuple[Plan, ...]:
    return plan.replicas if isinstance(plan, Deployment) else (plan,)


def _part(size: int, share: int, denominator: int) -> int:
    part, rest = divmod(size * share, denominator)
    if rest:
        raise MeshError(
            f"{size} bytes do not split into equal parts for these tensor degrees; "
            "use degrees that divide the model's sizes"
        )
    return part
