"""Scheduled rows become a step's arrays."""

from __future__ import annotations

from typing import Any

import numpy as np

from fjx.engine.request import Request
from fjx.engine.scheduler import ScheduledRows
from fjx.kernels.token_rule import LogitEdits, SamplingRows
from fjx.pipeline.batch import Batch, StepRows
from fjx.pipeline.buckets import bucket_for
from fjx.pipeline.executor import Limits
from fjx.sampling_params import MAX_LOGIT_BIAS

MAX_END_TOKENS = 64
"""Most end-of-sequence and stop tokens that min_tokens can hold back."""
BIAS_ENTRIES = MAX_LOGIT_BIAS + MAX_END_TOKENS

_HELD_BACK = -1e30


class BatchBuilder:
    """Owns the host's per-slot copies of page tables and sampling parameters."""

    def __init__(self, limits: Limits, end_tokens: tuple[int, ...]) -> None:
        N = limits.max_num_seqs
        self._limits = limits
        self._end_tokens = end_tokens
        self._layouts = {T: limits.layout(T) for T in limits.row_buckets}
        self._page_table = np.zeros((N, next(iter(self._layouts.values())).pages), np.int32)
        # The list object itself tells whether a slot's row is still that of its request: every
        # admission makes a new list, growth extends it in place.
        self._pages: list[list[int] | None] = [None] * N
        self._pages_known = np.zeros(N, np.int64)
        self._temperature = np.zeros(N, np.float32)
        self._top_k = np.zeros(N, np.int32)
        self._top_p = np.ones(N, np.float32)
        self._min_p = np.zeros(N, np.float32)
        self._seed = np.zeros((N, 2), np.uint32)

    def build(self, scheduled: list[ScheduledRows]) -> Batch:
        """Lay the scheduled rows out side by side, padded to the next bucket."""
        for granted in scheduled:
            self._refresh_slot(granted.request)
        slots = np.array([granted.request.slot for granted in scheduled], np.int64)
        counts = np.array([granted.count for granted in scheduled], np.int64)
        ends = np.array([granted.start + granted.count for granted in scheduled], np.int32)
        choosing = np.array([granted.samples for granted in scheduled], bool)
        layout = self._layouts[bucket_for(int(counts.sum()), self._limits.row_buckets)]
        packed = np.zeros(layout.size, np.int32)
        step = layout.split(packed)
        self._fill_tokens(step, scheduled)
        self._fill_rows(step.rows, slots, counts, ends)
        n = int(choosing.sum())
        step.sample_rows[:n] = (np.cumsum(counts) - 1)[choosing]
        step.sample_slots[:n] = slots[choosing]
        step.sample_slots[n:] = layout.slots
        return Batch(
            packed=packed,
            num_rows=layout.rows,
            num_samples=n,
            **self._sampling(
                [granted.request for granted in scheduled if granted.samples],
                slots[choosing],
                ends[choosing],
            ),
        )

    def _refresh_slot(self, request: Request) -> None:
        slot, pages, params = request.slot, request.pages, request.params
        if self._pages[slot] is not pages:
            self._pages[slot] = pages
            self._pages_known[slot] = 0
            self._temperature[slot] = params.temperature
            self._top_k[slot] = max(params.top_k, 0)
            self._top_p[slot] = params.top_p
            self._min_p[slot] = params.min_p
            self._seed[slot] = request.seed & 0xFFFFFFFF, request.seed >> 32 & 0xFFFFFFFF
        known = self._pages_known[slot]
        if known < len(pages):
            self._page_table[slot, known : len(pages)] = pages[known:]
            self._pages_known[slot] = len(pages)

    @staticmethod
    def _fill_tokens(step: StepRows, scheduled: list[ScheduledRows]) -> None:
        tokens: list[int] = []
        step.token_slot[:] = -1
        for granted in scheduled:
            request, end = granted.request, granted.start + granted.count
            tokens += request.tokens[granted.start : end]
            if end > len(request.tokens):  # the last row's token is known to the device alone
                step.token_slot[len(tokens)] = request.slot
                tokens.append(0)
        step.tokens[: len(tokens)] = tokens

    def _fill_rows(
        self, rows: Any, slots: np.ndarray, counts: np.ndarray, ends: np.ndarray
    ) -> None:
        n, total = len(slots), int(counts.sum())
        rows.query_start[n + 1 :] = total
        rows.query_start[1 : n + 1] = np.cumsum(counts)
        rows.request_of[total:] = -1
        rows.request_of[:total] = np.repeat(np.arange(n), counts)
        first = rows.query_start[1 : n + 1] - ends
        rows.positions[:total] = np.arange(total) - np.repeat(first, counts)
        rows.context_len[:n] = ends
        rows.page_table[:n] = self._page_table[slots]

    def _sampling(
        self, requests: list[Request], slots: np.ndarray, ends: np.ndarray
    ) -> dict[str, Any]:
        n, limits = len(requests), self._limits
        edits = any(request.params.edits_logits for request in requests)
        greedy = not edits and all(request.params.greedy for request in requests)
        logprobs = any(request.params.logprobs is not None for request in requests)
        fine = greedy and not logprobs
        S = bucket_for(n, limits.sample_buckets if fine else limits.coarse_sample_buckets)
        padded_slots, position = np.zeros(S, np.int64), np.zeros(S, np.int32)
        padded_slots[:n], position[:n] = slots, ends
        return {
            "sample_bucket": S,
            "sampling": None if greedy else self._sampling_rows(padded_slots, position, n),
            "edits": self._edits(requests, S) if edits else None,
            "pending_slot": _pending_slots(requests, S) if edits else None,
            "logprobs": logprobs,
        }

    def _sampling_rows(self, slots: np.ndarray, position: Any, n: int) -> SamplingRows:
        temperature = self._temperature[slots]
        temperature[n:] = 0.0
        top_p = self._top_p[slots]
        top_p[n:] = 1.0
        top_k = self._top_k[slots]
        top_k[n:] = 0
        return SamplingRows(
            temperature, top_k, top_p, self._min_p[slots], self._seed[slots], position
        )

    def _edits(self, requests: list[Request], S: int) -> LogitEdits:
        edits: Any = LogitEdits(
            history=_filled((S, self._limits.max_model_len), -1, np.int32),
            prompt_len=_filled((S,), 0, np.int32),
            repetition=_filled((S,), 1, np.float32),
            presence=_filled((S,), 0, np.float32),
            frequency=_filled((S,), 0, np.float32),
            bias_ids=_filled((S, BIAS_ENTRIES), -1, np.int32),
            bias=_filled((S, BIAS_ENTRIES), 0, np.float32),
        )
        for i, request in enumerate(requests):
            params = request.params
            edits.history[i, : len(request.tokens)] = request.tokens
            edits.prompt_len[i] = request.prompt_len
            edits.repetition[i] = params.repetition_penalty
            edits.presence[i] = params.presence_penalty
            edits.frequency[i] = params.frequency_penalty
            bias = dict(params.logit_bias)
            # unread counts the token that this step chooses, too
            if request.num_output + request.unread - 1 < params.min_tokens:
                held_back = (*self._end_tokens, *params.stop_token_ids)[:MAX_END_TOKENS]
                bias |= dict.fromkeys(held_back, _HELD_BACK)
            edits.bias_ids[i, : len(bias)] = list(bias.keys())
            edits.bias[i, : len(bias)] = list(bias.values())
        filled: LogitEdits = edits
        return filled


def _filled(shape: tuple[int, ...], value: int, dtype: Any) -> Any:
    return np.full(shape, value, dtype)


def _pending_slots(requests: list[Request], S: int) -> np.ndarray:
    """Slots of tokens chosen by the step before, which the host has not read yet."""
    pending = np.full(S, -1, np.int32)
    for i, request in enumerate(requests):
        if request.unread > 1:
            pending[i] = request.slot
    return pending
