"""A stage at work: the programs that run its granules."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import jax
import numpy as np

from fjx.pipeline.chain import OverlappedChain
from fjx.pipeline.compiler import Compiler
from fjx.pipeline.placed_model import Granule, PlacedParams
from fjx.pipeline.programs import StageShape


class BoundStage:
    """Runs one stage's part of a step. Dispatch returns before the devices are done."""

    def __init__(
        self,
        shape: StageShape,
        embed: PlacedParams | None,
        granules: Sequence[Granule],
        compiler: Compiler,
    ) -> None:
        self.shape = shape
        self.placement = shape.placement
        self.granules = tuple(granules)
        self._embed = embed
        self._compiler = compiler
        self._key = shape.placement.key
        depths = tuple(granule.depth for granule in granules)
        self.fused_key: tuple[Hashable, ...] = (depths, shape.first, shape.last, self._key)
        """Of the programs of all its pieces, after their names and rows."""
        embed_params = {} if embed is None else embed.params
        self.arrays = jax.tree.leaves((embed_params, tuple(g.params for g in granules)))
        """The parameters, in the order in which the program of all its pieces takes them."""

    def run(
        self, T: int, source: Any, packed: np.ndarray, overlapped: OverlappedChain | None = None
    ) -> tuple[Any, Any, Any]:
        """Dispatch the stage's part of a step of T rows.

        Args:
            T: rows of the step, padding included.
            source: the residual stream from the stage before; for the first stage, the last token
                of each slot. It must lie on this stage's mesh.
            packed: the step's integers, see `StepLayout`.
            overlapped: runs at the same time.

        Returns:
            The residual stream, and twice None; for the last stage, the rows that choose a token,
            their slots, and, where `Limits.hidden` asks for it, the residual stream of all rows.
        """
        fused = self._compiler.find(("stage", T, *self.fused_key))
        if fused is None:
            return self._run_chained(T, source, packed)
        step = self._compiler.get(("step", T, self._key))(packed)
        kv_pages = [granule.kv_pages for granule in self.granules]
        run = fused if overlapped is None else overlapped.run
        x, *rest = run([*self.arrays, source, step, *kv_pages])
        slots = rest.pop(0) if self.shape.last else None
        stream = rest.pop(0) if len(rest) > len(self.granules) else None
        for granule, pages in zip(self.granules, rest, strict=True):
            granule.kv_pages = pages
        return x, slots, stream

    def _run_chained(self, T: int, source: Any, packed: np.ndarray) -> tuple[Any, Any, Any]:
        """Piece by piece: the same arithmetic as the fused program, which takes longer to
        compile."""
        get, key = self._compiler.get, self._key
        # The first program takes the step to the device and hands it on to the others.
        if self._embed is not None:
            x, step = get(("embed", T, key))(self._embed.params, source, packed)
        else:
            x, step = source, get(("step", T, key))(packed)
        for granule in self.granules:
            program = get(("granule", granule.depth, T, key))
            x, granule.kv_pages = program([*granule.arrays, x, granule.kv_pages, step])
        if not self.shape.last:
            return x, None, None
        chosen, slots = get(("select", T, key))(x, step)
        return chosen, slots, x
