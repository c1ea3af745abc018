"""Drafting in the engine's step: when, for whom, how long; and what came of it."""

from __future__ import annotations

import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from fjx.outputs import SpeculationStats
from fjx.scheduling.microbatches import Microbatch, MicrobatchGroup
from fjx.scheduling.request import Request
from fjx.sharding.plan.plan import Plan
from fjx.speculation.policy.acceptance import AcceptanceModel
from fjx.speculation.policy.cost import CostModel
from fjx.speculation.policy.frontiers import FrontierDepth
from fjx.speculation.policy.lengths import LengthPolicy, RequestView, RoundView
from fjx.speculation.policy.throttle import DraftMode, MeasuredRound, SpeculationThrottle
from fjx.speculation.runtime.draft_ahead import DraftAhead, DraftAheadMode, draft_ahead
from fjx.speculation.runtime.drafter import ContinueDrafting, Draft, Drafter
from fjx.speculation.runtime.pruning import Lens, Pruning
from fjx.speculation.runtime.round_log import RoundLog
from fjx.speculation.runtime.step_times import Prepared, StepTimes

_ROUNDS_PER_SKIP = 8
"""Of rounds in a row without a draft, so many add one step in which drafting is not attempted."""
_MAX_SKIPPED_STEPS = 4
"""Most steps between two attempts."""
_MAX_SKIPPED_FREE, _MAX_SKIPPED_COSTLY = 16, 1024
"""Most steps between two attempts where speculation was slower than plain decoding: with a drafter
that costs nothing, and with one that costs something."""


@dataclass
class _DraftAttempts:
    """How drafting went for a group of the requests."""

    drafted: bool = False
    """Whether drafts are under way."""
    empty: int = 0
    """Rounds in a row without a draft."""
    steps_to_skip: int = 0
    """Before the next attempt."""


class Speculator:
    """Gives requests drafts before a step, and learns from what the steps bring.

    Only the group of the requests is drafted for whose step it is: those of other groups stay in
    flight meanwhile. While drafts are verified, each step is read before the group's next one is
    drafted for and sent, or a few steps later: see `FrontierDepth`. While none pay, steps overlap
    as they do without speculation, and drafting is tried again now and then.
    """

    def __init__(
        self,
        drafter: Drafter,
        policy: LengthPolicy,
        buckets: Sequence[int],
        frontiers: FrontierDepth | None = None,
        lens: Lens | None = None,
        prune_always: bool = False,
        ahead: DraftAheadMode = "off",
        clock: Callable[[], float] = time.monotonic,
        compiled: Callable[[], int] = lambda: 0,
    ) -> None:
        """
        Args:
            drafter: proposes.
            policy: decides how much.
            buckets: padded sizes of the target's steps.
            frontiers: decides how many steps with drafts are under way at once; None: one.
            lens: looks into steps to prune them; None: nobody does.
            prune_always: see `Pruning`.
            ahead: whether to draft while steps verify, where the drafter can.
            clock: the engine's, seconds; what `observe_step` gets is of the same clock.
            compiled: how often a step has waited for the compiler so far: what was timed meanwhile
                says nothing of later steps.
        """
        self.drafter = drafter
        self.policy = policy
        self._clock = clock
        self._compiled = compiled
        self._compiled_before = compiled()
        """When the last step was read."""
        self.frontiers = frontiers or FrontierDepth(1)
        self._acceptance = AcceptanceModel()
        self._target_cost = CostModel(buckets, padded=True)
        self._draft_cost = None if drafter.free else CostModel(buckets)
        self._first_cost = CostModel(buckets)
        self.throttle: SpeculationThrottle | None = None
        if policy.weighs_plain:
            longest = _MAX_SKIPPED_FREE if drafter.free else _MAX_SKIPPED_COSTLY
            self.throttle = SpeculationThrottle(buckets, drafter.catching_up, longest)
        self.pruning: Pruning | None = None
        if lens is not None:
            self.pruning = Pruning(lens, self._acceptance, self._target_cost, prune_always, clock)
        self.ahead = draft_ahead(drafter, self._target_cost, ahead)
        self.times = StepTimes()
        self._attempts: dict[int, _DraftAttempts] = defaultdict(_DraftAttempts)
        """By group."""
        self._group_id = self._running = 0
        self._mode = DraftMode.DRAFT
        self._drafting_seconds = 0.0
        self.round_log: RoundLog | None = None
        """Follows a request, where one wants to see its rounds."""
        self._counts: Counter[str] = Counter()
        self._accepted_at: Counter[int] = Counter()
        self._lengths: Counter[int] = Counter()

    def due(self, groups: Sequence[MicrobatchGroup]) -> bool:
        """Whether `draft` is to be called before the next step, which is that of these groups, one
        of each replica."""
        self._mode = DraftMode.READ
        if not groups:
            return False
        self._mode, self._group_id = DraftMode.DRAFT, groups[0].group_id
        self._running = sum(group.share for group in groups)
        if self.throttle is not None and self._running:
            self.throttle.num_groups = groups[0].num_groups
            self._mode = self.throttle.next_mode(self._running)
        attempts = self._attempts[self._group_id]
        if self._mode is DraftMode.DRAFT and not attempts.drafted:
            attempts.steps_to_skip = max(attempts.steps_to_skip - 1, 0)
            if attempts.steps_to_skip:
                self._mode = DraftMode.READ
        return self._mode is DraftMode.DRAFT

    @property
    def steps_behind(self) -> int:
        """How many steps of a group may be unread when `draft` is called for it."""
        return self.frontiers.depth - 1

    @property
    def may_draft_ahead(self) -> DraftAhead | None:
        """What drafts while the next step verifies; None: nothing."""
        return self.ahead if self.frontiers.depth == 1 else None

    def draft(self, groups: Sequence[MicrobatchGroup]) -> None:
        """Give drafts to the requests of these groups, one of each replica, that can have one,
        where the policy says that they pay."""
        if not groups:
            return
        self._group_id = groups[0].group_id
        self._attempts[self._group_id].drafted = False
        running = [request for group in groups for request in group.running]
        most = {
            request: group.scheduler.reserve(request, self._max_draft_length(request))
            for group in groups
            for request in group.running
            if request.awaits_draft
        }
        view = self._view(most, running, groups)
        if not any(each.most for each in view.requests):
            if most:
                self._count_attempt(True)
            return
        begun, waiting = self._clock(), list(most)
        lengths = self.policy.draft_lengths(view)
        drafts = self._propose(waiting, lengths, partial(self.policy.continue_drafting, view))
        kept = self.policy.verify_lengths(view, [draft.confidences for draft in drafts])
        if self.round_log is not None:
            self.round_log.drafted(begun, self._clock(), waiting, drafts, kept)
        for request, draft, length in zip(waiting, drafts, kept, strict=True):
            self._set_draft(request, draft, length)
        self._count_attempt(not self._attempts[self._group_id].drafted)

    def _propose(
        self,
        waiting: Sequence[Request],
        lengths: Sequence[int],
        continue_drafting: ContinueDrafting,
    ) -> list[Draft]:
        """Draft, and learn what a round of it costs."""
        begun, compiled = self._clock(), self._compiled()
        drafts = self.drafter.propose(waiting, lengths, continue_drafting)
        for request, draft in zip(waiting, drafts, strict=True):
            self._acceptance.propose(request, draft.confidences)
        spent = self._clock() - begun
        if self._compiled() > compiled:
            return drafts
        count, seconds = self.drafter.rounds
        context = sum(r.num_tokens for r, k in zip(waiting, lengths, strict=True) if k)
        if self.ahead is not None:
            in_turn = self._drafting_in_turn(lengths, context)
            self.ahead.observe_drafting(in_turn, spent)
        if self._draft_cost is not None and seconds:
            self._drafting_seconds = spent
            self._first_cost.offer(count, context, seconds[0])
            if len(seconds) > 1:
                self._draft_cost.offer(count, context, statistics.fmean(seconds[1:]))
        return drafts

    def _drafting_in_turn(self, lengths: Sequence[int], context: int) -> float:
        """Seconds that drafts of these lengths take where none of them is there already."""
        count, rounds = sum(map(bool, lengths)), max(lengths, default=0)
        if self._draft_cost is None or not count:
            return 0.0
        first = self._first_cost.seconds(count, context)
        return first + (rounds - 1) * self._draft_cost.seconds(count, context)

    def sent(self, step: Sequence[Microbatch]) -> None:
        """A step has been sent; empty: there was nothing to do."""
        if not step:
            return
        take = self.drafter.miss if self._mode is DraftMode.COOLDOWN else self.drafter.feed
        for microbatch in step:
            take(microbatch)
        prepared = Prepared(
            mode=self._mode,
            running=self._running,
            drafted=self._mode is DraftMode.DRAFT and self._attempts[self._group_id].drafted,
            drafting_seconds=self._drafting_seconds,
        )
        self._drafting_seconds = 0.0
        self.times.sent(step, prepared, self._clock())
        if self.round_log is not None:
            self.round_log.sent(step)

    def observe(
        self, request: Request, confidences: Sequence[float], drafted: int, accepted: int
    ) -> None:
        """A step has verified so many tokens of a request's draft."""
        self._counts.update(drafts=1, drafted=drafted, accepted=accepted)
        self._lengths[drafted] += 1
        self._accepted_at.update(range(accepted))
        self.frontiers.observe_frontier(drafted, accepted)
        if self.pruning is not None:
            self.pruning.observe(request, drafted, accepted)
        self._acceptance.observe(request, tuple(confidences[:drafted]), accepted)

    def observe_step(self, step: Sequence[Microbatch], now: float, tokens: Sequence[int]) -> None:
        """A step has brought so many tokens to each of some requests, at this time of the
        clock."""
        if self.round_log is not None:
            self.round_log.read(step, now)
        timed = self.times.read(step, now)
        before, self._compiled_before = self._compiled_before, self._compiled()
        if timed is None or self._compiled_before > before:
            return
        scheduled = [rows for each in step for rows in each.scheduled]
        rows = sum(each.count for each in scheduled)
        context = sum(each.start + each.count for each in scheduled)
        prepared, seconds, cycle, is_plain, work, was_late = timed
        ordinary = prepared.mode is not DraftMode.COOLDOWN
        for watcher in (self.pruning, self.ahead):
            if watcher is not None:
                for each in step:
                    ordinary &= not watcher.observe_step(each.scheduled, seconds)
        if was_late:
            ordinary &= seconds < self._target_cost.seconds(rows, context)
        if self.frontiers.depth == 1 and ordinary:
            self._target_cost.offer(rows, context, seconds)
        if cycle is None:
            return
        if prepared.drafted:
            alone = self._target_cost.seconds(rows, context)
            self.frontiers.observe_step(cycle, alone, prepared.drafting_seconds)
        if self.throttle is None or not tokens:
            return
        if prepared.mode is DraftMode.DRAFT:
            made = MeasuredRound(*work, seconds=cycle, tokens=sum(tokens), requests=len(tokens))
            self.throttle.observe_round(prepared.running, made)
        elif is_plain:
            self.throttle.observe_plain(work.rows, work.context, cycle)

    def forget(self, request: Request) -> None:
        """The request has ended."""
        self.drafter.forget(request)
        self._acceptance.forget(request)
        if self.pruning is not None:
            self.pruning.forget(request)

    def plan_changed(self, plan: Plan) -> None:
        """The target runs by another plan now."""
        self.frontiers.stages = len(plan.stages)
        self.times.plan_changed()
        if self.pruning is not None:
            self.pruning.plan_changed()

    def check_idle(self) -> None:
        """Audit what is held while no request runs."""
        self.drafter.check_idle()
        if self.pruning is not None:
            self.pruning.check_idle()

    def stats(self) -> SpeculationStats:
        """Counters since the start."""
        longest = max(self._accepted_at, default=-1) + 1
        pruning = self.pruning
        return SpeculationStats(
            drafter=self.drafter.name,
            policy=self.policy.name,
            num_drafts=self._counts["drafts"],
            num_draft_tokens=self._counts["drafted"],
            num_accepted_tokens=self._counts["accepted"],
            num_trimmed_tokens=self._counts["proposed"] - self._counts["given"],
            num_pruned_tokens={} if pruning is None else dict(pruning.pruned),
            prune_looks=0 if pruning is None else pruning.looks,
            prune_seconds_expected=0.0 if pruning is None else pruning.estimated_seconds,
            prune_seconds_saved=0.0 if pruning is None else pruning.measured_seconds,
            frontiers=self.frontiers.depth,
            drafts_ahead=self.ahead is not None and self.ahead.pays,
            ahead_steps=0 if self.ahead is None else self.ahead.steps,
            ahead_seconds_hidden=0.0 if self.ahead is None else self.ahead.hidden_seconds,
            ahead_seconds_slowdown=0.0 if self.ahead is None else self.ahead.slowdown_seconds,
            saved_seconds=0.0 if self.throttle is None else self.throttle.saved_seconds,
            accepted_per_position=tuple(self._accepted_at[i] for i in range(longest)),
            draft_lengths=dict(self._lengths),
        )

    def _view(
        self,
        most: Mapping[Request, int],
        running: Sequence[Request],
        groups: Sequence[MicrobatchGroup],
    ) -> RoundView:
        others = sum(request.wanted_rows for request in running) - len(most)
        budget = sum(group.scheduler.max_num_batched_tokens for group in groups) - len(most)
        return RoundView(
            requests=tuple(
                RequestView(request, longest, request.num_tokens)
                for request, longest in most.items()
            ),
            other_rows=max(min(others, budget), 0),
            max_rows=sum(group.scheduler.max_draft_rows for group in groups),
            acceptance=self._acceptance,
            target_cost=self._target_cost,
            draft_cost=self._draft_cost,
            first_cost=self._first_cost,
            num_groups=max((group.busy_groups for group in groups), default=1),
            stops=self.drafter.stops,
        )

    def _max_draft_length(self, request: Request) -> int:
        """Longest draft that can be of use: the last token of a request needs none behind it."""
        asked = request.params.max_draft_tokens
        longest = self.drafter.longest if asked is None else min(asked, self.drafter.longest)
        return max(min(longest, request.max_len - request.num_tokens - 1), 0)

    def _set_draft(self, request: Request, draft: Draft, length: int) -> None:
        self._counts["proposed"] += len(draft.tokens)
        if not length:
            self._lengths[0] += 1
        else:
            self._counts["given"] += length
            request.extend_draft(draft.tokens[:length], draft.confidences[:length])
            self._attempts[self._group_id].drafted = True

    def _count_attempt(self, empty: bool) -> None:
        """Where rounds bring no draft, make fewer attempts."""
        attempts = self._attempts[self._group_id]
        attempts.empty = attempts.empty + 1 if empty else 0
        attempts.steps_to_skip = min(attempts.empty // _ROUNDS_PER_SKIP, _MAX_SKIPPED_STEPS) + 1
