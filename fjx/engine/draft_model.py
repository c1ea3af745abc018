"""A model of its own that drafts for the target: its own pages, its own plan."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from fjx.engine.drafter import NO_DRAFT, NO_ROUNDS, Draft, GoesOn, Rounds
from fjx.engine.replica import Microbatch, Replica
from fjx.engine.request import Request
from fjx.speculation.agreement import agreeing


class DraftModel:
    """Runs a smaller model on copies of the target's requests.

    A copy has the request's sampling parameters and seed, so that the drafter chooses by the same
    noise: where the two models' distributions agree, so do their tokens.
    """

    free = False
    stops = False
    catching_up = 0

    def __init__(self, name: str, replica: Replica, longest: int) -> None:
        self.name = name
        self.longest = longest
        self._replica = replica
        self._max_len = replica.executor.limits.max_model_len
        self._copies: dict[Request, Request] = {}
        self.rounds = NO_ROUNDS

    def propose(
        self, requests: Sequence[Request], lengths: Sequence[int], goes_on: GoesOn
    ) -> list[Draft]:
        """See `Drafter`. The tokens of one round stay on the device until its last step."""
        for request, copy in list(self._copies.items()):
            copy.max_len = 0  # wants no rows
            if copy.slot < 0:  # it has lost its pages
                self.forget(request)
        known: list[int] = []
        for request, length in zip(requests, lengths, strict=True):
            known.append(request.num_tokens)
            if length:
                self._begin(request, length)
        begun = time.perf_counter()
        confidences = self._run()
        rounds = max(lengths, default=0)
        seconds = (time.perf_counter() - begun) / max(rounds, 1)
        self.rounds = Rounds(sum(map(bool, lengths)), [seconds] * rounds)
        return [
            self._draft_of(self._copies.get(request), begin if length else None, confidences)
            for request, begin, length in zip(requests, known, lengths, strict=True)
        ]

    def feed(self, microbatch: Microbatch) -> None:
        """See `Drafter`."""

    def miss(self, microbatch: Microbatch) -> None:
        """See `Drafter`."""

    def forget(self, request: Request) -> None:
        """See `Drafter`."""
        copy = self._copies.pop(request, None)
        if copy is not None:
            self._replica.scheduler.finish(copy)

    def check_idle(self) -> None:
        """See `Drafter`."""
        self._replica.scheduler.check()
        assert not self._copies, "a finished request still has a copy"

    def _begin(self, request: Request, length: int) -> None:
        """Let a request's copy want its next tokens."""
        copy = self._copies.get(request)
        if copy is None:
            copy = self._copies[request] = replace(
                request, tokens=[], computed=0, pages=[], digests=[], shared_pages=0, slot=-1,
                order=-1, scheduled=None, draft=[], confidences=[], unread=0,
                params=replace(request.params, logprobs=None),
            )  # fmt: skip
            self._replica.scheduler.add(copy)
        # What was drafted and turned out right need not be computed again.
        tokens = request.tokens + request.draft
        right = agreeing(copy.tokens, tokens)
        copy.tokens = tokens
        copy.computed = min(copy.computed, right, len(copy.tokens) - 1)
        copy.max_len = min(len(copy.tokens) + length, self._max_len)

    def _run(self) -> dict[Request, list[float]]:
        """Step until no copy wants a row, then read what was chosen: confidences by copy."""
        sent = []
        while self._replica.dispatch():
            sent += self._replica.take_in_flight()
        confidences: dict[Request, list[float]] = {}
        for microbatch in sent:
            tokens = microbatch.output.read_tokens()
            sure = microbatch.output.read_confidences()
            chosen = (rows.request for rows in microbatch.scheduled if rows.samples)
            for copy, token, confidence in zip(chosen, tokens, sure, strict=True):
                copy.commit(token)
                confidences.setdefault(copy, []).append(confidence)
        return confidences

    def _draft_of(
        self, copy: Request | None, begin: int | None, confidences: dict[Request, list[float]]
    ) -> Draft:
        if copy is None or begin is None or copy not in confidences:
            return NO_DRAFT
        return Draft(copy.tokens[begin:], tuple(np.clip(confidences[copy], 0.0, 1.0).tolist()))
