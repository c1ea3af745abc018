"""Which tokens run in the next step: one law for prefill, decode and verification.

Each request has known and computed tokens; the scheduler hands out rows to close the gaps. Running
requests come first, then waiting ones, first come first served within a priority. When pages run
out the youngest request is preempted: it gives up its pages and is computed again later, with the
same tokens.

Where several steps are under way at once, each serves one *group* of the requests: those in every
n-th slot. A request stays in its group for as long as it runs, but for its prompt, whose chunks the
steps of other groups take where they have room.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import NamedTuple

from fjx.scheduling.page_pool import OutOfPagesError, PagePool, prefix_digests
from fjx.scheduling.request import Request


class ScheduledRows(NamedTuple):
    """Rows of one request in a step: tokens ``start : start + count``."""

    request: Request
    start: int
    count: int  # type: ignore[assignment]  # hides tuple.count, which nobody needs
    samples: int
    """How many of the last rows choose a token: that of the last committed token, and those behind
    it."""
    rejections: int = 0
    """`Request.rejections` when the rows were sent."""
    scored: int = 0
    """How many rows before those tell the log-probability of the prompt's next token."""

    @property
    def reads(self) -> int:
        """How many of the last rows bring something: those scored, and those that choose."""
        return self.scored + self.samples

    @property
    def scored_positions(self) -> range:
        """Positions of the rows that are scored."""
        end = self.start + self.count - self.samples
        return range(end - self.scored, end)

    @property
    def is_void(self) -> bool:
        """Whether a token before these rows turned out otherwise than they took it to be."""
        return self.rejections != self.request.rejections


class Scheduler:
    """Owns the waiting and running requests and their pages."""

    def __init__(
        self,
        pool: PagePool,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        max_draft_rows: int = 0,
    ) -> None:
        self.pool = pool
        self.max_num_seqs = max_num_seqs
        self.max_num_batched_tokens = max_num_batched_tokens
        self.max_draft_rows = max_draft_rows
        self.running: list[Request] = []
        self.num_preemptions = 0
        self.prefix_queries = 0
        self.prefix_hits = 0
        self._waiting: list[tuple[tuple[int, float, int], Request]] = []
        self._order = 0
        self._free_slots = list(range(max_num_seqs - 1, -1, -1))

    @property
    def num_waiting(self) -> int:
        """Requests in the queue."""
        return len(self._waiting)

    @property
    def has_work(self) -> bool:
        """Whether any request is unfinished."""
        return bool(self.running or self._waiting)

    @property
    def waiting(self) -> list[Request]:
        """Requests in the queue, in no particular order."""
        return [entry[-1] for entry in self._waiting]

    def add(self, request: Request) -> None:
        """Queue a request."""
        if request.order < 0:
            self._order += 1
            request.order = self._order
        heapq.heappush(self._waiting, (request.place, request))

    def running_in(self, group_id: int, num_groups: int) -> list[Request]:
        """The running requests of a group, in the order in which they were admitted."""
        return [request for request in self.running if request.slot % num_groups == group_id]

    def has_rows(self, group_id: int, num_groups: int) -> bool:
        """Whether the next step of a group has anything to do, as far as is known without pages."""
        wanting = any(request.wanted_rows for request in self.running_in(group_id, num_groups))
        return wanting or self.may_admit(group_id, num_groups)

    def schedule(
        self, group_id: int = 0, num_groups: int = 1, others: int = 0
    ) -> list[ScheduledRows]:
        """`select` the rows of the next step, and take them to be sent."""
        scheduled = self.select(group_id, num_groups, others)
        self.sent(scheduled)
        return scheduled

    def select(
        self, group_id: int = 0, num_groups: int = 1, others: int = 0
    ) -> list[ScheduledRows]:
        """Hand out the rows of the next step; empty if nothing can run now. Slots and pages are
        taken; what is computed changes when the step is `sent`.

        Args:
            group_id: whose step it is, of ``num_groups``: it has the whole budget, and gets a
                waiting request while it has fewer than its share of all requests. What it does not
                need goes to prompts of others, up to the row that chooses a token.
            num_groups: how many there are.
            others: rows that the step has anyway, beside the budget (`fjx.sim`).
        """
        budget, draft_budget = self.max_num_batched_tokens, self.max_draft_rows
        # Rows that bring something besides one for each running request.
        spare = self.max_num_seqs + self.max_draft_rows - len(self.running)
        rows: dict[Request, ScheduledRows] = {}
        preempted = False
        for request in self.running_in(group_id, num_groups):
            if budget == 0:
                break
            wanted = request.wanted_rows
            if request.slot < 0 or not wanted:
                continue
            count = min(wanted, budget)
            if request.draft:
                self._trim_draft(request, budget, min(draft_budget, spare))
                count = min(request.wanted_rows, budget)
                draft_budget -= len(request.draft) - request.sent_draft
                spare -= len(request.draft) - request.sent_draft
            elif request.to_score:
                count = min(count, spare + 1)
            if self._pages_lacking(request, count) > 0:
                victims = self._make_room(request, count)
                preempted |= bool(victims)
                for victim in victims:
                    budget += rows.pop(victim).count if victim in rows else 0
                if request in victims:
                    continue
            rows[request] = granted = _rows(request, count)
            budget -= count
            spare -= granted.scored if granted.samples else max(granted.scored - 1, 0)
        while min(budget, spare) > 0 and not preempted and self.may_admit(group_id, num_groups):
            request = self._admit(group_id, num_groups)
            count = min(request.wanted_rows, budget, spare if request.to_score else budget)
            try:
                self._grow(request, count)
            except OutOfPagesError:
                self._release(request)
                self.add(request)
                break
            self._count_prefix(request)
            self.running.append(request)
            rows[request] = granted = _rows(request, count)
            budget -= count
            spare -= max(granted.reads, 1)
        if num_groups > 1 and (rows or others) and not preempted:
            self._carry_prompts(group_id, num_groups, budget, rows)
        return list(rows.values())

    def sent(self, scheduled: Sequence[ScheduledRows]) -> None:
        """The devices will compute these rows, in the order of the calls."""
        size = self.pool.page_size
        for request, start, count, *_ in scheduled:
            request.computed = end = start + count
            if end == request.known:
                request.unread += 1
            if end // size > request.shared_pages:
                self.share_full_pages(request)

    def may_admit(self, group_id: int, num_groups: int) -> bool:
        """Whether the first waiting request may join a group, if there are pages for it."""
        # A token that only the device knew was lost with the slot: wait until the host has read it.
        if not self._waiting or self._waiting[0][-1].unread:
            return False
        # Counted by slots, which requests keep while `fjx.sim` has them out of ``running``.
        share = -(-(self.max_num_seqs - len(self._free_slots) + len(self._waiting)) // num_groups)
        free = len([slot for slot in self._free_slots if slot % num_groups == group_id])
        return free > 0 and len(range(group_id, self.max_num_seqs, num_groups)) - free < share

    def reserve(self, request: Request, count: int) -> int:
        """Give a running request pages for ``count`` tokens behind those that the host knows, as
        far as no other request can need them in the next step; for how many it has pages now."""
        known, size = request.num_tokens, self.pool.page_size
        lacking = -(-(known + count) // size) - len(request.pages)
        needed = len(self.running) + self.max_num_batched_tokens // size + 1
        spare = self.pool.num_available - needed
        if min(lacking, spare) > 0:
            request.pages += self.pool.take(min(lacking, spare))
        return max(min(count, len(request.pages) * size - known), 0)

    def finish(self, request: Request) -> None:
        """Take a finished or cancelled request out, wherever it is."""
        if request.slot >= 0:
            self.running.remove(request)
            self._release(request)
        else:
            self._waiting = [entry for entry in self._waiting if entry[-1] is not request]
            heapq.heapify(self._waiting)

    def take(self, request: Request) -> None:
        """Give up a waiting request; another scheduler will serve it."""
        self.finish(request)
        request.order = -1

    def take_all(self) -> list[Request]:
        """Give up all requests and their pages, first come first; another scheduler will compute
        them again, with the same tokens."""
        for request in self.running:
            self._release(request)
        requests = sorted([*self.running, *self.waiting], key=lambda request: request.place)
        self.running, self._waiting = [], []
        for request in requests:
            request.order = -1
        return requests

    def lose_pages(self) -> None:
        """All pages are lost, and whatever steps under way would have chosen: every request is
        computed again, with the same tokens. What was cached is forgotten."""
        for request in list(self.running):
            self._preempt(request)
        for request in self.waiting:
            request.unread = 0
        self.pool.forget_cached()

    def share_full_pages(self, request: Request) -> None:
        """Make the request's pages of known, computed tokens known to the prefix cache."""
        full = min(request.computed, len(request.tokens)) // self.pool.page_size
        if not self.pool.share_prefixes or full <= request.shared_pages or request.slot < 0:
            return
        request.digests = self._digests(request)
        for i in range(request.shared_pages, full):
            self.pool.share(request.pages[i], request.digests[i])
        request.shared_pages = full

    def check(self) -> None:
        """Audit pages and slots; see `PagePool.check`."""
        self.pool.check([request.pages for request in self.running])
        slots = sorted([*self._free_slots, *(r.slot for r in self.running)])
        assert slots == list(range(self.max_num_seqs)), "slots leaked"

    def _digests(self, request: Request) -> list[bytes]:
        return prefix_digests(
            request.tokens, self.pool.page_size, request.digests, request.cache_salt
        )

    def _carry_prompts(
        self, group_id: int, num_groups: int, budget: int, rows: dict[Request, ScheduledRows]
    ) -> None:
        """Let a group's step take the next chunks of prompts of other groups, too: one that chooses
        no token needs nothing of its group's last step, and stages run steps as they were sent."""
        for request in self.running:
            left = min(len(request.tokens) - 1 - request.computed, request.wanted_rows, budget)
            if (
                request.slot % num_groups == group_id
                or left <= 0
                or request.draft
                or request.to_score
            ):
                continue
            if self._pages_lacking(request, left) > self.pool.num_available:
                return
            self._grow(request, left)
            rows[request] = _rows(request, left)
            budget -= left

    def _free_slot(self, group_id: int, num_groups: int) -> int | None:
        """The lowest one of a group: which one it is must not tell what was tried before."""
        free = (slot for slot in self._free_slots if slot % num_groups == group_id)
        return min(free, default=None)

    def _admit(self, group_id: int, num_groups: int) -> Request:
        """Take the next waiting request, with a slot and the pages of its known prefix."""
        request, slot = heapq.heappop(self._waiting)[-1], self._free_slot(group_id, num_groups)
        assert slot is not None, "nobody may be admitted"
        self._free_slots.remove(slot)
        request.slot = slot
        if self.pool.share_prefixes:
            size = self.pool.page_size
            digests = self._digests(request)
            # At least one row must run, and all of a prompt that is scored.
            usable = 0 if request.to_score else (len(request.tokens) - 1) // size
            request.pages = self.pool.find_prefix(digests[:usable])
            request.digests = digests
            request.shared_pages = len(request.pages)
            request.computed = len(request.pages) * size
        return request

    def _count_prefix(self, request: Request) -> None:
        if self.pool.share_prefixes and request.scheduled is None:
            self.prefix_queries += len(request.tokens)
            self.prefix_hits += request.computed
            request.cached_tokens = request.computed

    def _trim_draft(self, request: Request, budget: int, draft_budget: int) -> None:
        """Keep of a draft what is under way, and what costs no other request its rows or pages."""
        sent, gap = request.sent_draft, len(request.tokens) - request.computed
        slots = len(request.pages) * self.pool.page_size - len(request.tokens)
        length = min(len(request.draft), sent + draft_budget, budget - gap, slots)
        request.cut_draft(max(length, sent))

    def _pages_lacking(self, request: Request, count: int) -> int:
        """Pages to take for ``count`` more tokens; not positive: it has them."""
        return -(-(request.computed + count) // self.pool.page_size) - len(request.pages)

    def _grow(self, request: Request, count: int) -> None:
        lacking = self._pages_lacking(request, count)
        if lacking > 0:
            request.pages += self.pool.take(lacking)

    def _make_room(self, request: Request, count: int) -> list[Request]:
        """Give the request pages for ``count`` more tokens, preempting the youngest until they
        suffice."""
        victims: list[Request] = []
        while True:
            try:
                self._grow(request, count)
                return victims
            except OutOfPagesError:
                victim = max(self.running, key=lambda request: request.place)
                self._preempt(victim)
                victims.append(victim)
                if victim is request:
                    return victims

    def _preempt(self, request: Request) -> None:
        self.num_preemptions += 1
        request.preemptions += 1
        self.running.remove(request)
        self._release(request)
        self.add(request)

    def _release(self, request: Request) -> None:
        self.pool.give_back(request.pages)
        self._free_slots.append(request.slot)
        if request.draft:
            request.give_up_draft()
        request.pages, request.computed, request.slot, request.shared_pages = [], 0, -1, 0


def _rows(request: Request, count: int) -> ScheduledRows:
    """The next rows of a request."""
    start = request.computed
    samples = max(start + count - max(start, len(request.tokens) - 1), 0)
    scored = count - samples if request.to_score else 0
    return ScheduledRows(request, start, count, samples, request.rejections, scored)
