"""The granule graph: what each piece of a model costs, as numbers.

The graph of a decoder is a chain: ``embed``, G granules, ``head``, each handing the residual stream
to the next. The costs come from a profile (`fjx.sharding.costs.profile`) or from the model's sizes
(`fjx.sharding.costs.analytic`).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate

from fjx.errors import MeshError
from fjx.wording import counted


@dataclass(frozen=True, kw_only=True)
class PieceCost:
    """What one piece costs: a granule, ``embed`` or ``head``."""

    layers: int
    """Layers of a granule; 0 for embed and head."""
    split_parameter_bytes: int
    """Parameters that tensor parallelism divides over the devices of a mesh."""
    whole_parameter_bytes: int
    """Parameters that each device of a mesh holds, such as norms."""
    kv_bytes_per_token: int
    """KV memory of a token slot, over all heads; tensor parallelism divides it."""
    seconds: tuple[tuple[int, tuple[float, ...]], ...]
    """Tensor degree to the seconds of one pass by bucket, on a device of speed 1."""
    activation_bytes: tuple[int, ...]
    """What the piece hands to the next one, by bucket."""

    def parameter_bytes(self, degree: int = 1) -> int:
        """Parameters on each device of a mesh with this tensor degree."""
        return self.whole_parameter_bytes + -(-self.split_parameter_bytes // degree)

    def kv_bytes(self, tokens: int, degree: int = 1) -> int:
        """KV memory of ``tokens`` token slots on each device of a mesh with this tensor degree."""
        return -(-self.kv_bytes_per_token * tokens // degree)

    def seconds_at(self, bucket: int, degree: int = 1) -> float:
        """Time of one pass.

        A degree without figures has those of the next smaller one, divided as if the work split
        perfectly: an optimistic guess, so profile the degrees that you use.

        Args:
            bucket: Index of the bucket.
            degree: The tensor degree.
        """
        known = dict(self.seconds)
        if degree in known:
            return known[degree][bucket]
        nearest = max((d for d in known if d < degree), default=min(known))
        return known[nearest][bucket] * nearest / degree


@dataclass(frozen=True, kw_only=True)
class GranuleGraph:
    """The pieces of one model with their costs.

    Raises:
        MeshError: there are no granules or buckets, buckets do not grow, or a piece's costs are not
            by these buckets.
    """

    model: str
    buckets: tuple[int, ...]
    """Rows of the steps that costs are known for, growing."""
    embed: PieceCost
    granules: tuple[PieceCost, ...]
    head: PieceCost
    split_sizes: tuple[tuple[str, int], ...] = ()
    """What tensor parallelism divides and its size, such as ``("KV heads", 8)``."""

    def __post_init__(self) -> None:
        if not self.granules:
            raise MeshError(f"{self.model}: a model needs at least one granule")
        if not self.buckets or list(self.buckets) != sorted({b for b in self.buckets if b > 0}):
            raise MeshError(f"{self.model}: buckets must be growing sizes, got {self.buckets}")
        for name, piece in self.pieces():
            _check_piece(f"{self.model}, {name}", piece, len(self.buckets))

    @property
    def num_layers(self) -> int:
        """Layers of all granules."""
        return sum(granule.layers for granule in self.granules)

    @property
    def boundaries(self) -> tuple[int, ...]:
        """Layers before each granule, and all layers at the end: where the model may be cut."""
        return tuple(accumulate((granule.layers for granule in self.granules), initial=0))

    def layers_of(self, granules: range) -> range:
        """The layers of a run of granules."""
        boundaries = self.boundaries
        return range(boundaries[granules.start], boundaries[granules.stop])

    def pieces(self) -> Iterator[tuple[str, PieceCost]]:
        """Name and cost of each piece, in the order of `Plan.pieces`."""
        yield "embed", self.embed
        for index, granule in enumerate(self.granules):
            yield f"granule {index}", granule
        yield "head", self.head

    def stage_pieces(self, granules: range) -> Iterator[tuple[str, PieceCost]]:
        """Name and cost of each piece of a stage with these granules."""
        if granules.start == 0:
            yield "embed", self.embed
        for index in granules:
            yield f"granule {index}", self.granules[index]
        if granules.stop == len(self.granules):
            yield "head", self.head

    def bucket_of(self, rows: int) -> int:
        """Index of the smallest bucket that holds ``rows`` rows; the largest where none does."""
        return min(bisect_left(self.buckets, rows), len(self.buckets) - 1)


def _check_piece(name: str, piece: PieceCost, buckets: int) -> None:
    by_bucket: list[tuple[str, tuple[float, ...]]] = [("activation_bytes", piece.activation_bytes)]
    by_bucket += [(f"seconds of tensor degree {d}", each) for d, each in piece.seconds]
    if not piece.seconds:
        raise MeshError(f"{name}: seconds are missing; give those of tensor degree 1 at least")
    for what, values in by_bucket:
        if len(values) != buckets:
            raise MeshError(
                f"{name}: {what} needs one value for each of {counted(buckets, 'bucket')}, "
                f"got {len(values)}"
            )
        if min(values) < 0:
            raise MeshError(f"{name}: {what} must not be negative, got {min(values)}")
    for what in ("layers", "split_parameter_bytes", "whole_parameter_bytes", "kv_bytes_per_token"):
        if getattr(piece, what) < 0:
            raise MeshError(f"{name}: {what} must not be negative, got {getattr(piece, what)}")
