"""A draft head at work: it reads the target's residual stream, and drafts from its last row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from fjx.engine.drafter import NO_DRAFT, Draft
from fjx.engine.replica import Microbatch
from fjx.engine.request import Request
from fjx.models.granules import Params
from fjx.pipeline.buckets import bucket_for
from fjx.pipeline.compiler import Compiler
from fjx.pipeline.draft_programs import DraftRows, HeadPrograms

_REMEMBERED = 4
"""Steps of a request whose estimates are kept: the last one may have begun behind a wrong token."""


class _Estimates(NamedTuple):
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
    """Positions, from the first on, whose keys and values the head has."""
    estimates: tuple[_Estimates, ...] = ()
    """Of the last steps that had some, the latest one first."""

    def estimates_at(self, position: int) -> _Estimates | None:
        """The latest that have a row of this position."""
        return next((each for each in self.estimates if position in each.positions), None)


class HeadDrafter:
    """Drafts with a `DraftHead`, on one device of its own choosing.

    Its keys and values lie in pages of its own under the target's page ids, so that it needs no
    pool. A request of which it did not read a step, because none was drafted for then, gets no
    drafts from it any more.
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
    ) -> None:
        """
        Args:
            programs: the head's.
            params: from `HeadPrograms.place`.
            embed: the target's embedding, on the same device.
            compiler: has the programs.
            longest: most tokens of a draft.
        """
        self.longest = longest
        self._programs = programs
        self._limits = programs.limits
        self._buckets = programs.request_buckets
        self._device = programs.device
        self._feed_params, self._logit_params = params
        self._embed = embed
        self._compiler = compiler
        self._token_ids = jax.device_put(programs.head.token_ids, self._device)
        self._kv_pages = programs.kv_pages()
        self._no_tokens = jax.device_put(
            np.zeros(self._limits.sample_buckets[-1], np.int32), self._device
        )
        self._fed: dict[Request, _Fed] = {}

    def feed(self, microbatch: Microbatch) -> None:
        """Read a step of the target that was just sent."""
        output, batch = microbatch.output, microbatch.batch
        stream, tokens = output.stream, output.tokens
        if tokens is None:
            tokens = self._no_tokens
        following = np.zeros(batch.num_rows, np.int32)
        row = chosen = 0
        for request, start, count, samples, _ in microbatch.scheduled:
            known = count - samples
            following[row : row + known] = request.known_tokens(start + 1, start + known + 1)
            following[row + known : row + count] = -1 - np.arange(chosen, chosen + samples)
            row, chosen = row + count, chosen + samples
        run = self._get("feed", batch.num_rows)
        estimates, self._kv_pages = run(
            self._feed_params,
            self._embed,
            *jax.device_put((stream, tokens), self._device),
            following,
            batch.packed,
            self._kv_pages,
        )
        chosen = 0
        for request, start, count, samples, _ in microbatch.scheduled:
            # What the prefix cache had was read when it was computed.
            before = self._fed.get(request, _Fed(request.cached_tokens))
            if start <= before.tokens:
                made = before.estimates
                if samples:
                    new = _Estimates(
                        estimates, chosen, range(start + count - samples, start + count)
                    )
                    made = (new, *made[: _REMEMBERED - 1])
                self._fed[request] = _Fed(start + count, made)
            chosen += samples

    def propose(self, requests: Sequence[Request], lengths: Sequence[int]) -> list[Draft]:
        """See `Drafter`."""
        drafts = [NO_DRAFT] * len(requests)
        together: dict[int, list[tuple[int, _Estimates]]] = {}
        for i, (request, length) in enumerate(zip(requests, lengths, strict=True)):
            # The row before the last token's is the one whose estimate foresees what follows.
            made = self._fed.get(request, _Fed(0)).estimates_at(request.num_tokens - 2)
            if length and made is not None:
                together.setdefault(id(made.values), []).append((i, made))
        for group in together.values():
            got = self._propose(
                [requests[i] for i, _ in group],
                [lengths[i] for i, _ in group],
                [made for _, made in group],
            )
            for (i, _), draft in zip(group, got, strict=True):
                drafts[i] = draft
        return drafts

    def forget(self, request: Request) -> None:
        """See `Drafter`."""
        self._fed.pop(request, None)

    def check_idle(self) -> None:
        """See `Drafter`."""
        assert not self._fed, "the draft head still knows a finished request"

    def _propose(
        self, requests: Sequence[Request], lengths: Sequence[int], made: Sequence[_Estimates]
    ) -> list[Draft]:
        """For requests whose last rows were in one step. All tokens are chosen before one is
        read."""
        R = bucket_for(len(requests), self._buckets)
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
        step = self._step(requests, lengths, R) if max(lengths) > 1 else None
        for number in range(1, max(lengths)):
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
        return [
            Draft(table[:length, i].tolist(), tuple(sureness[:length, i].tolist()))
            for i, length in enumerate(lengths)
        ]

    def _get(self, name: str, size: int) -> Any:
        return self._compiler.get(self._programs.key(name, size))

    def _rows(self, requests: Sequence[Request], R: int) -> DraftRows:
        rows = DraftRows(
            np.zeros(R, np.float32), np.zeros((R, 2), np.uint32), np.zeros(R, np.int32)
        )
        for i, request in enumerate(requests):
            rows.temperature[i] = request.params.temperature
            rows.seed[i] = request.seed & 0xFFFFFFFF, request.seed >> 32 & 0xFFFFFFFF
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
            # Number 1 writes into the slot behind the last row that was fed.
            rows.positions[i] = request.num_tokens - 2
            rows.context_len[i] = request.num_tokens - 1
            rows.page_table[i, : len(request.pages)] = request.pages
            assert request.num_tokens + lengths[i] - 2 < len(request.pages) * size
        return packed
