"""What a request gives back."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from fjx.sharding.plan.plan import Deployment

FinishReason = Literal["stop", "length", "abort", "error"]


@dataclass(frozen=True)
class TokenLogprob:
    """One token's log-probability under the model, before temperature and truncation."""

    token_id: int
    logprob: float
    """Natural logarithm of the probability."""
    rank: int
    """1 for the most likely token."""


@dataclass(frozen=True)
class PositionLogprobs:
    """Log-probabilities at one output position."""

    sampled: TokenLogprob
    top: tuple[TokenLogprob, ...]
    """The most likely tokens, best first; as many as were asked for."""


@dataclass
class CompletionOutput:
    """One completion of a prompt, or, in a stream, what is new of it."""

    index: int
    """Which of the n completions."""
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[PositionLogprobs] | None = None
    """One entry a token of ``token_ids``, where asked for."""
    finish_reason: FinishReason | None = None
    """stop: an end token or stop string; "length": max_tokens or the context's end; "abort":
    cancelled; "error": something went wrong with this request."""
    stop_reason: int | str | None = None
    """The stop token or stop string that ended it; None for the model's end-of-sequence token."""
    steps: int = 0
    """Steps that brought it a token; like the counts below, in a stream the total so far."""
    drafted_tokens: int = 0
    """Drafted tokens that were verified; what was drafted and not verified does not count."""
    accepted_tokens: int = 0
    """Those among them that were its own tokens, and saved it a step each."""
    pruned_tokens: int = 0
    """Drafted tokens that were given up inside the verification."""
    preemptions: int = 0
    """How often it was put back to waiting, because pages ran out."""


@dataclass(frozen=True)
class RequestTiming:
    """When things happened, in seconds of ``time.monotonic``; None: not yet."""

    arrival: float
    scheduled: float | None = None
    first_token: float | None = None
    finished: float | None = None


@dataclass
class RequestOutput:
    """The state of a request; in a stream, ``outputs`` hold only what is new since the last one."""

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    finished: bool
    num_cached_tokens: int = 0
    """Prompt tokens whose keys and values came from the prefix cache."""
    timing: RequestTiming | None = None
    error: str | None = None
    """Why the request failed, where ``finish_reason`` is "error"."""
    prompt_logprobs: list[PositionLogprobs | None] | None = None
    """One entry a token of the prompt, where asked for: ``sampled`` is the prompt's own token; None
    for the first one. In a stream, it comes with the first output of each completion."""


SwitchState = Literal["planned", "compiling", "copying", "switching", "done", "aborted"]
"""Where a regranularization stands. Until it is done, the old plan serves."""


@dataclass(frozen=True)
class SwitchRecord:
    """One regranularization, under way or ended."""

    number: int
    """Counts from 1."""
    reason: str
    """Who wanted it: "request", or the policy's words."""
    before: Deployment
    after: Deployment
    state: SwitchState
    progress: float = 0.0
    """Share of the work that is done, 0 to 1."""
    error: str | None = None
    """Why it was aborted."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Time spent in each state."""
    pause_seconds: float | None = None
    """Between the last step of the old plan and the first of the new one, as far as the switch
    caused it."""
    planned_bytes: int = 0
    """What the difference of the plans moves, with the pages in use when the copy began."""
    parameter_bytes: int = 0
    """Parameters that crossed between devices so far."""
    kv_bytes: int = 0
    """KV pages that crossed for the first time."""
    dirty_bytes: int = 0
    """KV pages that crossed because they were written since the copy began, or since their last
    copy."""
    dirty_pages: int = 0
    """Pages that wait to be copied again."""
    rounds: int = 0
    """How often dirty pages were gathered."""

    @property
    def moved_bytes(self) -> int:
        """All that crossed between devices."""
        return self.parameter_bytes + self.kv_bytes + self.dirty_bytes


@dataclass(frozen=True)
class PlanStatus:
    """What serves now, and what becomes of it."""

    deployment: Deployment
    switch: SwitchRecord | None = None
    """The change that is under way."""
    last: SwitchRecord | None = None
    """The last change that ended."""

    @property
    def state(self) -> str:
        """ "serving", or the state of the change that is under way."""
        return "serving" if self.switch is None else self.switch.state


@dataclass(frozen=True)
class PlanStats:
    """Counters of plans and their changes, since the start."""

    stages: int = 1
    """Of the first replica, now."""
    devices: int = 1
    """In use now."""
    replicas: int = 1
    switches: dict[str, int] = field(default_factory=dict)
    """Ended regranularizations by outcome: "done", "aborted"."""
    switch_seconds: dict[str, float] = field(default_factory=dict)
    """Time spent in each state."""
    pauses: tuple[float, ...] = ()
    """Pause of each switch, seconds."""
    moved_bytes: dict[str, int] = field(default_factory=dict)
    """Bytes that crossed between devices: "parameters", "kv", "dirty"."""
    dirty_pages: int = 0
    """Pages that wait to be copied again, now."""
    decisions: dict[str, int] = field(default_factory=dict)
    """The policy's decisions by reason."""
    slow: dict[str, float] = field(default_factory=dict)
    """How many times as long as usual each of a cluster's workers takes that is slow now."""
    replaced_in_vain: int = 0
    """Replacements in a row of a cluster's lost stages that failed, or were lost before they had
    served."""


@dataclass(frozen=True)
class SpeculationStats:
    """Counters of speculation, since the start."""

    drafter: str
    policy: str
    num_drafts: int = 0
    """Drafts that were verified."""
    num_draft_tokens: int = 0
    """Drafted tokens that were verified."""
    num_accepted_tokens: int = 0
    """Those among them that were the requests' own tokens."""
    num_trimmed_tokens: int = 0
    """Tokens that were drafted and, by the policy, not verified."""
    num_pruned_tokens: dict[str, int] = field(default_factory=dict)
    """Tokens that were taken out of their verification, by the granule before which they were."""
    prune_looks: int = 0
    """Steps that were looked at between their stages."""
    prune_seconds_expected: float = 0.0
    """Saved by pruning, as expected when it was done."""
    prune_seconds_saved: float = 0.0
    """The same, as the steps turned out."""
    saved_seconds: float = 0.0
    """Saved by speculation against plain decoding, as both were measured; only where the policy
    weighs them."""
    frontiers: int = 1
    """Most steps with drafts that are under way at once now."""
    drafts_ahead: bool = False
    """Whether what may follow is drafted while a step verifies, on one device."""
    ahead_steps: int = 0
    """Steps beside which something was drafted."""
    ahead_seconds_hidden: float = 0.0
    """Of drafting in turn, which it saved."""
    ahead_seconds_slowdown: float = 0.0
    """By which it slowed steps down."""
    accepted_per_position: tuple[int, ...] = ()
    """Accepted tokens by their place in the draft."""
    draft_lengths: dict[int, int] = field(default_factory=dict)
    """How often which length was verified, 0 included."""


@dataclass(frozen=True)
class HeldMemory:
    """What an engine holds in memory, in bytes, by kind; of all replicas and devices."""

    parameters: int
    kv_tokens: int
    """Token slots of KV memory that a replica's requests share."""
    kv_bytes: int
    """KV memory of all replicas, as it is reserved."""
    kv_used_bytes: int
    """Of it, pages that a request ever had: on a CPU, only these take memory."""
    draft_parameters: int
    """Of a draft head or a draft model, beside what it shares with the target."""
    draft_kv_bytes: int
    """Its KV memory, as it is reserved."""
    programs: int
    """How many are compiled."""


@dataclass(frozen=True)
class EngineStats:
    """A snapshot of the engine: gauges now, counters since the start."""

    num_requests_running: int = 0
    num_requests_waiting: int = 0
    kv_cache_usage: float = 0.0
    """Share of pages in use by running requests, 0 to 1."""
    prefix_cache_queries: int = 0
    """Prompt tokens looked up in the prefix cache."""
    prefix_cache_hits: int = 0
    """Prompt tokens found there."""
    prompt_tokens: int = 0
    """Prompt tokens computed or found."""
    generation_tokens: int = 0
    num_preemptions: int = 0
    num_steps: int = 0
    step_tokens: dict[int, int] = field(default_factory=dict)
    """How often a step computed how many tokens."""
    kv_pages: int = 0
    """Pages of KV memory, of all replicas."""
    step_seconds: float = 0.0
    """Time spent in steps, seconds."""
    host_seconds: float = 0.0
    """Time the host spent scheduling, dispatching and post-processing, seconds."""
    compiles: dict[str, int] = field(default_factory=dict)
    """Compilations by place: "warmup", "background", "on_demand" (without warm-up), "hot_path"
    (must stay 0)."""
    requests_finished: dict[str, int] = field(default_factory=dict)
    """Finished requests by finish reason."""
    plan: PlanStats = field(default_factory=PlanStats)
    speculation: SpeculationStats | None = None
    """None: the engine never speculates."""
