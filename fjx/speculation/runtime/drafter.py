"""Who proposes tokens: one protocol for all drafters, and prompt lookup."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from fjx.scheduling.microbatches import Microbatch
from fjx.scheduling.request import Request
from fjx.speculation.policy.ngram import SuffixIndex


class Draft(NamedTuple):
    """What a drafter proposes to follow a request's tokens."""

    tokens: list[int]
    confidences: tuple[float, ...]
    """How sure it is of each of them, given that those before are right; 0 to 1."""


NO_DRAFT = Draft([], ())
_REPEATS = 0.6
"""Confidence from which prompt lookup is taken before a head's draft."""


ContinueDrafting = Callable[[Sequence[Sequence[float]]], bool]
"""Asked with the confidences so far, of each request: whether to draft another round."""


class DraftTiming(NamedTuple):
    """What drafting took: a round gives each request that takes part a token."""

    requests: int
    seconds: list[float]
    """Of each round."""


NO_DRAFT_TIMING = DraftTiming(0, [])


class Drafter(Protocol):
    """Proposes tokens. It can change how fast a request is, never which tokens it gets."""

    name: str
    free: bool
    """Whether drafting takes no time to speak of, so that it needs no decision of its own."""
    stops: bool
    """Whether it can stop after any round."""
    catching_up: int
    """Steps that it must read, after it has missed some, before it drafts again."""
    longest: int
    """Most tokens of a draft."""
    rounds: DraftTiming
    """Of the last proposal."""

    def feed(self, microbatch: Microbatch) -> None:
        """The target was just sent these rows."""

    def miss(self, microbatch: Microbatch) -> None:
        """The same, but nobody drafts now: to be done without using a device."""

    def propose(
        self,
        requests: Sequence[Request],
        lengths: Sequence[int],
        continue_drafting: ContinueDrafting,
    ) -> list[Draft]:
        """Propose up to so many tokens to follow each request's committed and drafted ones."""

    def forget(self, request: Request) -> None:
        """The request has ended."""

    def check_idle(self) -> None:
        """Audit what is held while no request runs."""

    def held_bytes(self) -> tuple[int, int]:
        """Bytes of its parameters and of its KV memory, beside the target's."""


class PromptLookup:
    """Proposes what followed when the request's last tokens stood in its text before (Saxena 2023,
    "Prompt lookup decoding"). No model, and nothing to load."""

    name = "ngram"
    free = True
    stops = False
    catching_up = 0
    rounds = NO_DRAFT_TIMING

    def __init__(self, longest: int) -> None:
        self.longest = longest
        self._indexes: dict[Request, SuffixIndex] = {}

    def propose(
        self,
        requests: Sequence[Request],
        lengths: Sequence[int],
        continue_drafting: ContinueDrafting,
    ) -> list[Draft]:
        """See `Drafter`."""
        return [self._propose(*each) for each in zip(requests, lengths, strict=True)]

    def feed(self, microbatch: Microbatch) -> None:
        """See `Drafter`."""

    def miss(self, microbatch: Microbatch) -> None:
        """See `Drafter`."""

    def _propose(self, request: Request, length: int) -> Draft:
        if length == 0:
            return NO_DRAFT
        index = self._indexes.get(request)
        if index is None:
            index = self._indexes[request] = SuffixIndex()
        index.extend(request.tokens[len(index) :])
        before = len(request.draft)
        tokens, confidences = index.propose(before + length)
        if tokens[:before] != request.draft:
            return NO_DRAFT
        return Draft(tokens[before:], tuple(confidences[before:]))

    def forget(self, request: Request) -> None:
        """See `Drafter`."""
        self._indexes.pop(request, None)

    def check_idle(self) -> None:
        """See `Drafter`."""
        assert not self._indexes, "a finished request is still indexed"

    def held_bytes(self) -> tuple[int, int]:
        """See `Drafter`."""
        return 0, 0


class LookupOrHead:
    """Prompt lookup where the text repeats itself for long, a draft head elsewhere."""

    name = "ngram+head"
    free = False

    def __init__(self, lookup: PromptLookup, head: Drafter) -> None:
        self.lookup, self.head = lookup, head
        self.longest = min(lookup.longest, head.longest)
        self.stops, self.catching_up = head.stops, head.catching_up
        self.rounds = NO_DRAFT_TIMING

    def feed(self, microbatch: Microbatch) -> None:
        """See `Drafter`."""
        self.head.feed(microbatch)

    def miss(self, microbatch: Microbatch) -> None:
        """See `Drafter`."""
        self.head.miss(microbatch)

    def propose(
        self,
        requests: Sequence[Request],
        lengths: Sequence[int],
        continue_drafting: ContinueDrafting,
    ) -> list[Draft]:
        """See `Drafter`."""
        found = self.lookup.propose(requests, lengths, continue_drafting)
        repeats = [bool(each.tokens) and each.confidences[0] >= _REPEATS for each in found]
        asked = [0 if sure else length for sure, length in zip(repeats, lengths, strict=True)]

        def goes_on_with_both(confidences: Sequence[Sequence[float]]) -> bool:
            both = zip(repeats, found, confidences, strict=True)
            return continue_drafting([each.confidences if sure else of for sure, each, of in both])

        made, self.rounds = [NO_DRAFT] * len(asked), NO_DRAFT_TIMING
        if any(asked):
            made = self.head.propose(requests, asked, goes_on_with_both)
            self.rounds = self.head.rounds
        return [
            looked_up if sure or not drafted.tokens else drafted
            for sure, looked_up, drafted in zip(repeats, found, made, strict=True)
        ]

    def forget(self, request: Request) -> None:
        """See `Drafter`."""
        self.lookup.forget(request)
        self.head.forget(request)

    def check_idle(self) -> None:
        """See `Drafter`."""
        self.lookup.check_idle()
        self.head.check_idle()

    def held_bytes(self) -> tuple[int, int]:
        """See `Drafter`."""
        return self.head.held_bytes()
