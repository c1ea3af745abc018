"""Scheduled rows become a step's arrays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from fjx.pipeline.batch import Batch, StepLayout
from fjx.pipeline.buckets import bucket_for
from fjx.pipeline.limits import Limits
from fjx.scheduling.request import Request
from fjx.scheduling.scheduler import ScheduledRows
from fjx.scheduling.slot_params import SlotParams


@dataclass(frozen=True)
class _Arrangement:
    """What of a step depends only on which slots have how many rows: the same from step to step
    while the same requests decode."""

    key: tuple[Any, ...]
    """Slots, counts of rows, how many of them choose a token, whose last row is pending, and how
    many of the prompt are scored."""
    layout: StepLayout
    packed: np.ndarray
    """The step's integers, but for what follows the requests' progress."""
    slots: np.ndarray
    counts: np.ndarray
    request_of: np.ndarray
    behind: np.ndarray
    """How far each row lies behind the end of its request's context."""
    choosing: np.ndarray
    """For each row that chooses a token or is scored, its request."""
    choosing_behind: np.ndarray
    """How far each of them lies behind the last row of its request."""
    scored: tuple[int, ...]
    """Which of them are scored."""
    read: tuple[tuple[int, int, int], ...]
    """Request, first and last + 1 of the rows whose tokens the host knows."""


class BatchBuilder:
    """Owns the host's per-slot copies of page tables."""

    def __init__(self, limits: Limits, end_tokens: tuple[int, ...], vocabulary: int) -> None:
        """``vocabulary``: number of token ids."""
        self._params = SlotParams(limits, end_tokens, vocabulary)
        self._row_buckets = limits.row_buckets
        self._layouts = {T: limits.layout(T) for T in self._row_buckets}
        layout = self._layouts[self._row_buckets[-1]]
        N = layout.slots
        self._arrangements: dict[int, _Arrangement] = {}
        self._page_table = np.zeros((N, layout.pages), np.int32)
        # The list object itself tells whether a slot's row is still that of its request: every
        # admission makes a new list, growth extends it in place.
        self._pages: list[list[int]] = [[]] * N
        self._pages_known = [0] * N

    def build(self, scheduled: list[ScheduledRows], group_id: int = 0) -> Batch:
        """Lay the scheduled rows out side by side, padded to the next bucket.

        ``group_id``: which of the plan's microbatches they are.
        """
        requests: tuple[Request, ...]
        requests, starts, counts, samples, _, scored = zip(*scheduled, strict=True)
        self._refresh_slots(requests)
        slots = [request.slot for request in requests]
        # A pending row's token was chosen by the step before and is known to the device alone.
        pending = [
            start + n > len(request.tokens) + len(request.draft)
            for request, start, n, *_ in scheduled
        ]
        key = slots, counts, samples, pending, scored
        known = self._arrangements.get(group_id)
        each = known if known is not None and known.key == key else self._arrange(*key)
        self._arrangements[group_id] = each
        packed = each.packed.copy()
        step = each.layout.split(packed)
        for i, first, end in each.read:
            start = starts[i]
            step.tokens[first:end] = requests[i].known_tokens(start, start + end - first)
        context_len = np.array(starts, np.int32) + each.counts
        n, total = len(slots), len(each.request_of)
        step.rows.context_len[:n] = context_len
        step.rows.positions[:total] = context_len[each.request_of] - each.behind
        step.rows.page_table[:n] = self._page_table[each.slots]
        return Batch(
            packed=packed,
            num_rows=each.layout.rows,
            num_samples=len(each.choosing),
            **self._params.of_rows(
                requests,
                each.choosing,
                each.slots[each.choosing],
                each.scored,
                context_len[each.choosing] - each.choosing_behind,
            ),
        )

    def _arrange(
        self,
        slots: list[int],
        counts: tuple[int, ...],
        samples: tuple[int, ...],
        pending: list[bool],
        scored: tuple[int, ...],
    ) -> _Arrangement:
        slot, count = np.array(slots, np.int32), np.array(counts, np.int32)
        ends = np.cumsum(count, dtype=np.int32)
        n, total = len(slots), int(ends[-1])
        layout = self._layouts[bucket_for(total, self._row_buckets)]
        packed = np.zeros(layout.size, np.int32)
        step = layout.split(packed)
        step.token_slot[:] = -1
        step.token_slot[ends[pending] - 1] = slot[pending]
        step.rows.query_start[1 : n + 1] = ends
        step.rows.query_start[n + 1 :] = total
        request_of = np.repeat(np.arange(n, dtype=np.int32), count)
        step.rows.request_of[:total] = request_of
        step.rows.request_of[total:] = -1
        chooses = np.array(samples, np.int32)
        reads = chooses + np.array(scored, np.int32)
        choosing = np.repeat(np.arange(n, dtype=np.int32), reads)
        chosen = np.cumsum(reads, dtype=np.int32)
        choosing_behind = chosen[choosing] - 1 - np.arange(len(choosing), dtype=np.int32)
        is_scored = choosing_behind >= chooses[choosing]
        step.sample_rows[: len(choosing)] = ends[choosing] - 1 - choosing_behind
        # What a request's last row chooses feeds its next step.
        step.sample_slots[:] = layout.slots
        last = (choosing_behind == 0) & ~is_scored
        step.sample_slots[: len(choosing)][last] = slot[choosing][last]
        known_rows = count - np.array(pending)
        firsts = ends - count
        return _Arrangement(
            key=(slots, counts, samples, pending, scored),
            layout=layout,
            packed=packed,
            slots=slot,
            counts=count,
            request_of=request_of,
            behind=ends[request_of] - np.arange(total, dtype=np.int32),
            choosing=choosing,
            choosing_behind=choosing_behind,
            scored=tuple(np.flatnonzero(is_scored).tolist()),
            read=tuple(
                (i, int(firsts[i]), int(firsts[i] + known_rows[i]))
                for i in np.flatnonzero(known_rows).tolist()
            ),
        )

    def _refresh_slots(self, requests: tuple[Request, ...]) -> None:
        for request in requests:
            slot, pages = request.slot, request.pages
            if self._pages[slot] is not pages:
                self._params.set(request)
                self._pages[slot], self._pages_known[slot] = pages, 0
            known = self._pages_known[slot]
            if known < len(pages):
                self._page_table[slot, known : len(pages)] = pages[known:]
                self._pages_known[slot] = len(pages)
