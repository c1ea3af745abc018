"""The granularity policy: which plan of the ladder shall serve.

A pure function of numbers. `decide` takes what is observed, the state that the last decision
returned, the ladder and the configuration; it returns the decision with the next state and all the
numbers that led to it. It has no clock and starts nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from fjx.granularity.ladder import Ladder, Rung
from fjx.granularity.observation import Observation, check_numbers
from fjx.granularity.rung_scorers import RungScorer, ServiceScorer, SwitchReason

StayReason = Literal[
    "steady",
    "not_yet",
    "cooling_down",
    "too_costly",
    "backing_off",
    "switching",
    "off_ladder",
]
"""Why the plan stays. steady: no rung is better by the margin. not_yet: one is, but not for long
enough. cooling_down: it is too soon after the last change. too_costly: the change would cost more
than it gains. backing_off: only rungs are better to which a change was aborted. switching: a change
is under way. off_ladder: someone chose a plan that is no rung."""

Reason = SwitchReason | StayReason

_MAX_DOUBLINGS = 30


@dataclass(frozen=True, kw_only=True)
class PolicyConfig:
    """How the policy decides.

    Raises:
        UserError: a field is out of its range; the message names it.
    """

    scorer: RungScorer = field(default_factory=ServiceScorer)
    """What makes a rung good."""
    margin: float = 0.05
    """How much higher another rung's score must be: 0.05 is 5 %. More than 7 % would keep twice the
    devices for ever (see `ServiceScorer.device_weight`)."""
    hold_observations: int = 3
    """Observations in a row in which its score must be higher."""
    finer_hold_seconds: float = 2.0
    """Seconds for which its score must be higher, if it is finer than the rung that serves."""
    coarser_hold_seconds: float = 60.0
    """The same if it is coarser: giving devices up too early hurts more than too late."""
    cooldown_seconds: float = 30.0
    """Seconds after a change in which none goes to a coarser rung; after a change that someone else
    ordered, none goes to any rung. A change to a finer rung waits for the hold alone: what
    overloads one rung may overload the next one too, and climbing on is not flapping, because the
    way back is long."""
    aborted_cooldown_seconds: float = 120.0
    """Seconds after an aborted change in which none begins. The wait for the same rung doubles with
    each aborted change to it in a row."""
    longest_backoff_seconds: float = 3600.0
    """The longest wait that this doubling comes to, in seconds."""
    horizon_seconds: float = 300.0
    """For how long the present is expected to last: in this time a change must pay."""
    copy_bytes_per_second: float = 1e9
    """How fast a change moves bytes while the old plan serves."""
    copy_slowdown: float = 0.2
    """Share of the service that is lost while it does, 0 to 1."""
    pause_seconds: float = 0.1
    """For how long a change stops the service."""

    def __post_init__(self) -> None:
        spans = ("finer_hold_seconds", "coarser_hold_seconds", "cooldown_seconds", "pause_seconds")
        backoffs = ("aborted_cooldown_seconds", "longest_backoff_seconds")
        check_numbers("PolicyConfig", self, ("margin", *spans, *backoffs))
        check_numbers("PolicyConfig", self, ("hold_observations",), least=1)
        above = ("horizon_seconds", "copy_bytes_per_second")
        check_numbers("PolicyConfig", self, above, above=True)
        check_numbers("PolicyConfig", self, ("copy_slowdown",), most=1)


@dataclass(frozen=True)
class Streak:
    """A rung that has been better than the one that serves, without a break."""

    rung: str
    since: float
    observations: int


@dataclass(frozen=True)
class Backoff:
    """A rung to which changes were aborted."""

    rung: str
    aborted: int
    """How often, since the last time that one was done."""
    until: float
    """No new one before."""


@dataclass(frozen=True, kw_only=True)
class PolicyState:
    """What the policy remembers from one decision to the next."""

    serving: str | None = None
    """The rung that served; None: none did, or nothing was observed yet."""
    pending: str | None = None
    """The rung that was decided for, until its outcome is seen."""
    cooling_until: float | None = None
    """No change to a coarser rung before."""
    finer_cooling_until: float | None = None
    """Nor to a finer one; None: the cool-down is for coarser ones only."""
    streaks: tuple[Streak, ...] = ()
    backoffs: tuple[Backoff, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What to do, why, and the numbers behind it."""

    target: str | None
    """The rung to go to; None: stay."""
    reason: Reason
    state: PolicyState
    """What to pass to the next call of `decide`."""
    terms: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """The factors of each rung's score."""
    scores: Mapping[str, float] = field(default_factory=dict)
    """Each rung's score, by its name."""
    candidate: str | None = None
    """The rung that was weighed against the one that serves, whether it won or not."""
    gain_seconds: float | None = None
    """What the candidate gains over the horizon, in seconds of its own service."""
    cost_seconds: float | None = None
    """What the change to it costs, in the same unit."""


@dataclass(frozen=True)
class _Offer:
    rung: Rung
    gain: float
    cost: float


def decide(
    observation: Observation, state: PolicyState, ladder: Ladder, config: PolicyConfig
) -> Decision:
    """Decide which rung shall serve.

    A target is an order: the policy expects to see ``switching`` in the next observations, and then
    the target serving. Where neither is so, it takes the change for aborted.

    Args:
        observation: The engine now.
        state: Of the last decision; at first `PolicyState()`.
        ladder: The rungs.
        config: How to decide.

    Raises:
        UserError: the observation names a rung that the ladder does not have.
    """
    now = observation.now
    state = _outcome(observation, state, config)
    if observation.switching:
        return Decision(target=None, reason="switching", state=state)
    if observation.serving is None:
        return Decision(target=None, reason="off_ladder", state=replace(state, streaks=()))
    serving = ladder.rung(observation.serving)
    terms = {r.name: config.scorer.terms(r, observation, ladder) for r in ladder.rungs}
    scores = {r.name: config.scorer.score(r, observation, ladder) for r in ladder.rungs}
    better = [
        r for r in ladder.rungs if scores[r.name] > scores[serving.name] * (1 + config.margin)
    ]
    state = replace(state, streaks=_streaks(state.streaks, better, now))
    stay = Decision(target=None, reason="steady", state=state, terms=terms, scores=scores)
    if not better:
        return stay
    allowed = _allowed(better, state.backoffs, now)
    held = _held(allowed, serving, state.streaks, now, ladder, config)
    ready = [rung for rung in held if not _is_cooling(rung, serving, state, now, ladder)]
    offer = max(
        (_offer(r, serving, scores, ladder, config) for r in ready or held or allowed or better),
        key=lambda offer: offer.gain - offer.cost,
    )
    stay = replace(
        stay, candidate=offer.rung.name, gain_seconds=offer.gain, cost_seconds=offer.cost
    )
    if not allowed:
        return replace(stay, reason="backing_off")
    if not held:
        return replace(stay, reason="not_yet")
    if not ready:
        return replace(stay, reason="cooling_down")
    if offer.gain <= offer.cost:
        return replace(stay, reason="too_costly")
    return replace(
        stay,
        target=offer.rung.name,
        reason=config.scorer.reason(serving, offer.rung, observation, ladder),
        state=replace(state, pending=offer.rung.name, streaks=()),
    )


def _outcome(observation: Observation, state: PolicyState, config: PolicyConfig) -> PolicyState:
    """The state with what became of the last decision, or of another's order."""
    if observation.switching:
        return state
    serving, target = observation.serving, state.pending
    after = replace(state, serving=serving, pending=None)
    if target is None and state.serving in (None, serving):
        return after
    others = tuple(each for each in state.backoffs if each.rung not in (target, serving))
    if target in (None, serving):
        until = observation.now + config.cooldown_seconds
        finer = until if target is None else None
        return replace(
            after, cooling_until=until, finer_cooling_until=finer, streaks=(), backoffs=others
        )
    before = (each.aborted for each in state.backoffs if each.rung == target)
    aborted = next(before, 0) + 1
    span = config.aborted_cooldown_seconds * 2.0 ** min(aborted - 1, _MAX_DOUBLINGS)
    until = observation.now + min(span, config.longest_backoff_seconds)
    cooling = observation.now + config.aborted_cooldown_seconds
    return replace(
        after,
        cooling_until=cooling,
        finer_cooling_until=cooling,
        streaks=(),
        backoffs=(*others, Backoff(target, aborted, until)),
    )


def _streaks(before: Iterable[Streak], better: Iterable[Rung], now: float) -> tuple[Streak, ...]:
    """The streaks of the rungs that are better now."""
    known = {streak.rung: streak for streak in before}
    streaks = []
    for rung in better:
        streak = known.get(rung.name, Streak(rung.name, now, 0))
        streaks.append(replace(streak, observations=streak.observations + 1))
    return tuple(streaks)


def _allowed(rungs: Iterable[Rung], backoffs: Iterable[Backoff], now: float) -> list[Rung]:
    """The rungs to which no change was aborted lately."""
    refused = {each.rung for each in backoffs if now < each.until}
    return [rung for rung in rungs if rung.name not in refused]


def _is_cooling(rung: Rung, serving: Rung, state: PolicyState, now: float, ladder: Ladder) -> bool:
    """Whether it is too soon after the last change for one to this rung."""
    finer = ladder.position(rung.name) > ladder.position(serving.name)
    until = state.finer_cooling_until if finer else state.cooling_until
    return until is not None and now < until


def _held(
    rungs: Sequence[Rung],
    serving: Rung,
    streaks: Iterable[Streak],
    now: float,
    ladder: Ladder,
    config: PolicyConfig,
) -> list[Rung]:
    """The rungs that have been better for long enough."""
    known = {streak.rung: streak for streak in streaks}
    held = []
    for rung in rungs:
        finer = ladder.position(rung.name) > ladder.position(serving.name)
        needed = config.finer_hold_seconds if finer else config.coarser_hold_seconds
        streak = known[rung.name]
        if streak.observations >= config.hold_observations and now - streak.since >= needed:
            held.append(rung)
    return held


def _offer(
    rung: Rung, serving: Rung, scores: Mapping[str, float], ladder: Ladder, config: PolicyConfig
) -> _Offer:
    """What a change to a rung, whose score is the higher one, gains and costs."""
    copying = ladder.bytes_between(serving.name, rung.name) / config.copy_bytes_per_second
    gained = 1 - scores[serving.name] / scores[rung.name]
    return _Offer(
        rung,
        gain=gained * max(0.0, config.horizon_seconds - copying),
        cost=copying * config.copy_slowdown + config.pause_seconds,
    )
