"""Pruning at work: looks at a step between its stages, and takes hopeless drafts out of it."""

from __future__ import annotations

import logging
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from fjx.kernels.rank import DraftedRows
from fjx.models.logit_lens import LogitLens
from fjx.pipeline.batch import Batch
from fjx.pipeline.bound_mesh import BoundMesh
from fjx.pipeline.executor import Executor
from fjx.pipeline.programs import StageShape
from fjx.pipeline.protocol import RowSelection
from fjx.pipeline.prune_programs import PrunePrograms
from fjx.scheduling.batch_builder import BatchBuilder
from fjx.scheduling.request import Request
from fjx.scheduling.scheduler import ScheduledRows
from fjx.sharding.plan.plan import Plan
from fjx.speculation.policy.acceptance import AcceptanceModel
from fjx.speculation.policy.cost import CostModel
from fjx.speculation.policy.payoff_gate import PayoffGate
from fjx.speculation.policy.rank_evidence import UNKNOWN, RankEvidence, Remaining, rows_to_keep

logger = logging.getLogger(__name__)


class Lens:
    """The target's norm and some columns of its unembedding, wherever a stage ends."""

    def __init__(self, lens: LogitLens, tensors: Mapping[str, Any], vocabulary: int) -> None:
        """
        Args:
            lens: what it computes.
            tensors: its canonical tensors, stored as their specs say, on the host.
            vocabulary: tokens of the target.
        """
        self._lens = lens
        self._tensors = tensors
        self._index = np.full(vocabulary, UNKNOWN, np.int32)
        self._index[lens.token_ids] = np.arange(len(lens.token_ids), dtype=np.int32)
        self._placed: dict[tuple[Hashable, int], tuple[Any, Any]] = {}

    def at(self, placement: BoundMesh, layers: int) -> tuple[Any, Any]:
        """Parameters and token ids on a mesh, behind so many layers."""
        key = placement.key, layers
        placed = self._placed.get(key)
        if placed is None:
            params = self._lens.pack_lens(self._tensors, layers)
            placed = jax.device_put((params, self._lens.token_ids), placement.whole)
            self._placed[key] = placed
        return placed

    def leave(self) -> None:
        """Give up the memory that it has on devices."""
        self._placed.clear()

    def index(self, tokens: Sequence[int]) -> np.ndarray:
        """Where tokens stand in its vocabulary; `UNKNOWN`: nowhere."""
        return self._index[np.asarray(tokens, np.int32)]


class Pruning:
    """Decides which steps are looked at, and keeps what was learned from it.

    Only steps whose drafts are whole are pruned: while several frontiers of a request are under
    way, none is.
    """

    def __init__(
        self,
        lens: Lens,
        acceptance: AcceptanceModel,
        cost: CostModel,
        always: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Args:
            lens: ranks drafted tokens.
            acceptance: how likely tokens are without their ranks.
            cost: of the target's steps.
            always: look at every step, and cut what seems to pay, whatever a look costs.
            clock: the engine's, seconds.
        """
        self.lens = lens
        self.clock = clock
        self._acceptance = acceptance
        self._cost = cost
        self._always = always
        self._evidence: dict[float, RankEvidence] = defaultdict(RankEvidence)
        self._gates: dict[int, PayoffGate] = defaultdict(PayoffGate)
        """By rows. A trial looks at a step and cuts nothing: that tells what the look costs, as the
        time by which the step is longer than expected, and what a cut would have saved; and it
        teaches what ranks say without leaving out those that are cut."""
        self._ready: dict[Plan, bool] = {}
        """Whether a plan's programs are there."""
        self._ranks: dict[Request, list[tuple[float, list[int]]]] = {}
        self._under_way: list[PrunedStep] = []
        self.pruned: Counter[str] = Counter()
        """Tokens by place: the granule before which they were taken out."""
        self.looks = 0
        self.estimated_seconds = self.measured_seconds = 0.0
        """Saved by cuts, as expected when they were made, and as the steps turned out."""
        self.failed = False

    def begin(
        self,
        executor: Executor,
        builder: BatchBuilder,
        scheduled: list[ScheduledRows],
        batch: Batch,
    ) -> PrunedStep | None:
        """A step is about to be sent; None: nobody looks at it."""
        try:
            return None if self.failed else self._begin(executor, builder, scheduled, batch)
        except Exception as error:
            self.fail(error)
            return None

    def fail(self, error: Exception) -> None:
        """Look at nothing any more: that changes how fast tokens come, not which."""
        logger.error("pruning failed, and is off from now on", exc_info=error)
        self.failed = True

    def _begin(
        self,
        executor: Executor,
        builder: BatchBuilder,
        scheduled: list[ScheduledRows],
        batch: Batch,
    ) -> PrunedStep | None:
        if not self._can_look(executor, scheduled, batch):
            return None
        gate, trial = self._gates[batch.num_rows], False
        if not self._always:
            trial = gate.is_trial()
            if not (trial or gate.pays):
                return None
        self.looks += 1
        for rows in scheduled:
            self._ranks.pop(rows.request, None)
        step = PrunedStep(self, executor, builder, scheduled, batch, trial)
        self._under_way.append(step)
        return step

    def observe(self, request: Request, drafted: int, accepted: int) -> None:
        """A step has verified so many tokens of a request's draft."""
        for depth, ranks in self._ranks.pop(request, ()):
            self._evidence[depth].observe(ranks[:drafted], accepted)

    def forget(self, request: Request) -> None:
        """The request has ended."""
        self._ranks.pop(request, None)

    def plan_changed(self) -> None:
        """Other executors serve now."""
        self._ready.clear()
        self.lens.leave()

    def observe_step(self, scheduled: Sequence[ScheduledRows], seconds: float) -> bool:
        """A step was read; whether it was looked at, so that its time is no ordinary one."""
        step = next((each for each in self._under_way if each.scheduled is scheduled), None)
        if step is None:
            return False
        self._under_way.remove(step)
        if not self._cost.knows(step.rows):
            return True
        expected = self._cost.seconds(step.rows, step.context)
        if step.trial:
            self._gates[step.bucket].observe(step.savings, seconds - expected)
        elif step.savings:
            self.estimated_seconds += step.savings
            self.measured_seconds += expected - seconds
        return True

    def check_idle(self) -> None:
        """Audit what is held while no request runs."""
        assert not self._under_way, "a step that was looked at is still under way"
        assert not self._ranks, "ranks of a finished request are still known"

    def _can_look(
        self, executor: Executor, scheduled: Sequence[ScheduledRows], batch: Batch
    ) -> bool:
        drafts = [rows for rows in scheduled if rows.samples > 1]
        whole = all(rows.start < len(rows.request.tokens) for rows in drafts)
        return (
            bool(drafts)
            and whole
            and executor.plan.microbatches == 1
            and batch.num_rows <= PrunePrograms(executor.programs).row_buckets[-1]
            and self._has_programs(executor)
        )

    def _has_programs(self, executor: Executor) -> bool:
        """Whether all are compiled, which happens in the background."""
        plan = executor.plan
        if not self._ready.get(plan):
            programs, shapes = PrunePrograms(executor.programs), executor.pieces.shapes
            if self._always and plan not in self._ready:
                executor.compiler.register(programs.specs(shapes))
            keys = programs.keys(shapes)
            found = (executor.compiler.find(key) is not None for key in keys)
            self._ready[plan] = bool(keys) and (self._always or all(found))
        return self._ready[plan]

    # What a step asks for.

    def ranks(
        self,
        executor: Executor,
        behind: StageShape,
        x: Any,
        scheduled: Sequence[ScheduledRows],
        T: int,
    ) -> dict[Request, list[int]]:
        """The rank of each drafted token, by the residual stream behind a segment."""
        rows = DraftedRows(
            np.full(T, UNKNOWN, np.int32),
            np.zeros(T, np.float32),
            np.zeros((T, 2), np.uint32),
            np.zeros(T, np.int32),
        )
        firsts: dict[Request, int] = {}
        end = 0
        for request, start, count, samples, *_ in scheduled:
            end += count
            if samples > 1:
                first = firsts[request] = end - samples
                rows.drafted[first : end - 1] = self.lens.index(request.draft[: samples - 1])
                rows.temperature[first:end] = request.params.temperature
                rows.seed[first:end] = request.seed_words
                rows.position[first:end] = np.arange(start + count - samples, start + count) + 1
        programs = PrunePrograms(executor.programs)
        look = executor.compiler.get(programs.lens_key(T, behind))
        lens = self.lens.at(behind.placement, programs.layers_behind(behind))
        ranks = np.asarray(look(*lens, x, rows))
        ranks = np.where(rows.drafted == UNKNOWN, UNKNOWN, ranks)
        return {
            request: ranks[first : first + len(request.draft)].tolist()
            for request, first in firsts.items()
        }

    def survival(self, request: Request, depth: float, ranks: Sequence[int]) -> tuple[float, ...]:
        """Of each drafted token of a request, now that their ranks are known."""
        before = self._acceptance.survival(request, request.confidences)
        return self._evidence[depth].survival(before, ranks)

    def keep(
        self, survivals: Sequence[Sequence[float]], remaining: Remaining, base_rows: int
    ) -> list[int]:
        """See `rows_to_keep`."""
        return rows_to_keep(survivals, remaining, base_rows)

    def remember(self, depth: float, ranks: Mapping[Request, list[int]]) -> None:
        """What was seen in the step under way."""
        for request, of_request in ranks.items():
            self._ranks.setdefault(request, []).append((depth, of_request))

    def remaining(self, begun: float, left: float, rows: int, context: int) -> Remaining:
        """Costs of a step of which this share is left."""
        return Remaining(begun, left * self._cost.row_seconds(rows, context))


class PrunedStep:
    """One step that is looked at; see `fjx.pipeline.protocol.Pruner`."""

    def __init__(
        self,
        pruning: Pruning,
        executor: Executor,
        builder: BatchBuilder,
        scheduled: list[ScheduledRows],
        batch: Batch,
        trial: bool,
    ) -> None:
        self._pruning = pruning
        self._executor = executor
        self._builder = builder
        self._begun = pruning.clock()
        self.scheduled = scheduled
        """The rows that go on."""
        self.batch = batch
        """Their step."""
        self.trial = trial
        """Whether nothing is cut."""
        self.bucket = batch.num_rows
        self.rows = sum(rows.count for rows in scheduled)
        self.context = sum(rows.start + rows.count for rows in scheduled)
        self.savings = 0.0
        """Expected of cutting, in seconds."""

    def select(self, behind: StageShape, x: Any) -> RowSelection | None:
        """See `fjx.pipeline.protocol.Pruner`."""
        try:
            return None if self._pruning.failed else self._look(behind, x)
        except Exception as error:
            self._pruning.fail(error)
            return None

    def _look(self, behind: StageShape, x: Any) -> RowSelection | None:
        pruning, granules = self._pruning, len(self._executor.pieces.granules)
        depth = behind.granules.stop / granules
        ranks = pruning.ranks(self._executor, behind, x, self.scheduled, self.batch.num_rows)
        if not ranks:
            return None
        survivals = {
            request: pruning.survival(request, depth, of_request)
            for request, of_request in ranks.items()
        }
        pruning.remember(depth, ranks)
        rows = sum(each.count for each in self.scheduled)
        base = rows - sum(map(len, ranks.values()))
        # The head counts as a granule.
        left = (granules - behind.granules.stop + 1) / (granules + 1)
        remaining = pruning.remaining(pruning.clock() - self._begun, left, rows, self.context)
        kept = dict(
            zip(ranks, pruning.keep(list(survivals.values()), remaining, base), strict=True)
        )
        cut = rows - base - sum(kept.values())
        if not cut:
            return None
        self.savings += _savings(list(survivals.values()), list(kept.values()), remaining, base)
        if self.trial:
            return None
        made = self._cut(kept)
        pruning.pruned[str(behind.granules.stop)] += cut
        return made

    def _cut(self, kept: Mapping[Request, int]) -> RowSelection:
        """Take all but so many tokens of each draft out of the step."""
        going_on: list[int] = []
        scheduled: list[ScheduledRows] = []
        before: list[tuple[Request, int, int, list[int], list[float]]] = []
        begin = 0
        for rows in self.scheduled:
            request, count = rows.request, rows.count
            dropped = len(request.draft) - kept[request] if request in kept else 0
            if dropped:
                drafted = request.draft[:], request.confidences[:]
                before.append((request, request.computed, request.unread, *drafted))
                request.computed -= dropped
                request.cut_draft(kept[request])
            going_on += range(begin, begin + count - dropped)
            begin += count
            scheduled.append(rows._replace(count=count - dropped, samples=rows.samples - dropped))
        try:
            batch = self._builder.build(scheduled, group_id=-1)
        except Exception:
            for request, computed, unread, draft, confidences in before:
                request.computed, request.unread = computed, unread
                request.draft[:], request.confidences[:] = draft, confidences
            raise
        for rows, fewer in zip(self.scheduled, scheduled, strict=True):
            rows.request.pruned_tokens += rows.count - fewer.count
        self.scheduled, self.batch = scheduled, batch
        padded = np.zeros(PrunePrograms(self._executor.programs).row_buckets[-1], np.int32)
        padded[: len(going_on)] = going_on
        return RowSelection(self.batch, padded)


def _savings(
    survivals: Sequence[Sequence[float]], kept: Sequence[int], remaining: Remaining, base: int
) -> float:
    """Seconds that a cut saves, what it loses being made up for at its own rate."""

    def tokens(lengths: Sequence[int]) -> float:
        drafted = (sum(each[:n]) for each, n in zip(survivals, lengths, strict=True))
        return len(survivals) + sum(drafted)

    whole = [len(each) for each in survivals]
    seconds = remaining.begun + remaining.row_seconds
    needed = float(seconds[base + sum(kept)]) * tokens(whole) / tokens(kept)
    return float(seconds[base + sum(whole)]) - needed
