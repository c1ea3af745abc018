"""The requests that a simulated replica's scheduler does not see, because they only decode."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from fjx.scheduling.page_pool import PagePool
from fjx.scheduling.request import Request
from fjx.scheduling.scheduler import ScheduledRows, Scheduler
from fjx.sim.steady import Steady
from fjx.sim.steps import TOKEN, Step, Stretch


class OutOfSight:
    """Takes requests out of a scheduler's sight, and gives them back."""

    def __init__(self, scheduler: Scheduler, parts: int) -> None:
        self._scheduler = scheduler
        self.parts = [Steady(self._page_size) for _ in range(parts)]

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    @property
    def _page_size(self) -> int:
        return self._scheduler.pool.page_size

    def hide(self, step: Step, scheduled: Iterable[ScheduledRows]) -> None:
        """Take those of a step's requests that only decode from now on."""
        for rows in scheduled:
            request = rows.request
            if not rows.samples:
                continue
            if request.known == request.prompt_len + 1:
                step.first.append(request)
            self._scheduler.running.remove(request)
            if not self.parts[step.part].add(request):
                step.last.append(request)

    def show_all(self, in_flight: Iterable[Step]) -> None:
        """Give the scheduler all requests back, as they are now; at most one step of each part is
        in flight."""
        unread = {step.part: step for step in in_flight}
        shown: list[Request] = []
        for part, steady in enumerate(self.parts):
            if not steady:
                continue
            of_part = steady.show_all(part in unread, TOKEN)
            self.parts[part] = Steady(self._page_size)
            if part in unread:
                step = unread[part]
                step.first, step.last = [], []
                step.scheduled = [
                    ScheduledRows(each, each.computed - 1, 1, 1, each.rejections)
                    for each in of_part
                ]
            shown += of_part
        self._scheduler.running[:0] = shown

    def steps_at_once(self, parts: Sequence[int], most: int) -> int:
        """How many steps these parts can make in turn before one brings a last token; 0: pages
        might not suffice."""
        steady = [self.parts[part] for part in parts]
        before_end = (turn + len(parts) * each.steps_before_end for turn, each in enumerate(steady))
        steps = min(most, *before_end)
        pages = steps // len(parts) // self._page_size + 2
        needed = sum(each.rows for each in steady) * pages
        return steps if needed <= self._scheduler.pool.num_available else 0

    def advance(self, stretch: Stretch, made: int, pool: PagePool) -> int:
        """Count the steps of a stretch until so many are made; how many came to it."""
        for turn, part in enumerate(stretch.parts):
            more = stretch.steps_of(turn, made) - stretch.steps_of(turn, stretch.made)
            self.parts[part].advance(more, pool)
        more, stretch.made = made - stretch.made, made
        return more
