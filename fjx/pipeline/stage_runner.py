"""Stages that follow one another in one process, and the last tokens that their steps share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from fjx.pipeline.batch import Batch
from fjx.pipeline.choice import Choice, choose_tokens
from fjx.pipeline.compiler import Compiler
from fjx.pipeline.placed_model import Granule, PlacedParams
from fjx.pipeline.programs import Programs, StageShape
from fjx.pipeline.stage import BoundStage

STEPS_BEFORE_FUSING = 100
"""Work of this length is worth the fused programs' compilation."""


class StageRunner:
    """What an `Executor` runs of a replica, all of it, and what a worker of a cluster runs."""

    def __init__(
        self,
        shapes: Sequence[StageShape],
        pieces: Mapping[str, PlacedParams | Granule],
        programs: Programs,
        compiler: Compiler,
        num_groups: int,
    ) -> None:
        """
        Args:
            shapes: of the stages.
            pieces: by name, those of the stages.
            programs: what runs.
            compiler: has it.
            num_groups: of the requests, whose steps take turns.
        """
        self._pieces, self._compiler = pieces, compiler
        self._confidences = programs.limits.confidences
        self.stages = self.stages_of(shapes)
        first, last = self.stages[0], self.stages[-1]
        zeros = np.zeros(programs.limits.max_num_seqs + 1, np.int32)
        self.last_token = [jax.device_put(zeros, last.placement.whole) for _ in range(num_groups)]
        """For the last stage: the last token of each slot, for each group."""
        self.fed = self.last_token
        """For the first stage: what it knows of that, a copy where the ends are not together."""
        self._shares = first.shape.first and last.shape.last and first.placement == last.placement
        if not self._shares:
            self.fed = [jax.device_put(zeros, first.placement.whole) for _ in range(num_groups)]

    def stages_of(self, shapes: Sequence[StageShape]) -> list[BoundStage]:
        """At work on the pieces' arrays, which stages of several cuts share."""
        pieces: Mapping[str, Any] = self._pieces
        return [
            BoundStage(
                shape,
                pieces["embed"] if shape.first else None,
                [pieces[f"{index}"] for index in shape.granules],
                self._compiler,
            )
            for shape in shapes
        ]

    def choose(self, batch: Batch, x: Any, slots: Any, group_id: int) -> Choice:
        """Dispatch the choice of tokens from what the last stage gave; see `choose_tokens`."""
        head: Any = self._pieces["head"]
        rows, last = (x, slots), self.last_token[group_id]
        chosen = choose_tokens(self._compiler, head, batch, rows, last, self._confidences)
        self.last_token[group_id] = chosen.last_token
        first = self.stages[0]
        if first.shape.first and not self._shares:
            self.fed[group_id] = jax.device_put(chosen.last_token, first.placement.whole)
        return chosen
