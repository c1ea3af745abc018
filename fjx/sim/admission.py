"""What the scheduler of a simulated replica gives rows to, and whether it could admit anyone."""

from __future__ import annotations

from collections.abc import Iterable

from fjx.scheduling.request import Request
from fjx.scheduling.scheduler import ScheduledRows, Scheduler
from fjx.sim.steps import ReplicaLimits


class Admission:
    """Calls the scheduler for one group after the other, and remembers who was admitted when.

    While a request waits for pages, asking the scheduler again is in vain until something happens
    that may make it fit: a request ends, is admitted or preempted, or another one comes first.
    """

    def __init__(self, scheduler: Scheduler, limits: ReplicaLimits) -> None:
        self._scheduler, self._limits = scheduler, limits
        self._events = 0
        """What may make the first waiting request fit, counted."""
        self._admitted: dict[Request, int] = {}
        """Running requests, and the event with which each was admitted."""
        self._latest = 0.0
        self._preempted_in: int | None = None
        self.lay_out(1)

    def lay_out(self, num_groups: int) -> None:
        """There are so many groups from now on."""
        self._num_groups = num_groups
        self._lacked_pages_at = [-1] * num_groups

    def add(self, request: Request) -> None:
        """Queue a request."""
        self._events += request.arrival < self._latest  # it may be the first one
        self._latest = max(self._latest, request.arrival)
        self._scheduler.add(request)

    def ended(self, request: Request) -> None:
        """A request has its last token."""
        self._events += 1
        self._admitted.pop(request, None)

    def in_order(self, running: Iterable[Request]) -> list[Request]:
        """These requests in the order in which they were admitted."""
        return sorted(running, key=lambda each: self._admitted[each])

    def schedule(self, group_id: int, decoding: int, steps: int) -> list[ScheduledRows]:
        """The scheduler's rows, beside the rows of requests out of its sight.

        Args:
            group_id: whose step it is.
            decoding: rows that those out of sight get.
            steps: that were sent before.
        """
        scheduler = self._scheduler
        budget = max(self._limits.max_num_batched_tokens - decoding, 0)
        scheduler.max_num_batched_tokens = budget
        preemptions = scheduler.num_preemptions
        scheduled = scheduler.schedule(group_id, self._num_groups, decoding)
        preempted = scheduler.num_preemptions > preemptions
        if preempted:
            self._preempted_in = steps
            self._events += 1
            for request in scheduler.waiting:
                self._admitted.pop(request, None)
        for rows in scheduled:
            budget -= rows.count
            if rows.request not in self._admitted:
                self._events += 1
                self._admitted[rows.request] = self._events
        if budget and not preempted and scheduler.may_admit(group_id, self._num_groups):
            self._lacked_pages_at[group_id] = self._events
        return scheduled

    def lacks_pages(self, group_id: int) -> bool:
        """Whether the first waiting request was found not to fit into this group."""
        return self._lacked_pages_at[group_id] == self._events

    def is_closed(self, steps: int) -> bool:
        """Whether requests wait until another one ends: the first of them fits into no group, and
        it is not for a token of its own that was not read yet.

        Args:
            steps: that were sent until now.
        """
        if self._preempted_in is not None and steps <= self._preempted_in + self._num_groups + 1:
            return False
        may_admit = self._scheduler.may_admit
        return all(
            self.lacks_pages(group_id) or not may_admit(group_id, self._num_groups)
            for group_id in range(self._num_groups)
        )

    def max_missing_pages(self, group_id: int) -> int:
        """Pages that running requests in sight lack for the group's next step, at most."""
        most, size = self._limits.max_num_batched_tokens, self._limits.page_size
        return sum(
            max(-(-(each.computed + min(each.wanted_rows, most)) // size) - len(each.pages), 0)
            for each in self._scheduler.running_in(group_id, self._num_groups)
        )
