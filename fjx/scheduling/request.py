"""A request as the engine sees it: known tokens, computed tokens, and the pages between them."""

from __future__ import annotations

from collections.abc import Sequence
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

    A draft may grow while rows of it are under way: what is added is verified in a later step,
    another *frontier*. A wrong token makes void whatever was sent behind it.
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
    """In seconds of the engine's clock."""
    end_tokens: frozenset[int] = frozenset()
    """Tokens that end the request."""
    index: int = 0
    """Which of the n completions of its prompt."""
    priority: int = 0
    """Lower is served first."""
    order: int = -1
    """Place in the queue among equals; given once, so that a preempted request keeps it."""
    cache_salt: str = ""
    """Pages are shared among requests of the same salt only."""
    bad_words: tuple[tuple[int, ...], ...] = ()
    """Token sequences whose last token must not be chosen after the others."""
    draft: list[int] = field(default_factory=list)
    """Tokens that a drafter proposed to follow the committed ones, not verified yet."""
    confidences: list[float] = field(default_factory=list)
    """The drafter's, for each token of the draft."""
    rejections: int = 0
    """Drafts that were given up: rows that were sent before are void."""
    drafted_tokens: int = 0
    """Drafted tokens that were verified."""
    accepted_tokens: int = 0
    """Those among them that were the request's own tokens."""
    pruned_tokens: int = 0
    """Drafted tokens that were taken out of their step."""
    preemptions: int = 0
    """How often it was put back to waiting."""
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
    error: str | None = None
    """Why the request failed, where the finish reason is "error"."""
    prompt_logprobs: list[PositionLogprobs | None] | None = None
    """Of the prompt's tokens that were read so far, where they were asked for; the first has none.
    """

    @property
    def place(self) -> tuple[int, float, int]:
        """In the queue: who has the lowest is served first."""
        return self.priority, self.arrival, self.order

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
    def to_score(self) -> bool:
        """Whether log-probabilities of the prompt's tokens are still to be read."""
        return self.prompt_logprobs is not None and len(self.prompt_logprobs) < self.prompt_len

    @property
    def wanted_rows(self) -> int:
        """Known tokens that are not computed; 0 where they cannot matter to the output, or where
        the next one can only be chosen once the host knows those before."""
        known = self.known
        if self.unread and self.bad_words and self.needs_history:
            return 0
        # A request without output is computed to the end of its prompt.
        return known - self.computed if known < self.max_len or known <= self.prompt_len else 0

    @property
    def needs_history(self) -> bool:
        """Whether the host must have read all tokens before a next one can be chosen."""
        return any(len(word) > 1 for word in self.bad_words)

    @property
    def num_tokens(self) -> int:
        """Tokens that the host knows: committed and drafted ones."""
        return len(self.tokens) + len(self.draft)

    @property
    def seed_words(self) -> tuple[int, int]:
        """The seed's low and high 32 bits, as programs take it."""
        return self.seed & 0xFFFFFFFF, self.seed >> 32 & 0xFFFFFFFF

    @property
    def sent_draft(self) -> int:
        """Drafted tokens whose rows are under way."""
        return max(self.computed - len(self.tokens), 0)

    @property
    def awaits_draft(self) -> bool:
        """Whether a draft could follow what the host knows: the request runs, and the rows of all
        its known tokens but the last one are sent, or of all of them, but none behind."""
        return self.slot >= 0 and self.unread <= 1 and self.computed == self.known - 1

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
            del self.draft[0], self.confidences[0]
            self.accepted_tokens += 1
            return True
        self.give_up_draft()
        return False

    def extend_draft(self, tokens: Sequence[int], confidences: Sequence[float]) -> None:
        """Let these tokens follow those that the host knows, for `awaits_draft` requests only. The
        first one takes the place of a token that is not read yet, and must prove to be it."""
        if tokens:
            self.draft += tokens
            self.confidences += confidences
            self.unread = 0

    def give_up_draft(self) -> None:
        """Forget what is drafted and not verified; rows of it that were sent, and those behind
        them, are void."""
        self.cut_draft(0)
        self.rejections += 1
        self.unread = 0
        self.computed = min(self.computed, len(self.tokens) - 1)

    def cut_draft(self, length: int) -> None:
        """Keep the first tokens of the draft only; rows of the others must not have been sent."""
        del self.draft[length:], self.confidences[length:]
        if self.computed == self.num_tokens:
            self.unread = 1  # again, where an extension is cut off as a whole
