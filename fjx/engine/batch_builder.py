"""Scheduled rows become a step's arrays."""

from __future__ import annotations

import numpy as np

from fjx.engine.request import Request
from fjx.engine.scheduler import ScheduledRows
from fjx.kernels.ragged import RaggedRows
from fjx.kernels.token_rule import LogitEdits, SamplingRows
from fjx.pipeline.batch import Batch
from fjx.pipeline.buckets import bucket_for
from fjx.sampling_params import MAX_LOGIT_BIAS

MAX_END_TOKENS = 64
"""Most end-of-sequence and stop tokens that min_tokens can hold back."""
BIAS_ENTRIES = MAX_LOGIT_BIAS + MAX_END_TOKENS

_HELD_BACK = -1e30


class BatchBuilder:
    """Owns the host's per-slot copies of page tables and sampling parameters."""

    def __init__(
        self,
        row_buckets: tuple[int, ...],
        sample_buckets: tuple[int, ...],
        coarse_sample_buckets: tuple[int, ...],
        max_num_seqs: int,
        max_model_len: int,
        page_size: int,
        end_tokens: tuple[int, ...],
    ) -> None:
        self._row_buckets = row_buckets
        self._sample_buckets = sample_buckets
        self._coarse_sample_buckets = coarse_sample_buckets
        self._max_num_seqs = max_num_seqs
        self._max_model_len = max_model_len
        self._end_tokens = end_tokens
        self._page_table = np.zeros((max_num_seqs, -(-max_model_len // page_size)), np.int32)
        # The list object itself tells whether a slot's row is still that of its request: every admission
        # makes a new list, growth extends it in place.
        self._pages: list[list[int] | None] = [None] * max_num_seqs
        self._pages_known = np.zeros(max_num_seqs, np.int64)
        self._temperature = np.zeros(max_num_seqs, np.float32)
        self._top_k = np.zeros(max_num_seqs, np.int32)
        self._top_p = np.ones(max_num_seqs, np.float32)
        self._min_p = np.zeros(max_num_seqs, np.float32)
        self._seed = np.zeros((max_num_seqs, 2), np.uint32)

    def build(self, scheduled: list[ScheduledRows]) -> Batch:
        """Lay the scheduled rows out side by side, padded to the next bucket."""
        for granted in scheduled:
            self._refresh_slot(granted.request)
        slots = np.array([granted.request.slot for granted in scheduled], np.int64)
        counts = np.array([granted.count for granted in scheduled], np.int64)
        ends = np.array([granted.start + granted.count for granted in scheduled], np.int32)
        total = int(counts.sum())
        T = bucket_for(total, self._row_buckets)
        R = min(T, self._max_num_seqs)
        tokens, token_slot = self._tokens(scheduled, T)
        return Batch(
            tokens=tokens,
            token_slot=token_slot,
            rows=self._rows(slots, counts, ends, T, R, total),
            **self._sampling(scheduled, np.cumsum(counts) - 1, slots, ends),
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
    def _tokens(scheduled: list[ScheduledRows], T: int) -> tuple[np.ndarray, np.ndarray]:
        tokens: list[int] = []
        token_slot = np.full(T, -1, np.int32)
        for granted in scheduled:
            request, end = granted.request, granted.start + granted.count
            tokens += request.tokens[granted.start : end]
            if end > len(request.tokens):  # the last row's token is known to the device alone
                token_slot[len(tokens)] = request.slot
                tokens.append(0)
        padded = np.zeros(T, np.int32)
        padded[: len(tokens)] = tokens
        return padded, token_slot

    def _rows(
        self, slots: np.ndarray, counts: np.ndarray, ends: np.ndarray, T: int, R: int, total: int
    ) -> RaggedRows:
        n = len(slots)
        query_start = np.full(R + 1, total, np.int32)
        query_start[0] = 0
        query_start[1 : n + 1] = np.cumsum(counts)
        request_of = np.full(T, -1, np.int32)
        request_of[:total] = np.repeat(np.arange(n), counts)
        positions = np.zeros(T, np.int32)
        positions[:total] = np.arange(total) - np.repeat(query_start[1 : n + 1] - ends, counts)
        context_len = np.zeros(R, np.int32)
        context_len[:n] = ends
        page_table = np.zeros((R, self._page_table.shape[1]), np.int32)
        page_table[:n] = self._page_table[slots]
        return RaggedRows(positions, request_of, query_start, context_len, page_table)

    def _sampling(
        self,
        scheduled: list[ScheduledRows],
        last_rows: np.ndarray,
        slots: np.ndarray,
        ends: np.ndarray,
    ) -> dict[str, object]:
        choosing = np.array([granted.samples for granted in scheduled], bool)
        requests = [granted.request for granted in scheduled if granted.samples]
        n = len(requests)
        edits = any(request.params.edits_logits for request in requests)
        greedy = not edits and all(request.params.greedy for request in requests)
        logprobs = any(request.params.logprobs is not None for request in requests)
        plain = greedy and not logprobs
        S = bucket_for(n, self._sample_buckets if plain else self._coarse_sample_buckets)
        sample_rows = np.zeros(self._max_num_seqs, np.int32)
        sample_rows[:n] = last_rows[choosing]
        sample_slots = np.full(S, self._max_num_seqs, np.int32)
        sample_slots[:n] = slots[choosing]
        padded = np.zeros(S, np.int64)
        padded[:n] = slots[choosing]
        position = np.zeros(S, np.int32)
        position[:n] = ends[choosing]
        return {
            "sample_rows": sample_rows,
            "sample_slots": sample_slots,
            "sampling": None if greedy else self._sampling_rows(padded, position, n),
            "edits": self._edits(requests, S) if edits else None,
            "pending_slot": _pending_slots(requests, S) if edits else None,
            "num_samples": n,
            "logprobs": logprobs,
        }

    def _sampling_rows(self, slots: np.ndarray, position: np.ndarray, n: int) -> SamplingRows:
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
        edits = LogitEdits(
            history=np.full((S, self._max_model_len), -1, np.int32),
            prompt_len=np.zeros(S, np.int32),
            repetition=np.ones(S, np.float32),
            presence=np.zeros(S, np.float32),
            frequency=np.zeros(S, np.float32),
            bias_ids=np.full((S, BIAS_ENTRIES), -1, np.int32),
            bias=np.zeros((S, BIAS_ENTRIES), np.float32),
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
        return edits


def _pending_slots(requests: list[Request], S: int) -> np.ndarray:
    """Slots of tokens chosen by the step before, which the host has not read yet."""
    pending = np.full(S, -1, np.int32)
    for i, request in enumerate(requests):
        if request.unread > 1:
            pending[i] = request.slot
    return pending
