"""The programs that look at a step between two stages, and let only some of its rows go on."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax

from fjx.kernels.rank import DraftedRows, drafted_ranks
from fjx.models.granules import WHOLE
from fjx.models.logit_lens import LogitLens
from fjx.pipeline.bound_mesh import BoundMesh
from fjx.pipeline.buckets import bucket_for
from fjx.pipeline.compiler import ProgramSpec
from fjx.pipeline.programs import Programs, StageShape
from fjx.pipeline.structs import floats, ints, words


def segments_of(shapes: Sequence[StageShape]) -> tuple[StageShape, ...]:
    """The parts of a step between which rows may be pruned: the stages; where there is but one, its
    first three quarters and the rest, because earlier the lens sees little."""
    if len(shapes) > 1:
        return tuple(shapes)
    (shape,) = shapes
    start, stop = shape.granules.start, shape.granules.stop
    if stop - start < 2:
        return (shape,)
    late = min(start - (start - stop) * 3 // 4, stop - 1)
    return (
        replace(shape, granules=range(start, late), last=False),
        replace(shape, granules=range(late, stop), first=False),
    )


@dataclass(frozen=True)
class PrunePrograms:
    """The program specs of pruning for a target that has a lens."""

    programs: Programs

    @property
    def lens(self) -> LogitLens:
        """What looks."""
        assert self.programs.lens is not None
        return self.programs.lens

    @property
    def row_buckets(self) -> tuple[int, ...]:
        """Padded numbers of rows of the steps that may be pruned."""
        limits = self.programs.limits
        most = bucket_for(limits.max_num_seqs + limits.max_draft_rows, limits.row_buckets)
        return tuple(size for size in limits.row_buckets if size <= most)

    def specs(self, shapes: Sequence[StageShape]) -> Iterator[ProgramSpec]:
        """All of them, for a plan's stages. None is needed for a step."""
        segments = segments_of(shapes)
        for segment in segments[:-1]:
            yield from map(_in_background, self._behind(segment))
        if len(shapes) == 1:
            for spec in self.programs.parts(segments, self.row_buckets):
                yield _in_background(spec)

    def keys(self, shapes: Sequence[StageShape]) -> list[Hashable]:
        """Of the programs without which nothing can be pruned."""
        return [spec.key for spec in self.specs(shapes) if "stage" not in spec.key]  # type: ignore[operator]

    def layers_behind(self, segment: StageShape) -> int:
        """How many layers the residual stream has behind it where a segment ends."""
        last: int = self.programs.model.granules[segment.granules.stop - 1].stop
        return last

    def lens_key(self, T: int, segment: StageShape) -> Hashable:
        """Of the program that looks at a step of T rows behind a segment."""
        mapped = self.layers_behind(segment) in self.lens.mapped
        return "lens", T, mapped, segment.placement.key

    def _behind(self, segment: StageShape) -> Iterator[ProgramSpec]:
        at = segment.placement
        hidden, most = self.lens.config.hidden_size, self.row_buckets[-1]

        def lens(params, token_ids, x, rows):  # type: ignore[no-untyped-def]
            hidden, unembed, soft_cap = self.lens.factors(params, x)
            return drafted_ranks(hidden, unembed, token_ids, rows, soft_cap=soft_cap)

        def gather(x, rows):  # type: ignore[no-untyped-def]
            return x[rows]

        params = self.lens.abstract_lens(self.programs.dtype, self.layers_behind(segment))
        ids = ints(len(self.lens.token_ids))
        gathered = floats(most, hidden)
        for T in self.row_buckets:
            x = floats(T, hidden)
            rows = DraftedRows(ints(T), floats(T), words(T, 2), ints(T))
            yield self._spec(self.lens_key(T, segment), lens, (params, ids, x, rows), at)
            yield self._spec(("gather", T, at.key), gather, (x, ints(most)), at)
            yield self._spec(("resize", T, at.key), lambda x, T=T: x[:T], (gathered,), at)

    def _spec(
        self, key: Hashable, function: Callable[..., Any], arguments: Any, at: BoundMesh
    ) -> ProgramSpec:
        if at.degree > 1:
            function = jax.shard_map(
                function, mesh=at.jax_mesh, in_specs=WHOLE, out_specs=WHOLE, check_vma=False
            )
        return ProgramSpec(key, function, jax.tree.map(at.struct, arguments))


def plan_programs(
    programs: Programs, shapes: Sequence[StageShape], fused: Collection[int] | None = None
) -> Iterator[ProgramSpec]:
    """All that the steps of a plan of these stages can make use of; ``fused``: see
    `Programs.stage`."""
    for shape in shapes:
        yield from programs.stage(shape, fused)
    if programs.lens is not None:
        yield from PrunePrograms(programs).specs(shapes)


def _in_background(spec: ProgramSpec) -> ProgramSpec:
    return replace(spec, background=True)
