"""A replica without devices, many steps at once: what makes a million requests fast.

`fjx.sim.engine_replica` is a replica that is the engine. This one gives the same times without it,
where nothing is drafted: the scheduler, pages and requests are the engine's own, and a SimPy
process has the order of events of `Engine.step` without speculation. Each step serves the requests
of one group, in turn; the host sends it while steps of all groups are under way, and then reads the
oldest ones until none has more than one step unread.

Most rows of a long run are decodings that nothing happens to. A request whose prompt is computed is
therefore put out of the scheduler's sight (`fjx.sim.decoding_requests`) until its last token or
until pages run short, and runs of steps that only decode are made at once. Neither changes when a
token comes: the engine, which makes every step, gives the same times
(`tests/unit/sim/test_sim_replica.py`).
"""

from __future__ import annotations

from collections import deque

import simpy

from fjx.scheduling.page_pool import PagePool
from fjx.scheduling.request import Request
from fjx.scheduling.scheduler import ScheduledRows, Scheduler
from fjx.sim.admission import Admission
from fjx.sim.blocking import Process
from fjx.sim.costs import StageCosts
from fjx.sim.hidden_requests import HiddenRequests
from fjx.sim.reading import Reader
from fjx.sim.steps import FastForward, Listener, PlanSwitch, ReplicaLimits, SimStep, read_after
from fjx.sim.timing import Stages

_MAX_FAST_FORWARD = 1024


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
        host_seconds: float = 0.0,
    ) -> None:
        """
        Args:
            env: whose clock counts.
            limits: sizes of batches and KV memory.
            costs: of the plan's stages.
            microbatches: of the plan.
            listener: hears what becomes of requests.
            host_seconds: of the host's work, for each step.
        """
        self.env = env
        self.limits = limits
        self.costs = costs
        self.scheduler = Scheduler(
            PagePool(limits.num_pages, limits.page_size, share_prefixes=False),
            limits.max_num_seqs,
            limits.max_num_batched_tokens,
            limits.max_draft_rows,
        )
        self._admission = Admission(self.scheduler, limits)
        self.steps = 0
        """Steps sent so far."""
        self._listener = listener
        self._host_seconds = host_seconds
        self._in_flight: deque[SimStep] = deque()
        self._slow = 1.0
        self._switch: PlanSwitch | None = None
        self._stop: simpy.Event | None = None
        self._sleep: simpy.Event | None = None
        self._fast_forward: FastForward | None = None
        self._next = 0
        self._changes_plan = False
        self._inbox: list[Request] = []
        """Requests that came while it does."""
        self._lay_out(microbatches)
        self.process = env.process(self._run())

    def _lay_out(self, num_groups: int) -> None:
        """Begin with these groups; no step is in flight, and the scheduler has all requests."""
        self._num_groups = num_groups
        self._stages = Stages(self._slowed, num_groups, self.env.now, self._host_seconds)
        self._hidden = HiddenRequests(self.scheduler, num_groups)
        self._reader = Reader(self.scheduler, self._admission, self._hidden, self._listener)
        self._unread = [0] * num_groups
        self._admission.lay_out(num_groups)

    @property
    def _slowed(self) -> StageCosts:
        return self.costs if self._slow == 1.0 else self.costs.slower(self._slow)

    @property
    def load(self) -> int:
        """Unfinished requests."""
        return self.running + self.num_waiting

    @property
    def running(self) -> int:
        """Requests in the batch."""
        return len(self.scheduler.running) + len(self._hidden)

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return not (self.load or self._in_flight)

    def add(self, request: Request) -> None:
        """Queue a request.

        Raises:
            ValueError: it does not fit into the KV memory.
        """
        self.limits.check_fits(request)
        if self._changes_plan:
            self._inbox.append(request)
            return
        behind_others = self.scheduler.num_waiting > 0
        self._admission.add(request)
        if not (behind_others and self._is_closed):
            self._wake()

    @property
    def num_waiting(self) -> int:
        """Requests in the queue."""
        return self.scheduler.num_waiting + len(self._inbox)

    @property
    def waiting(self) -> list[Request]:
        """Requests in the queue."""
        return [*self.scheduler.waiting, *self._inbox]

    def take(self, request: Request) -> None:
        """Give up a waiting request; another replica will serve it."""
        if request in self._inbox:
            self._inbox.remove(request)
        else:
            self.scheduler.take(request)

    def slow_down(self, factor: float) -> None:
        """From the next step on, steps take so many times their seconds (1: their own)."""
        self._slow = factor
        self._stages.costs = self._slowed
        self._wake()

    def switch(self, costs: StageCosts, microbatches: int, pause_seconds: float) -> simpy.Event:
        """Change the plan between two steps, with a pause; the event is when that is done."""
        self._switch = PlanSwitch(costs, microbatches, pause_seconds, self.env.event())
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
        if self._fast_forward is not None:
            self._advance(self._fast_forward.sent_by(self.env.now))

    def close(self) -> None:
        """The simulation ends."""

    def _wake(self) -> None:
        if self._sleep is not None and not self._sleep.triggered:
            self._sleep.succeed()
        elif self._fast_forward is not None and not self._fast_forward.cut:
            self._fast_forward.cut = True
            self.process.interrupt()

    def _run(self) -> Process:
        while self._stop is None:
            if self._switch is not None:
                yield from self._step_after(self._switch)
            elif self.idle:
                self._sleep = self.env.event()
                yield self._sleep
                self._sleep = None
            elif (fast_forward := self._next_fast_forward()) is not None:
                yield from self._run_fast_forward(fast_forward)
            else:
                yield from self._step()
        yield from self._read_until(0)
        self._hidden.show_all(self._in_flight)
        self._stop.succeed([*self.scheduler.take_all(), *self._inbox])

    def _step_after(self, switch: PlanSwitch) -> Process:
        """Change the plan, and go on in the same step; who comes meanwhile is taken in after it."""
        self._changes_plan = True
        yield from self._change_plan(switch)
        yield from self._step()
        self._changes_plan = False
        inbox, self._inbox = self._inbox, []
        for request in inbox:
            self._admission.add(request)

    def _change_plan(self, switch: PlanSwitch) -> Process:
        yield from self._read_until(0)
        yield self.env.timeout(switch.pause_seconds)
        self._hidden.show_all(self._in_flight)
        # The new groups are made of several old ones, each of which is in order.
        self.scheduler.running = self._admission.in_order(self.scheduler.running)
        self.costs, self._switch = switch.costs, None
        self._lay_out(switch.microbatches)
        switch.done.succeed()

    def _step(self) -> Process:
        """As `Engine.step`."""
        if not self._send():
            yield from self._read_oldest()
            return
        if self._host_seconds:
            yield self.env.timeout(self._host_seconds)
        yield from self._read_until(1)

    def _read_until(self, most: int) -> Process:
        """Read the oldest steps until at most so many of any group are in flight."""
        while max(self._unread) > most:
            yield from self._read_oldest()

    def _read_oldest(self) -> Process:
        if not self._in_flight:
            return
        step = self._in_flight[0]
        if step.end > self.env.now:
            yield self.env.timeout(step.end - self.env.now)
        self._read()

    def _read(self) -> None:
        """Read the oldest step, which has ended."""
        now, step = self.env.now, self._in_flight.popleft()
        self._unread[step.group_id] -= 1
        self._reader.read(step, now)

    def _group_ids(self) -> list[int]:
        """All groups, from the one that is next."""
        return [(self._next + i) % self._num_groups for i in range(self._num_groups)]

    def _send(self) -> bool:
        """Schedule and send a step of the next group that has anything to do; whether there was
        one."""
        for group_id in self._group_ids():
            if self._send_group(group_id):
                self._next = group_id + 1
                return True
        return False

    def _send_group(self, group_id: int) -> bool:
        pool = self.scheduler.pool
        lacking = self._hidden.groups[group_id].due + self._admission.max_missing_pages(group_id)
        if lacking > pool.num_available:
            self._hidden.show_all(self._in_flight)
        group = self._hidden.groups[group_id]
        rows, context, last = group.rows, group.context, group.step(pool)
        scheduled = self._schedule(group_id, rows)
        if not scheduled and not rows:
            return False
        count = samples = rows
        pairs: float = context
        for _, start, more, chosen, *_ in scheduled:
            end = start + more
            count += more
            samples += chosen
            context += end
            pairs += more * (start + end + 1) / 2
        now, batch = self.env.now, ([count], [samples], [pairs], [context])
        leaves, _ = self._stages.plan([group_id], batch, now, [now], 1)
        self._stages.take([group_id], leaves)
        step = SimStep(float(leaves[0, -1]), group_id, samples > 0, last=last)
        self.steps += 1
        self._hidden.hide(step, scheduled)
        self._in_flight.append(step)
        self._unread[group_id] += 1
        return True

    def _schedule(self, group_id: int, decoding: int) -> list[ScheduledRows]:
        """Rows of the requests that the scheduler sees."""
        in_vain = not self.scheduler.num_waiting or self._admission.lacks_pages(group_id)
        if not self.scheduler.running and in_vain:
            return []
        return self._admission.schedule(group_id, decoding, self.steps)

    @property
    def _is_closed(self) -> bool:
        """Whether requests wait until another one ends."""
        return self.scheduler.num_waiting > 0 and self._admission.is_closed(self.steps)

    def _next_fast_forward(self) -> FastForward | None:
        """The steps from now on in which nothing happens, if there are several."""
        scheduler = self.scheduler
        if scheduler.running or (scheduler.num_waiting and not self._is_closed):
            return None
        group_ids = [
            group_id for group_id in self._group_ids() if self._hidden.groups[group_id].rows
        ]
        if not group_ids:
            return None
        steps = self._hidden.steps_at_once(group_ids, _MAX_FAST_FORWARD)
        read = read_after(group_ids, self._in_flight)
        if scheduler.num_waiting:  # the first one to end makes room
            ends = zip(read, self._in_flight, strict=True)
            steps = min([steps, *(after + 1 for after, step in ends if step.last)])
        if steps < 2:
            return None
        group = [self._hidden.groups[group_id] for group_id in group_ids]
        rows, context = [each.rows for each in group], [each.context for each in group]
        unread = {step.group_id: step.end for step in self._in_flight}
        now = self.env.now
        leaves, sent = self._stages.plan(
            *(group_ids, (rows, rows, context, context), now),
            *([unread.get(group_id, now) for group_id in group_ids], steps),
        )
        return FastForward(group_ids, leaves, sent, steps, read)

    def _run_fast_forward(self, fast_forward: FastForward) -> Process:
        """Make steps at once; a new request cuts the run short at the end of a step."""
        self._fast_forward = fast_forward
        while True:
            try:
                yield from self._live_through(fast_forward)
                break
            except simpy.Interrupt:
                fast_forward.cut_at(self.env.now)
        self._advance(fast_forward.steps)
        self._fast_forward = None
        group_ids, steps = fast_forward.group_ids, fast_forward.steps
        self._stages.take(group_ids, fast_forward.leaves[:steps])
        self._next = group_ids[(steps - 1) % len(group_ids)] + 1
        for i in range(steps):
            group_id = group_ids[i % len(group_ids)]
            if i < steps - len(group_ids):
                self._reader.report(group_id, float(fast_forward.sent[i + len(group_ids) + 1]))
            else:
                self._in_flight.append(SimStep(float(fast_forward.leaves[i, -1]), group_id))
                self._unread[group_id] += 1

    def _live_through(self, fast_forward: FastForward) -> Process:
        """Let the time of a fast-forward go by, and read what was in flight before."""
        while fast_forward.read_after and fast_forward.read_after[0] < fast_forward.steps:
            at = max(
                fast_forward.sent[fast_forward.read_after[0]] + self._host_seconds,
                self._in_flight[0].end,
            )
            if at > self.env.now:
                yield self.env.timeout(at - self.env.now)
            fast_forward.read_after.popleft()
            self._read()
        if fast_forward.end > self.env.now:
            yield self.env.timeout(fast_forward.end - self.env.now)

    def _advance(self, made: int) -> None:
        """Count the steps of the fast-forward until so many are made, and the pages that they
        take."""
        assert self._fast_forward is not None
        self.steps += self._hidden.advance(self._fast_forward, made, self.scheduler.pool)
