"""What the driver tells workers: plain values, small enough for a call's message.

Arrays of a step are cut down to the columns in use: page tables and token histories are as wide as
the longest context, and mostly empty.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fjx.models.config import ModelConfig
from fjx.models.loading.source import ModelSource
from fjx.pipeline.batch import Batch
from fjx.pipeline.limits import Limits
from fjx.sharding.plan.plan import Stage


@dataclass(frozen=True)
class Weights:
    """Where a worker gets parameters from."""

    source: ModelSource | None
    """Files, at the same path on each node; None: they are drawn at random."""
    scale: float = 0.02
    """Standard deviation of random weights."""
    seed: int = 0
    """Seed of random weights."""


@dataclass(frozen=True)
class WorkerConfig:
    """What all workers of a model have in common."""

    config: ModelConfig
    granule_layers: int | None
    limits: Limits
    dtype: str
    weights: Weights
    cache_dir: Path | None = None
    """Folder of compiled programs; None: each worker compiles anew."""
    warmup: bool = True
    """Compile all programs before a stage serves."""


@dataclass(frozen=True)
class RemoteArray:
    """An array that another process offers."""

    address: str
    """Address (``host:port``) of the other process's transfer server."""
    number: int
    """The number of the offer in that process."""


@dataclass(frozen=True)
class PieceOffer:
    """A piece's parameters or pages, held by another process."""

    remote: RemoteArray
    degree: int
    """Tensor-parallel degree of their mesh there."""


@dataclass(frozen=True)
class AssignedStage:
    """A stage of a plan, as the worker that holds it sees it."""

    index: int
    stage: Stage
    first: bool
    last: bool


@dataclass(frozen=True)
class RunAssignment:
    """A worker's part of a replica's plan. Each plan that a replica goes through is a *run*, with a
    number of its own."""

    run: int
    replica: int
    microbatches: int
    stages: tuple[AssignedStage, ...]
    before: int | None = None
    """The run whose parameters stay where they are; None: there was none."""
    keeps_pages: bool = False
    """Whether the pages of granules that stay are kept, too."""
    sources: tuple[str, ...] = ()
    """Addresses of the workers from which its steps fetch."""


@dataclass(frozen=True)
class StageTransfer:
    """A stage's two ends in a step."""

    source: RemoteArray | None
    """The residual stream before it; None: the stage before is in the same process, or there is
    none."""
    offer: int | None
    """Number by which its own is offered to the next one; None: that is in the same process."""


class NarrowBatch(NamedTuple):
    """A `Batch` without the columns of page table, history and bias that are not in use."""

    batch: Batch
    page_table: np.ndarray


@dataclass(frozen=True)
class StepAssignment:
    """A worker's part of a step."""

    run: int
    group_id: int
    batch: NarrowBatch
    transfers: tuple[StageTransfer, ...]
    """One for each of the worker's stages."""
    last_token: RemoteArray | None = None
    """For the first stage: what the last one chose since its last step; None: nothing new, or it is
    in the same process."""
    feed: int | None = None
    """For the last stage: the number by which the first one gets the last tokens."""
    result: int | None = None
    """For the last stage: the number by which the driver gets what the step chose."""

    @property
    def promises(self) -> tuple[int, ...]:
        """The numbers of all that it offers."""
        numbers = (*(transfer.offer for transfer in self.transfers), self.feed, self.result)
        return tuple(number for number in numbers if number is not None)


class StepTiming(NamedTuple):
    """How long a worker's part of a step took, once it had what it needed."""

    run: int
    rows: int
    """Rows of the step, padding included."""
    seconds: float
    layers: int = 0
    """Layers that the part went through; 0: the time is not to be compared with other workers'."""
    devices: int = 1
    """Devices over which each layer is split."""


class Heartbeat(NamedTuple):
    """A worker's sign of life."""

    steps: dict[int, int]
    """Steps of each run that it has begun."""
    timed: tuple[StepTiming, ...]
    """Some steps since the last sign of life."""
    unreached: tuple[str, ...]
    """Addresses of the workers from which it should fetch and that it does not reach."""


def narrow(batch: Batch, limits: Limits, chooses: bool) -> NarrowBatch:
    """A batch for a message; ``chooses``: whether the receiver holds the last stage."""
    table: Any = limits.layout(batch.num_rows).split(batch.packed).rows.page_table
    packed = batch.packed[: len(batch.packed) - table.size]
    edits: Any = batch.edits
    if chooses and edits is not None:
        edits = edits._replace(
            history=_used(edits.history, -1),
            bias_ids=_used(edits.bias_ids, -1),
            bias=_used(edits.bias, 0),
        )
    batch = replace(batch, packed=packed, edits=edits)
    if not chooses:
        batch = replace(
            batch, sampling=None, edits=None, pending_slot=None, logprobs=False, scored=None
        )
    return NarrowBatch(batch, _used(table, 0))


def widen(narrowed: NarrowBatch, limits: Limits) -> Batch:
    """The batch as it was, but for what only the last stage needs."""
    batch, table = narrowed
    layout = limits.layout(batch.num_rows)
    whole = _filled(table, layout.pages, 0)
    edits: Any = batch.edits
    if edits is not None:
        edits = edits._replace(
            history=_filled(edits.history, limits.max_model_len, -1),
            bias_ids=_filled(edits.bias_ids, limits.bias_entries, -1),
            bias=_filled(edits.bias, limits.bias_entries, 0),
        )
    packed = np.concatenate([batch.packed, whole.reshape(-1)])
    return replace(batch, packed=packed, edits=edits)


def _used(array: np.ndarray, empty: int) -> Any:
    """The columns up to the last one that holds something."""
    columns = np.flatnonzero((array != empty).any(axis=0))
    return np.ascontiguousarray(array[:, : columns[-1] + 1 if len(columns) else 0])


def _filled(array: np.ndarray, width: int, empty: int) -> Any:
    whole = np.full((len(array), width), empty, array.dtype)
    whole[:, : array.shape[1]] = array
    return whole
