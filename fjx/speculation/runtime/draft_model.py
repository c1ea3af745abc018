"""A model of its own that drafts for the target: its own pages, its own plan."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from fjx.pipeline.bound_mesh import BoundMesh
from fjx.pipeline.chain import Chain
from fjx.pipeline.compiler import Compiler
from fjx.pipeline.held_bytes import kv_bytes, parameter_bytes
from fjx.pipeline.step_output import StepOutput
from fjx.scheduling.microbatches import Microbatch
from fjx.scheduling.replica import BuiltMicrobatch, Replica
from fjx.scheduling.request import Request
from fjx.speculation.policy.agreement import agreeing
from fjx.speculation.runtime.drafter import (
    NO_DRAFT,
    NO_DRAFT_TIMING,
    ContinueDrafting,
    Draft,
    DraftTiming,
)


class DraftModel:
    """Runs a smaller model on copies of the target's requests.

    A copy has the request's sampling parameters and seed, so that the drafter chooses by the same
    noise: where the two models' distributions agree, so do their tokens. It also has what was
    drafted to follow the request's tokens; as much of that as turns out right need not be drafted
    again, and what is behind it is a draft at once.
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
        self._under_way: list[tuple[BuiltMicrobatch, StepOutput]] = []
        self._ahead: tuple[list[BuiltMicrobatch], Chain]
        self.rounds = NO_DRAFT_TIMING

    @property
    def compiler(self) -> Compiler:
        """Of its programs."""
        return self._replica.executor.compiler

    def propose(
        self,
        requests: Sequence[Request],
        lengths: Sequence[int],
        continue_drafting: ContinueDrafting,
    ) -> list[Draft]:
        """See `Drafter`. The tokens of one round stay on the device until its last step."""
        begun = time.perf_counter()
        rounds, count = self._want(requests, lengths)
        steps = self._build()
        outputs = self._replica.local.dispatch_all(
            [(each.batch, each.group.group_id) for each in steps]
        )
        self._under_way = list(zip(steps, outputs, strict=True))
        self._read()
        seconds = (time.perf_counter() - begun) / max(rounds, 1)
        self.rounds = DraftTiming(count, [seconds] * rounds)
        return [
            self._draft_of(request, length)
            for request, length in zip(requests, lengths, strict=True)
        ]

    def held_bytes(self) -> tuple[int, int]:
        """See `Drafter`."""
        executor = self._replica.local
        programs = executor.programs
        return parameter_bytes(programs, executor.plan), kv_bytes(programs)

    def runs_on(self, placement: BoundMesh) -> bool:
        """See `DraftsAhead`."""
        return all(shape.placement == placement for shape in self._replica.local.pieces.shapes)

    def begin_ahead(self, requests: Sequence[Request], lengths: Sequence[int]) -> Chain | None:
        """See `DraftsAhead`."""
        self._want(requests, lengths)
        steps = self._build()
        batches = [each.batch for each in steps]
        executor = self._replica.local
        self._ahead = steps, Chain(executor, batches)
        if not steps or not Chain.can_hold(executor, batches):
            self.give_up_ahead()
            return None
        return self._ahead[1]

    def sent_ahead(self) -> None:
        """See `DraftsAhead`."""
        steps, chain = self._ahead
        self._under_way = list(zip(steps, chain.outputs, strict=True))

    def give_up_ahead(self) -> None:
        """See `DraftsAhead`."""
        for built in reversed(self._ahead[0]):
            for rows in built.scheduled:
                rows.request.computed, rows.request.unread = rows.start, 0

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
        self._read()
        self._replica.scheduler.check()
        assert not self._copies, "a finished request still has a copy"

    def _want(self, requests: Sequence[Request], lengths: Sequence[int]) -> tuple[int, int]:
        """Let the copies want what lacks of drafts of these lengths: the rounds that it takes, and
        how many copies take part."""
        self._read()
        for request, copy in list(self._copies.items()):
            copy.max_len = 0  # wants no rows
            if copy.slot < 0:  # it has lost its pages
                self.forget(request)
        lacking = [
            self._begin(request, length) if length else 0
            for request, length in zip(requests, lengths, strict=True)
        ]
        return max(lacking, default=0), sum(lack > 0 for lack in lacking)

    def _begin(self, request: Request, length: int) -> int:
        """Let a request's copy want its next tokens: how many it lacks."""
        copy = self._copies.get(request)
        if copy is None:
            copy = self._copies[request] = replace(
                request, tokens=[], computed=0, pages=[], digests=[], shared_pages=0, slot=-1,
                order=-1, scheduled=None, draft=[], confidences=[], unread=0,
                params=replace(request.params, logprobs=None), prompt_logprobs=None,
                bad_words=(),  # or no second token could be chosen before the host has the first
            )  # fmt: skip
            self._replica.scheduler.add(copy)
        tokens = request.tokens + request.draft
        right = agreeing(copy.tokens, tokens)
        if right < len(tokens):
            copy.tokens, copy.confidences = tokens, []
        copy.computed = min(copy.computed, right, len(copy.tokens) - 1)
        copy.max_len = min(len(tokens) + length, self._max_len)
        return max(copy.max_len - len(copy.tokens), 0)

    def _build(self) -> list[BuiltMicrobatch]:
        """The steps until no copy wants a row."""
        steps: list[BuiltMicrobatch] = []
        while built := self._replica.build():
            steps.append(built)
        return steps

    def _read(self) -> None:
        """Give the copies what was chosen for them."""
        for built, output in self._under_way:
            tokens = output.read_tokens()
            sure = np.clip(output.read_confidences(), 0.0, 1.0).tolist()
            chosen = (rows.request for rows in built.scheduled if rows.samples)
            for copy, token, confidence in zip(chosen, tokens, sure, strict=True):
                copy.commit(token)
                copy.confidences.append(confidence)
        self._under_way = []

    def _draft_of(self, request: Request, length: int) -> Draft:
        """What a request's copy has behind the request's tokens."""
        copy, known = self._copies.get(request), request.num_tokens
        drafted = [] if copy is None or not length else copy.tokens[known:]
        if copy is None or not drafted:
            return NO_DRAFT
        confidences = copy.confidences[-len(drafted) :]
        return Draft(drafted[:length], tuple(confidences[:length]))
