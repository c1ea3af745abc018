"""The requests that a simulated replica's scheduler does not see, because they only decode."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from fjx.scheduling.page_pool import PagePool
from fjx.scheduling.request import Request
from fjx.scheduling.scheduler import ScheduledRows, Scheduler
from fjx.sim.decoding_requests import DecodingRequests
from fjx.sim.steps import TOKEN, FastForward, SimStep


class HiddenRequests:
    """Takes requests out of a scheduler's sight, and gives them back."""

    def __init__(self, scheduler: Scheduler, num_groups: int) -> None:
        self._scheduler = scheduler
        self.groups = [DecodingRequests(self._page_size) for _ in range(num_groups)]

    def __len__(self) -> int:
        return sum(map(len, self.groups))

    @property
    def _page_size(self) -> int:
        return self._scheduler.pool.page_size

    def hide(self, step: SimStep, scheduled: Iterable[ScheduledRows]) -> None:
        """Take those of a step's requests that only decode from now on."""
        for rows in scheduled:
            request = rows.request
            if not rows.samples:
                continue
            if request.known == request.prompt_len + 1:
                step.first.append(request)
            self._scheduler.running.remove(request)
            if not self.groups[step.group_id].add(request):
                step.last.append(request)

    def show_all(self, in_flight: Iterable[SimStep]) -> None:
        """Give the scheduler all requests back, as they are now; at most one step of each group is
        in flight."""
        unread = {step.group_id: step for step in in_flight}
        shown: list[Request] = []
        for group_id, decoding in enumerate(self.groups):
            if not decoding:
                continue
            of_group = decoding.show_all(group_id in unread, TOKEN)
            self.groups[group_id] = DecodingRequests(self._page_size)
            if group_id in unread:
                step = unread[group_id]
                step.first, step.last = [], []
                step.scheduled = [
                    ScheduledRows(each, each.computed - 1, 1, 1, each.rejections)
                    for each in of_group
                ]
            shown += of_group
        self._scheduler.running[:0] = shown

    def steps_at_once(self, group_ids: Sequence[int], most: int) -> int:
        """How many steps these groups can make in turn before one brings a last token; 0: pages
        might not suffice."""
        decoding = [self.groups[group_id] for group_id in group_ids]
        before_end = (
            turn + len(group_ids) * each.steps_before_end for turn, each in enumerate(decoding)
        )
        steps = min(most, *before_end)
        pages = steps // len(group_ids) // self._page_size + 2
        needed = sum(each.rows for each in decoding) * pages
        return steps if needed <= self._scheduler.pool.num_available else 0

    def advance(self, fast_forward: FastForward, made: int, pool: PagePool) -> int:
        """Count the steps of a fast-forward until so many are made; how many came to it."""
        for turn, group_id in enumerate(fast_forward.group_ids):
            more = fast_forward.steps_of(turn, made) - fast_forward.steps_of(
                turn, fast_forward.made
            )
            self.groups[group_id].advance(more, pool)
        more, fast_forward.made = made - fast_forward.made, made
        return more
