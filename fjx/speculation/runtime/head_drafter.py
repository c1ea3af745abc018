"""A draft head at work: it reads the target's residual stream, and drafts from its last row."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from fjx.models.granules import Params
from fjx.pipeline.buckets import bucket_for
from fjx.pipeline.compiler import Compiler
from fjx.pipeline.draft_programs import DraftRows, HeadPrograms
from fjx.scheduling.microbatches import Microbatch
from fjx.scheduling.request import Request
from fjx.scheduling.scheduler import ScheduledRows
from fjx.speculation.policy.throttle import BASELINE_STEPS
from fjx.speculation.runtime.drafter import (
    NO_DRAFT,
    NO_DRAFT_TIMING,
    ContinueDrafting,
    Draft,
    DraftTiming,
)

_REMEMBERED = 4
"""Steps of a request whose estimates are kept: the last one may have begun behind a wrong token."""


_HOLE = BASELINE_STEPS
"""Missed tokens that are overlooked: what the pages hold there does little harm among many."""


class _RowEstimates(NamedTuple):
    """What the head made of a request's rows that chose a token, in one step."""

    values: Any
    """Those of all requests."""
    first: int
    """The request's first one among them."""
    positions: range
    """Of its rows."""


class _Fed(NamedTuple):
    """What the head has read of a request."""

    tokens: int
    """Where the rows end that it has read."""
    begin: int = 0
    """Where they begin without a gap, at the start of a page. To the head the text begins here."""
    estimates: tuple[_RowEstimates, ...] = ()
    """Of the last steps that had some, the latest one first."""

    def estimates_at(self, position: int) -> _RowEstimates | None:
        """The latest that have a row of this position."""
        return next((each for each in self.estimates if position in each.positions), None)


class HeadDrafter:
    """Drafts with a `DraftHead`, on one device of its own choosing.

    Its keys and values lie in pages of its own under the target's page ids, so that it needs no
    pool. Where it did not read many steps of a request, because none was drafted for then, it takes
    the text to begin with the next page.
    """

    name = "head"
    free = False

    def __init__(
        self,
        programs: HeadPrograms,
        params: tuple[Params, Params],
        embed: Params,
        compiler: Compiler,
        longest: int,
        stops: bool | None = None,
    ) -> None:
        """
        Args:
            programs: the head's.
            params: from `HeadPrograms.place`.
            embed: the target's embedding, on the same device.
            compiler: has the programs.
            longest: most tokens of a draft.
            stops: whether each round is read before the next one, which can then be left out; by
                default on a CPU, where reading takes no time.
        """
        self.longest = longest
        self.stops = programs.device.platform == "cpu" if stops is None else stops
        self.rounds = NO_DRAFT_TIMING
        self.programs = programs
        self._limits = programs.limits
        self._buckets = programs.request_buckets
        self._device = programs.device
        self._feed_params, self._logit_params = params
        self._embed = embed
        self._compiler = compiler
        self._token_ids = jax.device_put(programs.head.token_ids, self._device)
        self._kv_pages = programs.kv_pages()
        self._page_size = self._limits.page_size
        self.catching_up = self._page_size + 1
        self._was_read = np.zeros(self._limits.num_pages, bool)
        """Pages that were read as a whole, in a text from its beginning: good for other requests
        that find them in the prefix cache."""
        self._no_tokens = jax.device_put(
            np.zeros(self._limits.sample_buckets[-1], np.int32), self._device
        )
        self._fed: dict[Request, _Fed] = {}

    def held_bytes(self) -> tuple[int, int]:
        """See `Drafter`."""
        params = jax.tree.leaves((self._feed_params, self._logit_params))
        return sum(array.nbytes for array in params), self._kv_pages.nbytes

    def feed(self, microbatch: Microbatch) -> None:
        """Read a step of the target that was just sent."""
        output, batch = microbatch.output, microbatch.batch
        stream, tokens = output.stream, output.tokens
        if tokens is None:
            tokens = self._no_tokens
        following = np.zeros(batch.num_rows, np.int32)
        packed, followed = batch.packed, []
        row = chosen = 0
        for i, rows in enumerate(microbatch.scheduled):
            request, start, count, samples, *_ = rows
            known = count - samples
            following[row : row + known] = request.known_tokens(start + 1, start + known + 1)
            chosen += rows.scored
            following[row + known : row + count] = -1 - np.arange(chosen, chosen + samples)
            fed = self._follow(rows)
            followed.append(fed)
            if 0 < fed.begin <= start:
                packed = packed.copy() if packed is batch.packed else packed
                self._shift(packed, batch.num_rows, i, row, rows, fed.begin)
            row, chosen = row + count, chosen + samples
        run = self._get("feed", batch.num_rows)
        estimates, self._kv_pages = run(
            self._feed_params,
            self._embed,
            *jax.device_put((stream, tokens), self._device),
            following,
            packed,
            self._kv_pages,
        )
        chosen = 0
        for rows, fed in zip(microbatch.scheduled, followed, strict=True):
            end, chosen = rows.start + rows.count, chosen + rows.scored
            if rows.samples and rows.start >= fed.begin:
                new = _RowEstimates(estimates, chosen, range(end - rows.samples, end))
                fed = fed._replace(estimates=(new, *fed.estimates[: _REMEMBERED - 1]))
            self._fed[rows.request] = fed
            chosen += rows.samples

    def miss(self, microbatch: Microbatch) -> None:
        """See `Drafter`."""
        for request, start, count, *_ in microbatch.scheduled:
            pages = request.pages[start // self._page_size : -(-(start + count) // self._page_size)]
            self._was_read[pages] = False

    def _follow(self, rows: ScheduledRows) -> _Fed:
        """What it will have read of a request after these rows."""
        request, start, count, *_ = rows
        size, end = self._page_size, start + count
        before = self._fed.get(request)
        if before is None:
            unread = np.flatnonzero(~self._was_read[request.pages[: request.cached_tokens // size]])
            before = _Fed(request.cached_tokens, size * int(unread[-1] + 1) if len(unread) else 0)
        begin, estimates = before.begin, before.estimates
        if start == 0:
            begin = 0
        elif start > before.tokens + _HOLE:
            begin, estimates = -(-start // size) * size, ()
        if start < begin < end:
            begin += size
        pages = request.pages[-(-start // size) : -(-end // size)]
        self._was_read[pages] = begin == 0 and start <= before.tokens
        return _Fed(end, begin, estimates)

    def _shift(
        self, packed: np.ndarray, T: int, index: int, row: int, rows: ScheduledRows, begin: int
    ) -> None:
        """Let a request's text begin at this position, in the integers of a step."""
        step = self._limits.layout(T).split(packed).rows
        table = step.page_table[index]
        table[: len(table) - begin // self._page_size] = table[begin // self._page_size :].copy()
        step.context_len[index] -= begin
        step.positions[row : row + rows.count] -= begin

    def propose(
        self,
        requests: Sequence[Request],
        lengths: Sequence[int],
        continue_drafting: ContinueDrafting,
    ) -> list[Draft]:
        """See `Drafter`."""
        self.rounds = NO_DRAFT_TIMING
        drafts = [NO_DRAFT] * len(requests)
        together: dict[int, list[tuple[int, _RowEstimates]]] = {}
        for i, (request, length) in enumerate(zip(requests, lengths, strict=True)):
            # The row before the last token's is the one whose estimate foresees what follows.
            made = self._fed.get(request, _Fed(0)).estimates_at(request.num_tokens - 2)
            if length and made is not None:
                together.setdefault(id(made.values), []).append((i, made))
        for group in together.values():
            indices = [i for i, _ in group]

            def more(sure: Sequence[Sequence[float]], indices: Sequence[int] = indices) -> bool:
                so_far: list[Sequence[float]] = [each.confidences for each in drafts]
                for i, of_request in zip(indices, sure, strict=True):
                    so_far[i] = of_request[: lengths[i]]
                return continue_drafting(so_far)

            got = self._propose(
                [requests[i] for i in indices],
                [lengths[i] for i in indices],
                [made for _, made in group],
                more,
            )
            for i, draft in zip(indices, got, strict=True):
                drafts[i] = draft
        return drafts

    def forget(self, request: Request) -> None:
        """See `Drafter`."""
        self._fed.pop(request, None)

    def check_idle(self) -> None:
        """See `Drafter`."""
        assert not self._fed, "the draft head still knows a finished request"

    def _propose(
        self,
        requests: Sequence[Request],
        lengths: Sequence[int],
        made: Sequence[_RowEstimates],
        continue_drafting: ContinueDrafting,
    ) -> list[Draft]:
        """For requests whose last rows were in one step. Where it does not stop, all tokens are
        chosen before one is read."""
        begun = time.perf_counter()
        seconds: list[float] = []
        R, most = bucket_for(len(requests), self._buckets), max(lengths)
        index = np.zeros(R, np.int32)
        index[: len(made)] = [
            each.first + request.num_tokens - 2 - each.positions.start
            for each, request in zip(made, requests, strict=True)
        ]
        rows = self._rows(requests, R)
        h, tokens, sure = self._get("first", R)(
            self._logit_params, self._token_ids, made[0].values, index, rows
        )
        drafted, confidences = [tokens], [sure]
        step = self._step(requests, lengths, R) if most > 1 else None
        for number in range(1, most):
            if self.stops:
                confidences[-1] = np.asarray(confidences[-1])
                seconds.append(time.perf_counter() - begun - sum(seconds))
                if not continue_drafting(np.stack(confidences, axis=1)[: len(requests)].tolist()):
                    break
                begun = time.perf_counter() - sum(seconds)  # deciding takes no drafting
            h, tokens, sure, self._kv_pages = self._get("next", R)(
                self._feed_params,
                self._embed,
                self._logit_params,
                self._token_ids,
                h,
                tokens,
                step,
                np.int32(number),
                rows,
                self._kv_pages,
            )
            drafted.append(tokens)
            confidences.append(sure)
        table, sureness = np.stack(jax.device_get(drafted)), np.stack(jax.device_get(confidences))
        if len(seconds) < len(table):
            left = len(table) - len(seconds)
            seconds += [(time.perf_counter() - begun - sum(seconds)) / left] * left
        self.rounds = DraftTiming(len(requests), seconds)
        return [
            Draft(table[:length, i].tolist(), tuple(sureness[:length, i].tolist()))
            for i, length in enumerate(lengths)
        ]

    def _get(self, name: str, size: int) -> Any:
        return self._compiler.get(self.programs.key(name, size))

    def _rows(self, requests: Sequence[Request], R: int) -> DraftRows:
        rows = DraftRows(
            np.zeros(R, np.float32), np.zeros((R, 2), np.uint32), np.zeros(R, np.int32)
        )
        for i, request in enumerate(requests):
            rows.temperature[i] = request.params.temperature
            rows.seed[i] = request.seed_words
            rows.position[i] = request.num_tokens
        return rows

    def _step(self, requests: Sequence[Request], lengths: Sequence[int], R: int) -> np.ndarray:
        """The integers of the first step from the head's own estimates, one row a request; later
        ones lie so many positions further."""
        layout, size = self._limits.layout(R), self._limits.page_size
        packed = np.zeros(layout.size, np.int32)
        rows, n = layout.split(packed).rows, len(requests)
        rows.request_of[:n] = np.arange(n)
        rows.request_of[n:] = -1
        rows.query_start[1 : n + 1] = np.arange(1, n + 1)
        rows.query_start[n + 1 :] = n
        for i, request in enumerate(requests):
            begin = self._fed[request].begin
            pages = request.pages[begin // size :]
            # Number 1 writes into the slot behind the last row that was fed.
            rows.positions[i] = request.num_tokens - 2 - begin
            rows.context_len[i] = request.num_tokens - 1 - begin
            rows.page_table[i, : len(pages)] = pages
            assert request.num_tokens + lengths[i] - 2 < len(request.pages) * size
        return packed
