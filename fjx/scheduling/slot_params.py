"""How the rows of a step choose their tokens: each slot's sampling parameters, and what a step's
programs take of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int32, UInt32

from fjx.kernels.token_rule import LogitEdits, SamplingRows
from fjx.pipeline.buckets import bucket_for
from fjx.pipeline.limits import Limits
from fjx.scheduling.bad_words import banned_tokens
from fjx.scheduling.request import Request

_LARGEST_INT = 2**31 - 1


class SlotParams:
    """The host's per-slot copies of sampling parameters."""

    def __init__(self, limits: Limits, end_tokens: tuple[int, ...], vocabulary: int) -> None:
        """``vocabulary``: number of token ids."""
        self._limits = limits
        self._end_tokens = end_tokens
        self._vocabulary = vocabulary
        self._sample_buckets = limits.sample_buckets
        self._coarse_sample_buckets = limits.coarse_sample_buckets
        N = limits.max_num_seqs
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

    def set(self, request: Request) -> None:
        """The request has its slot from now on."""
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

    def of_rows(
        self,
        requests: Sequence[Request],
        choosing: Int32[np.ndarray, " C"],
        slots: Int32[np.ndarray, " C"],
        scored: Sequence[int],
        position: Int32[np.ndarray, " C"],
    ) -> dict[str, Any]:
        """How the rows that choose a token do it.

        Args:
            requests: of the step.
            choosing: for each row that chooses a token or is scored, its request.
            slots: of these requests.
            scored: which of them are scored.
            position: at which each one's token stands.

        Returns:
            Fields of a `Batch`, by name.
        """
        n = len(choosing)
        edits = bool(self._edits_logits[slots].any())
        greedy = not edits and not self._temperature[slots].any()
        logprobs = bool(scored or self._wants_logprobs[slots].any())
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
        tokens = None
        if logprobs:
            # The token whose log-probability a row tells where that is not the one that it chooses.
            tokens = np.full(self._sample_buckets[-1], -1, np.int32)
            for row in scored:
                tokens[row] = requests[choosing[row]].tokens[position[row]]
        return {
            "sample_bucket": S,
            "sampling": sampling,
            "edits": self._edits(edited, S) if edits else None,
            "pending_slot": _pending_slots(edited, S) if edits else None,
            "logprobs": logprobs,
            "scored": tokens,
        }

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
