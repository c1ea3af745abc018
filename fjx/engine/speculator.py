"""Drafting in the engine's step: when, for whom, how long; and what came of it."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from fjx.engine.draft_ahead import Ahead, DraftAhead, draft_ahead
from fjx.engine.drafter import Draft, Drafter, GoesOn
from fjx.engine.pruning import Lens, Pruning
from fjx.engine.replica import Microbatch, Replica
from fjx.engine.request import Request
from fjx.engine.round_log import RoundLog
from fjx.outputs import SpeculationStats
from fjx.sharding.plan import Plan
from fjx.speculation.acceptance import AcceptanceModel
from fjx.speculation.cost import CostModel
from fjx.speculation.frontiers import FrontierDepth
from fjx.speculation.policies import LengthPolicy, RequestView, RoundView
from fjx.speculation.worth import Mode, Worth

_PATIENCE = 8
"""Rounds in a row without a draft for each step that goes by without trying."""
_IDLE_SECONDS = 0.05
"""From a step to the next one: more means that there was nothing to do."""
_LONGEST_REST = 4
"""Most steps without trying."""
_FREE_REST, _LONG_REST = 16, 1024
"""Most steps without trying where speculation has lost: with a drafter that costs nothing, and with
another one."""


class Speculator:
    """Gives requests drafts before a step, and learns from what the steps bring.

    While drafts are verified, each step is read before the next one is drafted for and sent, or a
    few steps later: see `FrontierDepth`. While none pay, steps overlap as they do without
    speculation, and drafting is tried again now and then.
    """

    def __init__(
        self,
        drafter: Drafter,
        policy: LengthPolicy,
        buckets: Sequence[int],
        frontiers: FrontierDepth | None = None,
        lens: Lens | None = None,
        prune_always: bool = False,
        ahead: Ahead = "off",
        clock: Callable[[], float] = time.perf_counter,
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
            clock: seconds; what `observe_step` gets is of the same clock.
        """
        self.drafter = drafter
        self.policy = policy
        self._clock = clock
        self.frontiers = frontiers or FrontierDepth(1)
        self._acceptance = AcceptanceModel()
        self._target_cost = CostModel(buckets, padded=True)
        self._draft_cost = None if drafter.free else CostModel(buckets)
        self._first_cost = CostModel(buckets)
        self.worth: Worth | None = None
        if policy.weighs_plain:
            longest = _FREE_REST if drafter.free else _LONG_REST
            self.worth = Worth(buckets, drafter.catching_up, longest)
        self.pruning: Pruning | None = None
        if lens is not None:
            self.pruning = Pruning(lens, self._acceptance, self._target_cost, prune_always)
        self.ahead = draft_ahead(drafter, self._target_cost, ahead)
        self._drafted = False
        """Whether drafts are under way."""
        self._mode = Mode.DRAFT
        self._modes: dict[float, Mode] = {}
        """Of the steps in flight, by when they were sent."""
        self._last_step = self._drafting_seconds = 0.0
        self._empty = self._rest = 0
        self.round_log: RoundLog | None = None
        """Follows a request, where one wants to see its rounds."""
        self._counts: Counter[str] = Counter()
        self._accepted_at: Counter[int] = Counter()
        self._lengths: Counter[int] = Counter()

    def due(self, replicas: Sequence[Replica]) -> bool:
        """Whether `draft` is to be called before the next step."""
        running = sum(len(each.scheduler.running) for each in replicas)
        self._mode = Mode.DRAFT
        if self.worth is not None and running:
            self._mode = self.worth.next_mode(running)
        if self._mode is Mode.DRAFT and not self._drafted:
            self._rest = max(self._rest - 1, 0)
            if self._rest:
                self._mode = Mode.READ
        return self._mode is Mode.DRAFT

    @property
    def steps_behind(self) -> int:
        """How many steps may be unread when `draft` is called."""
        return self.frontiers.depth - 1

    @property
    def may_draft_ahead(self) -> DraftAhead | None:
        """What drafts while the next step verifies; None: nothing."""
        return self.ahead if self.frontiers.depth == 1 else None

    def draft(self, replicas: Sequence[Replica]) -> None:
        """Give drafts to the requests that can have one, where the policy says that they pay."""
        self._drafted = False
        running = [request for each in replicas for request in each.scheduler.running]
        most = {
            request: each.scheduler.reserve(request, self._most(request))
            for each in replicas
            for request in each.scheduler.running
            if request.awaits_draft
        }
        view = self._view(most, running, replicas)
        if not any(each.most for each in view.requests):
            if most:
                self._count_empty(True)
            return
        begun, waiting = self._clock(), list(most)
        lengths = self.policy.draft_lengths(view)
        drafts = self._propose(waiting, lengths, partial(self.policy.goes_on, view))
        kept = self.policy.verify_lengths(view, [draft.confidences for draft in drafts])
        if self.round_log is not None:
            self.round_log.drafted(begun, self._clock(), waiting, drafts, kept)
        for request, draft, length in zip(waiting, drafts, kept, strict=True):
            self._give(request, draft, length)
        self._count_empty(not self._drafted)

    def _propose(
        self, waiting: Sequence[Request], lengths: Sequence[int], goes_on: GoesOn
    ) -> list[Draft]:
        """Draft, and learn what a round of it costs."""
        begun = self._clock()
        drafts = self.drafter.propose(waiting, lengths, goes_on)
        for request, draft in zip(waiting, drafts, strict=True):
            self._acceptance.propose(request, draft.confidences)
        spent = self._clock() - begun
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

    def sent(self, microbatches: Sequence[Microbatch]) -> None:
        """A step has been sent."""
        take = self.drafter.miss if self._mode is Mode.REST else self.drafter.feed
        for microbatch in microbatches:
            take(microbatch)
        if microbatches:
            self._modes[microbatches[0].sent] = self._mode
        if self.round_log is not None:
            self.round_log.sent(microbatches)

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

    def observe_step(
        self, microbatches: Sequence[Microbatch], now: float, tokens: Sequence[int]
    ) -> None:
        """A step has brought so many tokens to each of some requests, at this time of
        ``time.perf_counter``.

        For the cost of the target's steps, what the host did since the step before counts, too, but
        for drafting: where steps overlap it is nothing.
        """
        if self.round_log is not None:
            self.round_log.read(microbatches, now)
        scheduled = [rows for each in microbatches for rows in each.scheduled]
        begun, between = microbatches[0].sent, microbatches[0].sent - self._last_step
        if between < _IDLE_SECONDS:
            begun = min(begun, self._last_step + self._drafting_seconds)
        rows = sum(each.count for each in scheduled)
        context = sum(each.start + each.count for each in scheduled)
        seconds = now - max(begun, self._last_step)
        pruned = False
        if self.pruning is not None:
            for each in microbatches:
                pruned |= self.pruning.observe_step(each.scheduled, seconds)
        ahead = False
        if self.ahead is not None:
            for each in microbatches:
                ahead |= self.ahead.observe_step(each.scheduled, seconds)
        mode = self._modes.pop(microbatches[0].sent, Mode.READ)
        if self.frontiers.depth == 1 and not (pruned or ahead) and mode is not Mode.REST:
            self._target_cost.offer(rows, context, seconds)
        interval = now - self._last_step
        if self._drafted and between < _IDLE_SECONDS:
            alone = self._target_cost.seconds(rows, context)
            self.frontiers.observe_step(interval, alone, self._drafting_seconds)
        if self.worth is not None and tokens and between < _IDLE_SECONDS:
            if mode is Mode.DRAFT:
                plain = rows - sum(max(each.samples - 1, 0) for each in scheduled)
                self.worth.observe_round(plain, context, interval, sum(tokens), len(tokens))
            elif mode is Mode.REST and between < 0:
                self.worth.observe_plain(rows, context, interval)
        self._last_step, self._drafting_seconds = now, 0.0

    def forget(self, request: Request) -> None:
        """The request has ended."""
        self.drafter.forget(request)
        self._acceptance.forget(request)
        if self.pruning is not None:
            self.pruning.forget(request)

    def plan_changed(self, plan: Plan) -> None:
        """The target runs by another plan now."""
        self.frontiers.stages = len(plan.stages)
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
            saved_seconds=0.0 if self.worth is None else self.worth.saved_seconds,
            accepted_per_position=tuple(self._accepted_at[i] for i in range(longest)),
            draft_lengths=dict(self._lengths),
        )

    def _view(
        self, most: Mapping[Request, int], running: Sequence[Request], replicas: Sequence[Replica]
    ) -> RoundView:
        limits = replicas[0].executor.limits
        others = sum(request.wanted_rows for request in running) - len(most)
        budget = limits.max_num_batched_tokens * len(replicas) - len(most)
        return RoundView(
            requests=tuple(
                RequestView(request, longest, request.num_tokens)
                for request, longest in most.items()
            ),
            other_rows=max(min(others, budget), 0),
            most_rows=limits.max_draft_rows * len(replicas),
            acceptance=self._acceptance,
            target_cost=self._target_cost,
            draft_cost=self._draft_cost,
            first_cost=self._first_cost,
            stops=self.drafter.stops,
        )

    def _most(self, request: Request) -> int:
        """Longest draft that can be of use: the last token of a request needs none behind it."""
        asked = request.params.max_draft_tokens
        longest = self.drafter.longest if asked is None else min(asked, self.drafter.longest)
        return max(min(longest, request.max_len - request.num_tokens - 1), 0)

    def _give(self, request: Request, draft: Draft, length: int) -> None:
        self._counts["proposed"] += len(draft.tokens)
        if not length:
            self._lengths[0] += 1
        else:
            self._counts["given"] += length
            request.extend_draft(draft.tokens[:length], draft.confidences[:length])
            self._drafted = True

    def _count_empty(self, empty: bool) -> None:
        """After rounds without a draft, rest for a while."""
        self._empty = self._empty + 1 if empty else 0
        self._rest = min(self._empty // _PATIENCE, _LONGEST_REST) + 1
