"""Acceptance from a record: drafting and verifying are real, but the record says which tokens prove
right.

A model with random weights continues a text in a way that no drafter foresees, so its speculation
shows nothing. Here the right tokens are known from a run of plain decoding, and a draft is given as
many of them as a recorded draft had. So the engine can be timed with large shapes whose weights, or
whose draft head, are not at hand.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from variants import Wrapper

from fjx.scheduling.request import Request
from fjx.speculation.policy.agreement import agreeing
from fjx.speculation.runtime.drafter import NO_DRAFT, ContinueDrafting, Draft, Drafter


class RecordedDraft(NamedTuple):
    """One draft of a request."""

    confidences: Sequence[float]
    right: int
    """How many of its tokens, from the first on, were the target's own."""


Recording = Sequence[Sequence[RecordedDraft]]
"""The drafts of each request, in their order."""


class Recorder(Wrapper):
    """Keeps what a drafter proposes."""

    def __init__(self, drafter: Drafter) -> None:
        super().__init__(drafter)
        self._proposed: dict[int, list[tuple[int, Draft]]] = defaultdict(list)

    def propose(
        self,
        requests: Sequence[Request],
        lengths: Sequence[int],
        continue_drafting: ContinueDrafting,
    ) -> list[Draft]:
        """See `Drafter`."""
        drafts = self.drafter.propose(requests, lengths, continue_drafting)
        for request, draft in zip(requests, drafts, strict=True):
            if draft.tokens:
                begin = request.num_tokens - request.prompt_len
                self._proposed[int(request.id)].append((begin, draft))
        return drafts

    def recording(self, answers: Sequence[Sequence[int]]) -> Recording:
        """By what the requests' tokens were, in the order of their numbers."""
        return [
            [
                RecordedDraft(draft.confidences, agreeing(draft.tokens, answers[number][begin:]))
                for begin, draft in self._proposed[number]
            ]
            for number in sorted(self._proposed)
        ]


class Replayed(Wrapper):
    """Drafts as a drafter does, with the acceptance of a recording."""

    def __init__(
        self, drafter: Drafter, answers: Sequence[Sequence[int]], recording: Recording
    ) -> None:
        """
        Args:
            drafter: does the work; what it proposes is thrown away.
            answers: the output tokens of each request, by its number, which is its id.
            recording: given to the requests in turn.
        """
        super().__init__(drafter)
        self._answers = answers
        self._recording = recording
        self._next: dict[Request, int] = defaultdict(int)

    def propose(
        self,
        requests: Sequence[Request],
        lengths: Sequence[int],
        continue_drafting: ContinueDrafting,
    ) -> list[Draft]:
        """See `Drafter`."""
        recorded = [self._take(*each) for each in zip(requests, lengths, strict=True)]

        def by_record(confidences: Sequence[Sequence[float]]) -> bool:
            both = zip(recorded, confidences, strict=True)
            return continue_drafting([each.confidences[: len(made)] for each, made in both])

        drafts = self.drafter.propose(requests, lengths, by_record)
        return [
            self._replay(request, each, len(draft.tokens))
            for request, each, draft in zip(requests, recorded, drafts, strict=True)
        ]

    def forget(self, request: Request) -> None:
        """See `Drafter`."""
        self._next.pop(request, None)
        self.drafter.forget(request)

    def _take(self, request: Request, length: int) -> RecordedDraft:
        if not length:
            return RecordedDraft((), 0)
        drafts = self._recording[int(request.id) % len(self._recording)]
        turn = self._next[request]
        self._next[request] += 1
        return drafts[turn % len(drafts)]

    def _replay(self, request: Request, recorded: RecordedDraft, length: int) -> Draft:
        confidences = tuple(recorded.confidences[:length])
        if not confidences:
            return NO_DRAFT
        begin = request.num_tokens - request.prompt_len
        answer = self._answers[int(request.id)][begin : begin + len(confidences)]
        answer = [*answer, *[0] * (len(confidences) - len(answer))]
        right = recorded.right
        return Draft([*answer[:right], *(token ^ 1 for token in answer[right:])], confidences)


def write_recording(path: Path, recording: Recording) -> None:
    """As JSON."""
    requests = [
        [
            {"confidences": [round(c, 4) for c in each.confidences], "right": each.right}
            for each in of_request
        ]
        for of_request in recording
    ]
    path.write_text(json.dumps({"requests": requests}) + "\n")


def read_recording(path: Path) -> Recording:
    """What `write_recording` wrote."""
    requests = json.loads(path.read_text())["requests"]
    return [[RecordedDraft(**each) for each in of_request] for of_request in requests if of_request]
