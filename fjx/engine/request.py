"""A request as the engine sees it: known tokens, computed tokens, and the pages between them."""

from __future__ import annotations

from dataclasses import dataclass, field

from fjx.outputs import FinishReason, PositionLogprobs
from fjx.sampling_params import SamplingParams


@dataclass(eq=False, slots=True)
class Request:
    """One completion of one prompt.

    *Known* tokens are the prompt, the committed ones, the drafted ones, and one that the device has
    chosen but the host has not read yet (``unread``). *Computed* tokens are those whose keys and
    values are in pages, or will be once the dispatched steps have run. The scheduler hands out rows
    to close the gap.

    The row of the last committed token, and each row behind it, chooses a token. If that is the
    drafted one that follows, the next row is right, too; if not, the rest of the draft is forgotten
    and what was computed of it will be overwritten.
    """

    id: str
    prompt_len: int
    tokens: list[int]
    """Prompt and output, as far as the host has read it: the committed tokens."""
    params: SamplingParams
    seed: int
    max_len: int
    """The request ends when it has this many tokens, prompt included."""
    arrival: float
    """Seconds of time.monotonic."""
    end_tokens: frozenset[int] = frozenset()
    """Tokens that end the request."""
    index: int = 0
    """Which of the n completions of its prompt."""
    priority: int = 0
    """Lower is served first."""
    order: int = -1
    """Place in the queue among equals; given once, so that a preempted request keeps it."""
    draft: list[int] = field(default_factory=list)
    """Tokens that a drafter proposed to follow the committed ones, not verified yet."""
    confidences: tuple[float, ...] = ()
    """The drafter's, for each token of the draft when it was proposed."""
    rejections: int = 0
    """Drafts of which a token was wrong: rows that were sent before are void."""
    drafted_tokens: int = 0
    """Drafted tokens that were verified."""
    accepted_tokens: int = 0
    """Those among them that were the request's own tokens."""
    steps: int = 0
    """Steps that brought it a token."""
    computed: int = 0
    unread: int = 0
    pages: list[int] = field(default_factory=list)
    digests: list[bytes] = field(default_factory=list)
    shared_pages: int = 0
    """Full pages already made known to the prefix cache."""
    cached_tokens: int = 0
    """Prompt tokens found in the prefix cache at first admission."""
    slot: int = -1
    """Row of the device's per-request state; -1 while waiting."""
    scheduled: float | None = None
    first_token: float | None = None
    ended: float | None = None
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None
    logprobs: list[PositionLogprobs] = field(default_factory=list)

    @property
    def known(self) -> int:
        """Tokens known to the device."""
        return len(self.tokens) + len(self.draft) + self.unread

    @property
    def num_output(self) -> int:
        """Output tokens that the host has read."""
        return len(self.tokens) - self.prompt_len

    @property
    def finished(self) -> bool:
        """Whether the request has ended, in whatever way."""
        return self.finish_reason is not None

    @property
    def wanted_rows(self) -> int:
        """Known tokens that are not computed; 0 where they cannot matter to the output."""
        known = len(self.tokens) + len(self.draft) + self.unread
        return known - self.computed if known < self.max_len else 0

    @property
    def awaits_draft(self) -> bool:
        """Whether a draft could follow: it runs, all its tokens are read, and only the last one is
        not computed."""
        return (
            self.slot >= 0
            and not (self.unread or self.draft)
            and self.computed == len(self.tokens) - 1
        )

    def known_tokens(self, start: int, end: int) -> list[int]:
        """Committed and drafted tokens at these positions."""
        committed = len(self.tokens)
        if end <= committed:
            return self.tokens[start:end]
        return self.tokens[start:] + self.draft[max(start - committed, 0) : end - committed]

    def commit(self, token: int) -> bool:
        """Take the token that the next row chose; whether it is the drafted one, or none was
        drafted, so that what was sent behind that row is right."""
        self.tokens.append(token)
        if not self.draft:
            self.unread -= 1
            return True
        if self.draft[0] == token:
            del self.draft[0]
            self.accepted_tokens += 1
            return True
        self.forget_draft()
        self.rejections += 1
        self.unread = 0
        self.computed = min(self.computed, len(self.tokens) - 1)
        return False

    def forget_draft(self) -> None:
        """Drop what is drafted and not verified."""
        self.draft, self.confidences = [], ()
