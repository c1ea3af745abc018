"""Speculation without models: the engine's own `Speculator`, with a drafter that draws what is
right."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from fjx.pipeline.buckets import row_buckets
from fjx.scheduling.microbatches import Microbatch
from fjx.scheduling.request import Request
from fjx.sim.pipeline import Clock
from fjx.sim.steps import TOKEN
from fjx.speculation.policy.frontiers import FrontierDepth
from fjx.speculation.policy.lengths import LengthPolicy, MarginalGain
from fjx.speculation.runtime.drafter import (
    NO_DRAFT,
    NO_DRAFT_TIMING,
    ContinueDrafting,
    Draft,
    DraftTiming,
)
from fjx.speculation.runtime.speculator import Speculator

DEEPEST = 4
"""Most steps with drafts under way at once: the engine's default."""
_READ_SECONDS = 1e-4
"""Of the host, to read a step."""
_WRONG = 0
"""A drafted token that is not the target's own."""


class RecordedDraft(NamedTuple):
    """One draft."""

    confidences: tuple[float, ...]
    right: int
    """How many of its tokens, from the first on, were the target's own."""


@dataclass(frozen=True, kw_only=True)
class DrafterProfile:
    """What a drafter is like.

    The default rates are the greedy acceptance of Qwen2.5-Coder 0.5B for 1.5B with four drafted
    tokens on HumanEval, CNN/DailyMail, GSM8K and MT-bench.
    """

    rates: tuple[float, ...] = (0.96, 0.86, 0.78, 0.55)
    """Of which each request has one: the chance that a drafted token is right."""
    concentration: float = 4.0
    """Of the Beta distribution around the rate from which a token's chance is drawn. The drafter
    knows that chance: it is its confidence."""
    first_seconds: float = 2e-3
    """Of the first round of drafting."""
    round_seconds: float = 2e-3
    """Of each further one."""
    request_seconds: float = 1e-5
    """Of each request in a round, on top."""
    longest: int = 8
    """Tokens of a draft, at most."""
    stops: bool = False
    """Whether it asks after each round whether to go on, see `Drafter`."""
    recorded: tuple[tuple[RecordedDraft, ...], ...] = ()
    """Drafts of real requests, one of which each request goes through; by default chances are
    drawn."""


class SimDrafter:
    """See `fjx.speculation.runtime.drafter.Drafter`."""

    name = "simulated"
    free = False
    catching_up = 0

    def __init__(self, drafting: DrafterProfile, seed: int, clock: Clock) -> None:
        self.longest = drafting.longest
        self.stops = drafting.stops
        self.rounds = NO_DRAFT_TIMING
        self._drafting, self._clock = drafting, clock
        self._random = np.random.default_rng(seed)
        self._turn: Counter[Request] = Counter()

    def feed(self, microbatch: Microbatch) -> None:
        """It reads nothing."""

    def miss(self, microbatch: Microbatch) -> None:
        """It misses nothing."""

    def propose(
        self,
        requests: Sequence[Request],
        lengths: Sequence[int],
        continue_drafting: ContinueDrafting,
    ) -> list[Draft]:
        """Draw each token's chance, and whether it is right; it takes its time."""
        drafting, seconds = self._drafting, list[float]()
        drafts = [self._draft(*each) for each in zip(requests, lengths, strict=True)]
        for i in range(max((len(each.tokens) for each in drafts), default=0)):
            so_far = [each.confidences[:i] for each in drafts]
            if i and self.stops and not continue_drafting(so_far):
                drafts = [Draft(tokens[:i], sure[:i]) for tokens, sure in drafts]
                break
            taking_part = sum(len(each.tokens) > i for each in drafts)
            round_seconds = drafting.round_seconds if i else drafting.first_seconds
            seconds.append(round_seconds + drafting.request_seconds * taking_part)
        self.rounds = DraftTiming(sum(bool(each.tokens) for each in drafts), seconds)
        self._clock.wait(sum(seconds))
        return drafts

    def _draft(self, request: Request, length: int) -> Draft:
        if not length:
            return NO_DRAFT
        if self._drafting.recorded:
            return self._replayed(request, length)
        rates, width = self._drafting.rates, self._drafting.concentration
        rate = rates[int(request.id) % len(rates)]
        chances = self._random.beta(width * rate, width * (1 - rate), length)
        right = self._random.random(length) < chances
        return Draft(np.where(right, TOKEN, _WRONG).tolist(), tuple(chances.tolist()))

    def _replayed(self, request: Request, length: int) -> Draft:
        drafts = self._drafting.recorded[int(request.id) % len(self._drafting.recorded)]
        confidences, right = drafts[self._turn[request] % len(drafts)]
        self._turn[request] += 1
        tokens = [TOKEN] * right + [_WRONG] * (len(confidences) - right)
        return Draft(tokens[:length], confidences[:length])

    def forget(self, request: Request) -> None:
        """The request has ended."""
        self._turn.pop(request, None)

    def check_idle(self) -> None:
        """It holds nothing."""

    def held_bytes(self) -> tuple[int, int]:
        """It has no arrays."""
        return 0, 0


@dataclass(frozen=True)
class SimSpeculation:
    """How a replica speculates."""

    drafting: DrafterProfile
    seed: int
    policy: LengthPolicy | None = None
    """By default the engine's own."""

    def speculator(self, clock: Clock, max_num_batched_tokens: int) -> Speculator:
        """The engine's speculator, with a drafter that draws what is right."""
        return _Speculator(
            SimDrafter(self.drafting, self.seed, clock),
            self.policy or MarginalGain(),
            row_buckets(max_num_batched_tokens),
            FrontierDepth(DEEPEST),
            clock=clock.now,
        )


class _Speculator(Speculator):
    """Where several steps have ended before the host looks, it still reads one at a time."""

    _last_read = -_READ_SECONDS

    def observe_step(self, step: Sequence[Microbatch], now: float, tokens: Sequence[int]) -> None:
        """See `Speculator.observe_step`."""
        self._last_read = max(now, self._last_read + _READ_SECONDS)
        super().observe_step(step, self._last_read, tokens)
