"""A request as the engine sees it: known tokens, computed tokens, and the pages between them."""

from __future__ import annotations

from dataclasses import dataclass, field

from fjx.outputs import FinishReason, PositionLogprobs
from fjx.sampling_params import SamplingParams


@dataclass(eq=False, slots=True)
class Request:
    """One completion of one prompt.

    *Known* tokens are the prompt, the sampled ones, and those that the device has sampled but the
    host has not read yet (``unread``). *Computed* tokens are those whose keys and values are in
    pages, or will be once the dispatched steps have run. The scheduler hands out rows to close the
    gap.
    """

    id: str
    prompt_len: int
    tokens: list[int]
    """Prompt and output, as far as the host has read it."""
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
        return len(self.tokens) + self.unread

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
        known = len(self.tokens) + self.unread
        return known - self.computed if known < self.max_len else 0
