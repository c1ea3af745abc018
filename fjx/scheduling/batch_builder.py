"""Scheduled rows become a step's arrays."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import UInt32

from fjx.kernels.token_rule import LogitEdits, SamplingRows
from fjx.pipeline.batch import Batch, StepLayout
from fjx.pipeline.buckets import bucket_for
from fjx.pipeline.limits import Limits
from fjx.scheduling.bad_words import banned_tokens
from fjx.scheduling.request import Request
from fjx.scheduling.scheduler import ScheduledRows

_LARGEST_INT = 2**31 - 1


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
    """Owns the host's per-slot copies of page tables and sampling parameters."""

    def __init__(self, limits: Limits, end_tokens: tuple[int, ...], vocabulary: int) -> None:
        """``vocabulary``: number of token ids."""
        self._limits = limits
        self._end_tokens = end_tokens
        self._vocabulary = vocabulary
        self._row_buckets = limits.row_buckets
        self._sample_buckets = limits.sample_buckets
        self._coarse_sample_buckets = limits.coarse_sample_buckets
        self._layouts = {T: limits.layout(T) for T in self._row_buckets}
        layout = self._layouts[self._row_buckets[-1]]
        N = layout.slots
        self._arrangements: dict[int, _Arrangement] = {}
        self._page_table = np.zeros((N, layout.pages), np.int32)
        # The list object itself tells whether a slot's row is still that of its request: every
        # admission makes a new list, growth extends it in place.
        self._pages: list[list[int]] = [[]] * N
        self._pages_known = [0] * N
        # The entry after the last slot belongs to padding: greedy, nothing asked.
        self._temperature = np.zeros(N + 1, np.float32)
        self._top_k = np.zeros(N + 1, np.int32)
        self._top_p = np.ones(N + 1, np.float32)
        self._min_p = np.zeros(N + 1, np.float32)
        self._seed = np.zeros((N + 1, 2), np.uint32)
        self._edits_logits = np.zeros(N + 1, bool)
        self._wants_logprobs = np.zeros(N + 1, bool)
        self._allowed: dict[int, np.ndarray] = {}
        """Of slots whose requests may choose some tokens only: see `LogitEdits.allowed`."""

    def build(self, scheduled: list[ScheduledRows], part: int = 0) -> Batch:
        """Lay the scheduled rows out side by side, padded to the next bucket.

        ``part``: which of the plan's microbatches they are.
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
        known = self._arrangements.get(part)
        each = known if known is not None and known.key == key else self._arrange(*key)
        self._arrangements[part] = each
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
            **self._sampling(requests, each, context_len[each.choosing] - each.choosing_behind),
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
                self._set_params(request)
                self._pages[slot], self._pages_known[slot] = pages, 0
            known = self._pages_known[slot]
            if known < len(pages):
                self._page_table[slot, known : len(pages)] = pages[known:]
                self._pages_known[slot] = len(pages)

    def _set_params(self, request: Request) -> None:
        slot, params = request.slot, request.params
        self._temperature[slot] = params.temperature
        self._top_k[slot] = min(max(params.top_k, 0), _LARGEST_INT)
        self._top_p[slot] = params.top_p
        self._min_p[slot] = params.min_p
        self._seed[slot] = request.seed_words
        self._edits_logits[slot] = params.edits_logits
        self._wants_logprobs[slot] = params.logprobs is not None
        self._allowed.pop(slot, None)
        if params.allowed_token_ids is not None:
            self._allowed[slot] = token_bits(params.allowed_token_ids, self._vocabulary)

    def _sampling(
        self, requests: tuple[Request, ...], each: _Arrangement, position: np.ndarray
    ) -> dict[str, Any]:
        """How the rows that choose a token do it, and at which ``position`` the token stands."""
        choosing, slots = each.choosing, each.slots[each.choosing]
        n = len(choosing)
        edits = bool(self._edits_logits[slots].any())
        greedy = not edits and not self._temperature[slots].any()
        logprobs = bool(each.scored or self._wants_logprobs[slots].any())
        fine = greedy and not logprobs
        S = bucket_for(n, self._sample_buckets if fine else self._coarse_sample_buckets)
        sampling = None
        if not greedy:
            padded = np.zeros(S, np.int32)
            padded[:n] = position
            of_padding = np.full(S - n, self._limits.max_num_seqs, slots.dtype)
            sampling = self._sampling_rows(np.concatenate([slots, of_padding]), padded)
        edited = []
        if edits:
            edited = [(requests[i], p) for i, p in zip(choosing, position.tolist(), strict=True)]
        return {
            "sample_bucket": S,
            "sampling": sampling,
            "edits": self._edits(edited, S) if edits else None,
            "pending_slot": _pending_slots(edited, S) if edits else None,
            "logprobs": logprobs,
            "scored": self._scored(requests, each, position) if logprobs else None,
        }

    def _scored(
        self, requests: tuple[Request, ...], each: _Arrangement, position: np.ndarray
    ) -> np.ndarray:
        """The token whose log-probability a row tells where that is not the one that it chooses."""
        tokens = np.full(self._sample_buckets[-1], -1, np.int32)
        for row in each.scored:
            tokens[row] = requests[each.choosing[row]].tokens[position[row]]
        return tokens

    def _sampling_rows(self, slots: np.ndarray, position: Any) -> SamplingRows:
        state = self._temperature, self._top_k, self._top_p, self._min_p, self._seed
        temperature, top_k, top_p, min_p, seed = (values[slots] for values in state)
        return SamplingRows(temperature, top_k, top_p, min_p, seed, position)

    def _edits(self, rows: list[tuple[Request, int]], S: int) -> LogitEdits:
        """Of each row: its request, and the position of the token to be chosen."""
        edits: Any = LogitEdits(
            history=_filled((S, self._limits.max_model_len), -1, np.int32),
            prompt_len=_filled((S,), 0, np.int32),
            repetition=_filled((S,), 1, np.float32),
            presence=_filled((S,), 0, np.float32),
            frequency=_filled((S,), 0, np.float32),
            bias_ids=_filled((S, self._limits.bias_entries), -1, np.int32),
            bias=_filled((S, self._limits.bias_entries), 0, np.float32),
            allowed=_filled((S, -(-self._vocabulary // 32)), 0xFFFFFFFF, np.uint32),
        )
        for i, (request, position) in enumerate(rows):
            params = request.params
            history = request.known_tokens(0, position)
            edits.history[i, : len(history)] = history
            edits.prompt_len[i] = request.prompt_len
            edits.repetition[i] = params.repetition_penalty
            edits.presence[i] = params.presence_penalty
            edits.frequency[i] = params.frequency_penalty
            bias = params.logit_bias
            edits.bias_ids[i, : len(bias)] = list(bias.keys())
            edits.bias[i, : len(bias)] = list(bias.values())
            if params.masks:
                self._mask(edits.allowed[i], request, position)
        filled: LogitEdits = edits
        return filled

    def _mask(self, allowed: np.ndarray, request: Request, position: int) -> None:
        """Clear the bits of what may not be the token at this position."""
        if request.slot in self._allowed:
            allowed[:] = self._allowed[request.slot]
        may_be = allowed.copy()
        output = request.known_tokens(request.prompt_len, position) if request.bad_words else []
        dropped = banned_tokens(request.bad_words, output)
        if position - request.prompt_len < request.params.min_tokens:
            dropped += (*self._end_tokens, *request.params.stop_token_ids)
        allowed &= ~token_bits(dropped, self._vocabulary)
        if not _any_token(allowed, self._vocabulary):
            allowed[:] = may_be  # something must be chosen: what is allowed goes before


def token_bits(tokens: Iterable[int], vocabulary: int) -> UInt32[np.ndarray, " W"]:
    """A set of tokens: bit t % 32 of word t // 32."""
    bits = np.zeros(-(-vocabulary // 32), np.uint32)
    ids = np.fromiter(tokens, np.int64)
    np.bitwise_or.at(bits, ids >> 5, np.uint32(1) << (ids & 31).astype(np.uint32))
    return bits


def _any_token(bits: np.ndarray, vocabulary: int) -> bool:
    last = np.uint32(2 ** (vocabulary % 32 or 32) - 1)  # bits beyond the vocabulary are no tokens
    return bool(bits[:-1].any() or bits[-1] & last)


def _filled(shape: tuple[int, ...], value: int, dtype: Any) -> Any:
    return np.full(shape, value, dtype)


def _pending_slots(rows: list[tuple[Request, int]], S: int) -> np.ndarray:
    """Slots of tokens chosen by the step before, which the host has not read yet."""
    pending = np.full(S, -1, np.int32)
    for i, (request, position) in enumerate(rows):
        if position > len(request.tokens) + len(request.draft):
            pending[i] = request.slot
    return pending
