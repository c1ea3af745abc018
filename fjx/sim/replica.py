"""A replica without devices: the engine's scheduler and its loop, with steps that only take time.

`Scheduler`, `PagePool` and `Request` are the engine's own. What is new here is who steps them: a
SimPy process with the order of events of `Engine.step`, in which the host schedules a step while
the one before runs, and reads it one step late.

Most rows of a long run are decodings that nothing happens to. A request whose prompt is computed is
therefore put out of the scheduler's sight (`fjx.sim.steady`) until its last token or until pages
run short, and runs of equal steps are advanced at once. Neither changes when a token comes: with
``exact=True`` every request stays in sight and every step is made, and the times are the same
(`tests/unit/sim/test_sim_replica.py`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator
from typing import Any

import numpy as np
import simpy

from fjx.cache.page_pool import PagePool
from fjx.engine.progress import commit
from fjx.engine.request import Request
from fjx.engine.scheduler import ScheduledRows, Scheduler
from fjx.sim.costs import StageCosts
from fjx.sim.speculation import SimSpeculation
from fjx.sim.steady import Steady
from fjx.sim.steps import Lengths, Listener, ReplicaLimits, Step, Stretch, Switch
from fjx.sim.timing import run_steps

Process = Generator[simpy.Event, Any, None]
"""What SimPy runs."""

TOKEN = 1
"""What every simulated token is; a drafted token that is another one is wrong."""
_LONGEST_STRETCH = 4096
_LENGTHS: Any = Lengths()


class SimReplica:
    """One pipeline with its requests, as a process."""

    def __init__(
        self,
        env: simpy.Environment,
        limits: ReplicaLimits,
        costs: StageCosts,
        microbatches: int,
        listener: Listener,
        *,
        exact: bool = False,
        speculation: SimSpeculation | None = None,
        host_seconds: float = 0.0,
    ) -> None:
        """
        Args:
            env: whose clock counts.
            limits: sizes of batches and KV memory.
            costs: of the plan's stages.
            microbatches: of the plan.
            listener: hears what becomes of requests.
            exact: keep every request in the scheduler's sight and make every step.
            speculation: drafts tokens; then every step is made.
            host_seconds: of the host's work, for each step.
        """
        self.env = env
        self.limits = limits
        self.costs = costs
        self.scheduler = Scheduler(
            PagePool(limits.num_pages, limits.page_size, limits.share_prefixes),
            limits.max_num_seqs,
            limits.max_num_batched_tokens,
            limits.max_draft_rows,
        )
        self.steps = 0
        """Steps sent so far."""
        self._listener = listener
        self._exact = exact or speculation is not None
        self._speculation = speculation
        self._host_seconds = host_seconds
        self._in_flight: deque[Step] = deque()
        self._slow = 1.0
        self._switch: Switch | None = None
        self._stop: simpy.Event | None = None
        self._blocked_at = -1
        self._preempted_in = -3
        self._finishes = 0
        self._last_read: float | None = None
        self._steady = Steady(microbatches, limits.page_size)
        self._lay_out(microbatches)
        self._sleep: simpy.Event | None = None
        self._stretch: Stretch | None = None
        self.process = env.process(self._run())

    def _lay_out(self, microbatches: int) -> None:
        now = self.env.now
        self._microbatches = microbatches
        self._free = np.full(self.costs.stages, now, np.float64)
        self._sampled = np.full(microbatches, now, np.float64)
        self._effective = self.costs if self._slow == 1.0 else self.costs.slower(self._slow)
        old, self._steady = self._steady, Steady(microbatches, self.limits.page_size)
        self._steady.take_over(old)
        if self._speculation is not None:
            self._speculation.plan_changed(self.costs.stages)

    @property
    def load(self) -> int:
        """Unfinished requests."""
        return self.running + self.scheduler.num_waiting

    @property
    def running(self) -> int:
        """Requests in the batch."""
        return len(self.scheduler.running) + len(self._steady)

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return not (self.scheduler.has_work or len(self._steady) or self._in_flight)

    def add(self, request: Request) -> None:
        """Queue a request.

        Raises:
            ValueError: it does not fit into the KV memory.
        """
        room = (self.limits.num_pages - 1) * self.limits.page_size
        if request.max_len > room:
            raise ValueError(
                f"request {request.id} will have {request.max_len} tokens, the replica has room "
                f"for {room}; refuse it before"
            )
        behind_others = self.scheduler.num_waiting > 0
        self.scheduler.add(request)
        if not (behind_others and self._is_blocked):
            self._wake()

    def slow_down(self, factor: float) -> None:
        """From the next step on, steps take so many times their seconds (1: their own)."""
        self._slow = factor
        self._effective = self.costs if factor == 1.0 else self.costs.slower(factor)
        self._wake()

    def switch(self, costs: StageCosts, microbatches: int, pause_seconds: float) -> simpy.Event:
        """Change the plan between two steps, with a pause; the event is when that is done."""
        self._switch = Switch(costs, microbatches, pause_seconds, self.env.event())
        self._wake()
        return self._switch.done

    def stop(self) -> simpy.Event:
        """End after the steps in flight; the event brings the unfinished requests, which another
        replica will compute again."""
        self._stop = self.env.event()
        self._wake()
        return self._stop

    def catch_up(self) -> None:
        """Bring pages and counts up to now, where a run of steps is being made at once."""
        if self._stretch is not None:
            self._advance(self._stretch, self._stretch.sent_by(self.env.now))

    def _wake(self) -> None:
        if self._sleep is not None and not self._sleep.triggered:
            self._sleep.succeed()
        elif self._stretch is not None and not self._stretch.cut:
            self._stretch.cut = True
            self.process.interrupt()

    def _run(self) -> Process:
        while self._stop is None:
            if self._switch is not None:
                yield from self._change_plan(self._switch)
            elif self.idle:
                self._last_read = None
                self._sleep = self.env.event()
                yield self._sleep
                self._sleep = None
            elif (steps := self._equal_steps()) > 1:
                yield from self._run_stretch(steps)
            elif self._speculation is not None:
                yield from self._step_with_drafts(self._speculation)
            else:
                sent = self._send()
                yield from self._read_until(1 if sent else 0)
        yield from self._read_until(0)
        self._show_all()
        self._stop.succeed(self.scheduler.take_all())

    def _change_plan(self, switch: Switch) -> Process:
        yield from self._read_until(0)
        yield self.env.timeout(switch.pause_seconds)
        self.costs, self._switch = switch.costs, None
        self._lay_out(switch.microbatches)
        switch.done.succeed()

    def _read_until(self, most: int) -> Process:
        """Read the oldest steps until at most so many are in flight."""
        while len(self._in_flight) > most:
            step = self._in_flight[0]
            if step.end > self.env.now:
                yield self.env.timeout(step.end - self.env.now)
            self._in_flight.popleft()
            self._read(step)

    def _read(self, step: Step) -> None:
        now = self.env.now
        for request in step.first:
            self._first_token(request, now)
        counts = []
        end = 0
        for rows in step.scheduled:
            begin, end = end, end + rows.samples
            if begin != end and not rows.request.finished and not rows.is_void:
                counts.append(self._commit(rows, now))
        for request in step.last:
            self._steady.pop(request)
            self.scheduler.running.append(request)
            self._finish(request, now)
        if self._speculation is not None:
            self._speculation.observe_step(step.microbatches, now, counts)
        self._report(now)

    def _commit(self, rows: ScheduledRows, now: float) -> int:
        """Take what a request's rows chose; how many tokens that was."""
        request, confidences = rows.request, list(rows.request.confidences)
        if request.first_token is None:
            self._first_token(request, now)
        output: Any = None
        progress, verified = commit(request, [TOKEN] * rows.samples, output, 0, _LENGTHS)
        if verified.drafted and self._speculation is not None:
            if progress.finish_reason is not None:
                confidences = confidences[: len(progress.token_ids)]
            self._speculation.observe(request, confidences, *verified)
        if progress.finish_reason is not None:
            self._finish(request, now)
        return len(progress.token_ids)

    def _first_token(self, request: Request, now: float) -> None:
        request.first_token = now
        self._listener.first_token(request, now)

    def _finish(self, request: Request, now: float) -> None:
        request.finish_reason, request.ended = "length", now
        self.scheduler.share_full_pages(request)
        self.scheduler.finish(request)
        self._finishes += 1
        if self._speculation is not None:
            self._speculation.forget(request)
        self._listener.ended(request, now)

    def _send(self) -> bool:
        """Schedule a step and send it; whether there was anything to do."""
        index, pool = self.steps + 1, self.scheduler.pool
        due = self._steady.due(index)
        if len(due) > pool.num_available:
            self._show_all()
        else:
            self._steady.grow(due, index, pool)
        steady = self._steady
        scheduled = self._schedule()
        if not scheduled and not steady.decoding:
            return False
        batch = rows, samples, pairs, context = steady.batch(index)
        for request, start, count, chosen, _ in scheduled:
            part = request.slot % self._microbatches
            end = start + count
            rows[part] += count
            samples[part] += chosen
            context[part] += end
            pairs[part] += count * (start + end + 1) / 2
        ends = self._time(batch, 1, self.env.now, self._effective)
        step = Step(float(ends[0]))
        self.steps = index
        if self._exact:
            step.scheduled = scheduled
            if self._speculation is not None:
                step.microbatches = self._speculation.sent(scheduled, self._microbatches)
        else:
            step.last = steady.end(index)
            self._hide(scheduled, step)
        self._in_flight.append(step)
        return True

    def _schedule(self) -> list[ScheduledRows]:
        """The scheduler's rows, of what it sees."""
        scheduler = self.scheduler
        if not scheduler.running and (self._is_blocked or not scheduler.num_waiting):
            return []
        budget = max(self.limits.max_num_batched_tokens - self._steady.decoding, 0)
        scheduler.max_num_batched_tokens = budget
        preemptions = scheduler.num_preemptions
        scheduled = scheduler.schedule()
        if scheduler.num_preemptions > preemptions:
            self._preempted_in = self.steps
        elif sum(rows.count for rows in scheduled) < budget and scheduler.num_waiting:
            self._blocked_at = self._finishes
        return scheduled

    @property
    def _is_blocked(self) -> bool:
        """Whether requests wait until another one ends: the first of them did not fit, and it is
        not for a token of its own that was not read yet."""
        return self._blocked_at == self._finishes and self.steps > self._preempted_in + 2

    def _hide(self, scheduled: list[ScheduledRows], step: Step) -> None:
        """Put requests that only decode from now on out of the scheduler's sight."""
        for rows in scheduled:
            request = rows.request
            if not rows.samples:
                continue
            if request.known == request.prompt_len + 1:
                step.first.append(request)
            self.scheduler.running.remove(request)
            if not self._steady.add(request, self.steps):
                step.last.append(request)

    def _show_all(self) -> None:
        """Give the scheduler all requests back, as they are now."""
        unread = bool(self._in_flight)
        shown = self._steady.show_all(self.steps, unread, TOKEN)
        self._steady = Steady(self._microbatches, self.limits.page_size)
        self.scheduler.running[:0] = shown
        for step in self._in_flight:
            step.first, step.last = [], []
            step.scheduled = [
                ScheduledRows(each, each.computed - 1, 1, 1, each.rejections) for each in shown
            ]

    def _time(self, batch: Any, steps: int, sent: float, costs: StageCosts) -> Any:
        """When so many equal steps end, if the first one is sent then."""
        ends = np.empty(steps)
        prior = self._in_flight[-1].end if self._in_flight else sent
        run_steps(
            *(ends, self._free, self._sampled, *batch, sent, prior, self._host_seconds),
            *(costs.compute, costs.read, costs.fixed),
            *(costs.sample_seconds, costs.pair_seconds, costs.context_seconds),
        )
        return ends

    def _equal_steps(self) -> int:
        """How many steps in which nothing happens can be made at once."""
        steady = self._steady
        if self._exact or not steady.decoding or len(self._in_flight) != 1:
            return 0
        if self.scheduler.running or self._in_flight[0].eventful:
            return 0
        if self.scheduler.num_waiting and not self._is_blocked:
            return 0
        steps = min(steady.next_end - 1 - self.steps, _LONGEST_STRETCH)
        most_pages = steady.decoding * (steps // self.limits.page_size + 1)
        return steps if most_pages <= self.scheduler.pool.num_available else 0

    def _run_stretch(self, steps: int) -> Process:
        """Make equal steps at once; a new request cuts the run short at the end of a step."""
        begun, prior, costs = self.env.now, self._in_flight[0].end, self._effective
        batch = self._steady.batch(self.steps + 1)
        before = self._free.copy(), self._sampled.copy()
        stretch = self._stretch = Stretch(begun, prior, self._time(batch, steps, begun, costs))
        try:
            yield self.env.timeout(max(stretch.read_at(steps) - begun, 0.0))
        except simpy.Interrupt:
            steps = stretch.steps_read_after(self.env.now)
            self._free, self._sampled = before
            stretch.ends = self._time(batch, steps, begun, costs)
            yield self.env.timeout(max(stretch.read_at(steps) - self.env.now, 0.0))
        self._stretch = None
        self._advance(stretch, steps)
        self._in_flight[0] = Step(float(stretch.ends[-1]))
        for made in range(1, steps + 1):
            self._report(stretch.read_at(made))

    def _advance(self, stretch: Stretch, made: int) -> None:
        """Count steps of a stretch and the pages that they take."""
        while stretch.made < made:
            stretch.made += 1
            self.steps += 1
            due = self._steady.due(self.steps)
            if due:
                self._steady.grow(due, self.steps, self.scheduler.pool)

    def _report(self, now: float) -> None:
        """A step was read."""
        if self._last_read is not None:
            self._listener.stepped(now, now - self._last_read)
        self._last_read = now

    def _step_with_drafts(self, speculation: SimSpeculation) -> Process:
        """As `Engine.step` with a speculator."""
        drafting = speculation.due(self)
        behind = speculation.steps_behind if drafting else 1
        yield from self._read_until(behind)
        if drafting:
            while any(r.unread > 1 for r in self.scheduler.running) and self._in_flight:
                yield from self._read_until(len(self._in_flight) - 1)
            spent = speculation.draft(self)
            if spent > 0:
                yield self.env.timeout(spent)
                speculation.waited()
        sent = self._send()
        yield from self._read_until(behind + drafting if sent else 0)
