"""What the host of a simulated replica does with a step that it reads: tokens are committed,
requests end, and the listener hears of it."""

from __future__ import annotations

from typing import Any

from fjx.engine.progress import commit
from fjx.scheduling.request import Request
from fjx.scheduling.scheduler import ScheduledRows, Scheduler
from fjx.sim.admission import Admission
from fjx.sim.hidden_requests import HiddenRequests
from fjx.sim.steps import TOKEN, Listener, SimStep


class _Lengths:
    """Stands for the engine's detokenizer: a request ends by its length."""

    def add(self, request: Request, token: int) -> tuple[str, str | None]:
        """See `fjx.engine.detokenizer.Detokenizer.add`."""
        return "", "length" if len(request.tokens) >= request.max_len else None


_LENGTHS: Any = _Lengths()


class Reader:
    """Reads the steps of one plan."""

    def __init__(
        self,
        scheduler: Scheduler,
        admission: Admission,
        hidden: HiddenRequests,
        listener: Listener,
    ) -> None:
        self._scheduler, self._admission, self._hidden = scheduler, admission, hidden
        self._listener = listener
        self._last_read: list[float | None] = [None] * len(hidden.groups)

    def read(self, step: SimStep, now: float) -> None:
        """Take what a step has brought."""
        for request in step.first:
            self._first_token(request, now)
        for rows in step.scheduled:
            if not rows.request.finished and not rows.is_void:
                self._commit(rows, now)
        for request in step.last:
            self._hidden.groups[step.group_id].pop(request)
            self._scheduler.running.append(request)
            self._finish(request, now)
        self.report(step.group_id, now, step.brings)

    def report(self, group_id: int, now: float, brings: bool = True) -> None:
        """A step of the group was read: its requests have waited since the one before."""
        before, hidden = self._last_read[group_id], self._hidden.groups
        runs = hidden[group_id] or self._scheduler.running_in(group_id, len(hidden))
        self._last_read[group_id] = now if runs else None
        if before is not None and brings:
            self._listener.stepped(now, now - before)

    def _commit(self, rows: ScheduledRows, now: float) -> None:
        """Take what a request's row chose."""
        request = rows.request
        if request.first_token is None:
            self._first_token(request, now)
        output: Any = None
        progress, _ = commit(request, [TOKEN] * rows.samples, output, 0, _LENGTHS)
        if progress.finish_reason is not None:
            self._finish(request, now)

    def _first_token(self, request: Request, now: float) -> None:
        request.first_token = now
        self._listener.first_token(request, now)

    def _finish(self, request: Request, now: float) -> None:
        request.finish_reason, request.ended = "length", now
        self._scheduler.finish(request)
        self._admission.ended(request)
        self._listener.ended(request, now)
