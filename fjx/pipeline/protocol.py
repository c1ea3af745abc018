"""What the engine asks of whatever runs its steps, and what looks into them while they run."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import numpy as np
from jaxtyping import Int32

from fjx.pipeline.batch import Batch
from fjx.pipeline.chain import OverlappedChain
from fjx.pipeline.compiler import Compiler
from fjx.pipeline.limits import Limits
from fjx.pipeline.programs import Programs, StageShape
from fjx.pipeline.step_output import StepOutput
from fjx.sharding.plan.plan import Plan


class RowSelection(NamedTuple):
    """Which rows of a step go on."""

    batch: Batch
    """Their step."""
    rows: Int32[np.ndarray, " M"]
    """The row that each of its rows was before, padded to the most rows that a step to be pruned
    may have."""


class Pruner(Protocol):
    """Looks at a step between its segments."""

    def select(self, behind: StageShape, x: Any) -> RowSelection | None:
        """Which rows go on, from the residual stream ``[T, D]`` behind a segment; None: all."""


class Pipeline(Protocol):
    """What sends the steps of a replica by a plan: an `Executor`, whose stages are in this process,
    or one whose stages are in others."""

    @property
    def programs(self) -> Programs:
        """What runs."""

    @property
    def compiler(self) -> Compiler:
        """Counts compilations."""

    @property
    def limits(self) -> Limits:
        """The sizes that programs are compiled for."""

    @property
    def plan(self) -> Plan:
        """By which steps run."""

    @property
    def lost(self) -> bool:
        """Whether its KV pages are lost: what it was sent may not come, and its requests must be
        computed again by another one."""

    def retire(self) -> None:
        """Another one takes over."""

    def dispatch(
        self,
        batch: Batch,
        part: int = 0,
        pruner: Pruner | None = None,
        beside: OverlappedChain | None = None,
    ) -> StepOutput:
        """Send a microbatch; see `Executor.dispatch`."""
