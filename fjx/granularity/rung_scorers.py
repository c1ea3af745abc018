"""How good a rung would be for what is observed: two answers, one by FlexPipe and one of our own.

A score is a product of terms, each between 0 and 1; of two rungs the one with the higher score is
the better. A scorer looks at one moment: patience is the policy's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

from fjx.granularity.ladder import BURSTY_CV, Ladder, Rung
from fjx.granularity.observation import Observation, check_numbers

SwitchReason = Literal["load", "burst", "queue", "latency", "kv_pressure", "quiet"]
"""Why a rung is better than the one that serves: more requests than this one can serve in time
(load), or in time when they come in bursts (burst), or with those that wait (queue), or to judge by
the times that are measured (latency); too little KV memory; or more devices than needed (quiet)."""

_REASONS: dict[str, SwitchReason] = {
    "room": "kv_pressure",
    "pace": "latency",
    "devices": "quiet",
    "hops": "quiet",
}
"""By the term of `ServiceScorer` in which a rung is better."""

_LEAST_PACED = 0.2
"""Of a rung's throughput: an objective just above what one row takes asks for no more than five
times the devices."""
_MAX_LATE = 2.0
"""Measured lateness makes the demand at most this many times larger: it shows that the model is
optimistic, and not by how much."""


class RungScorer(Protocol):
    """Judges rungs."""

    name: ClassVar[str]
    """Its name in the decision log."""

    def terms(self, rung: Rung, observation: Observation, ladder: Ladder) -> dict[str, float]:
        """The factors of the score by name, each at least 0 and at most 1."""

    def score(self, rung: Rung, observation: Observation, ladder: Ladder) -> float:
        """How good the rung is for what is observed, 0 to 1."""

    def reason(
        self, serving: Rung, target: Rung, observation: Observation, ladder: Ladder
    ) -> SwitchReason:
        """Why ``target``, which has the higher score, is better than ``serving``."""


@dataclass(frozen=True, kw_only=True)
class FlexPipeRungScorer:
    """Equation 4 of FlexPipe (arXiv:2510.11938): what suits the burstiness of the arrivals.

    ``[alpha T / T_max + (1 - alpha) L_min / L] exp(-|cv - best_cv| / sigma)``, where T is a rung's
    throughput and L its latency. The paper gives no values for alpha, sigma and the window of the
    coefficient of variation; here it is the longest window. Load, queue, KV memory and objectives
    are not in the equation.

    Raises:
        UserError: a field is out of its range; the message names it.
    """

    name: ClassVar[str] = "flexpipe"

    alpha: float = 0.5
    """Weight of throughput against latency, 0 to 1."""
    sigma: float = 2.0
    """How far the coefficient of variation may lie from a rung's best one."""

    def __post_init__(self) -> None:
        check_numbers("FlexPipeRungScorer", self, ("alpha",), most=1)
        check_numbers("FlexPipeRungScorer", self, ("sigma",), above=True)

    def terms(self, rung: Rung, observation: Observation, ladder: Ladder) -> dict[str, float]:
        """The two factors of the equation."""
        fastest = max(each.tokens_per_second for each in ladder.rungs)
        shortest = min(each.latency_seconds for each in ladder.rungs)
        throughput = self.alpha * rung.tokens_per_second / fastest
        latency = (1 - self.alpha) * shortest / rung.latency_seconds
        distance = abs(observation.burstiness - rung.best_cv)
        return {"speed": throughput + latency, "burstiness": math.exp(-distance / self.sigma)}

    def score(self, rung: Rung, observation: Observation, ladder: Ladder) -> float:
        """Equation 4."""
        return math.prod(self.terms(rung, observation, ladder).values())

    def reason(
        self, serving: Rung, target: Rung, observation: Observation, ladder: Ladder
    ) -> SwitchReason:
        """Finer for bursts, coarser when it is quiet: the equation knows nothing else."""
        finer = ladder.position(target.name) > ladder.position(serving.name)
        return "burst" if finer else "quiet"


@dataclass(frozen=True, kw_only=True)
class ServiceScorer:
    """The share of the demand that a rung serves in time, less what its devices cost.

    The terms:

    - ``served``: `sustained` over `demand`, at most 1.
    - ``room``: the rung's KV memory, as far as it may fill, over what requests hold, at most 1.
    - ``pace``: the objective for the time from token to token over the rung's latency with one row,
      at most 1.
    - ``devices`` and ``hops``: fewest devices and lowest latency of the ladder over the rung's,
      under small exponents, so that they decide where the others do not.

    What it promises, and the tests check: a higher rate, a longer queue or more burstiness never
    favours the rung of less throughput; a fuller KV memory never favours the rung of less room;
    where all rungs serve all and meet the objective, the one with the fewest devices wins.

    Raises:
        UserError: a field is out of its range; the message names it.
    """

    name: ClassVar[str] = "service"

    ttft_objective_seconds: float = 2.0
    """How long a request may wait for its first token."""
    itl_objective_seconds: float = 0.2
    """Longest time from token to token."""
    tokens_per_request: float = 512.0
    """Prompt and output, until requests have ended and the observation says it."""
    drain_seconds: float = 5.0
    """In how long the waiting requests shall be served beside the arriving ones. With 2 s the
    policy takes twice the devices for the queue of a rise, and gives them back a minute later."""
    headroom: float = 1.25
    """How many times the demand a rung of less throughput than the serving one must serve. So
    what made the policy leave it does not come back with the next small rise; 1: none."""
    kv_target: float = 0.7
    """How much of the KV memory may be in use, 0 to 1."""
    device_weight: float = 0.1
    """Exponent of ``devices``: with 0.1, twice the devices must serve 7 % more."""
    latency_weight: float = 0.05
    """Exponent of ``hops``. Less than `device_weight`, so that many devices with a low latency do
    not look cheap."""

    def __post_init__(self) -> None:
        above = ("ttft_objective_seconds", "itl_objective_seconds", "tokens_per_request")
        check_numbers("ServiceScorer", self, (*above, "drain_seconds"), above=True)
        check_numbers("ServiceScorer", self, ("headroom",), least=1)
        check_numbers("ServiceScorer", self, ("kv_target",), most=1, above=True)
        check_numbers("ServiceScorer", self, ("device_weight", "latency_weight"), most=1)

    def demand(self, observation: Observation, ladder: Ladder) -> float:
        """Tokens a second that want to be served: those of arriving requests and of waiting ones.

        It counts more, up to twice, where the measured times exceed their objectives by more than
        the rung that serves explains: then the figures of the ladder are too optimistic.
        """
        rate = observation.rate + observation.queue_depth / self.drain_seconds
        return rate * self._tokens(observation) * self._lateness(observation, ladder)

    def sustained(self, rung: Rung, observation: Observation) -> float:
        """Tokens a second that a rung can serve within both objectives.

        The first token by Kingman's formula for the mean wait of a queue,
        ``u / (1 - u) (cv^2 + 1) / 2 s`` with utilization u and mean service time s (of coefficient
        of variation 1), solved for u; the others by `_paced`.
        """
        service = self._tokens(observation) / rung.tokens_per_second
        unevenness = (observation.burstiness**2 + 1) / 2
        objective = self.ttft_objective_seconds
        utilization = min(objective / (objective + unevenness * service), self._paced(rung))
        return rung.tokens_per_second * utilization

    def _paced(self, rung: Rung) -> float:
        """The utilization at which tokens come as slowly as the objective allows.

        Between one row and full microbatches the latency grows with the rows. An objective that
        even one row misses says nothing here: more devices would not meet it.
        """
        idle, full = _idle_latency(rung), rung.latency_seconds
        if full <= self.itl_objective_seconds or self.itl_objective_seconds <= idle:
            return 1.0
        return max((self.itl_objective_seconds - idle) / (full - idle), _LEAST_PACED)

    def terms(self, rung: Rung, observation: Observation, ladder: Ladder) -> dict[str, float]:
        """The factors of the score."""
        demand, held = self.demand(observation, ladder), self._kv_tokens(observation, ladder)
        if observation.serving is not None:
            serving = ladder.rung(observation.serving)
            if rung.tokens_per_second < serving.tokens_per_second:
                demand *= self.headroom
        fewest = min(each.devices for each in ladder.rungs)
        shortest = min(each.latency_seconds for each in ladder.rungs)
        return {
            "served": _share(self.sustained(rung, observation), demand),
            "room": _share(self.kv_target * rung.kv_tokens, held),
            "pace": _share(self.itl_objective_seconds, _idle_latency(rung)),
            "devices": (fewest / rung.devices) ** self.device_weight,
            "hops": (shortest / rung.latency_seconds) ** self.latency_weight,
        }

    def score(self, rung: Rung, observation: Observation, ladder: Ladder) -> float:
        """The product of the terms."""
        return math.prod(self.terms(rung, observation, ladder).values())

    def reason(
        self, serving: Rung, target: Rung, observation: Observation, ladder: Ladder
    ) -> SwitchReason:
        """By the term in which the target is better by the largest factor."""
        before = self.terms(serving, observation, ladder)
        after = self.terms(target, observation, ladder)
        best = max(before, key=lambda term: after[term] / before[term])
        if best == "served":
            return self._why_more(observation, ladder)
        return _REASONS[best]

    def _why_more(self, observation: Observation, ladder: Ladder) -> SwitchReason:
        if observation.queue_depth / self.drain_seconds > observation.rate:
            return "queue"
        if self._lateness(observation, ladder) > 1:
            return "latency"
        return "burst" if observation.burstiness > BURSTY_CV else "load"

    def _tokens(self, observation: Observation) -> float:
        return observation.tokens_per_request or self.tokens_per_request

    def _lateness(self, observation: Observation, ladder: Ladder) -> float:
        explained = 0.0
        if observation.serving is not None:
            explained = ladder.rung(observation.serving).latency_seconds
        ttft = (observation.ttft_seconds or 0.0) / max(self.ttft_objective_seconds, explained)
        itl = (observation.itl_seconds or 0.0) / max(self.itl_objective_seconds, explained)
        return min(max(1.0, ttft, itl), _MAX_LATE)

    def _kv_tokens(self, observation: Observation, ladder: Ladder) -> float:
        """Token slots that requests hold, or held until they were preempted."""
        if observation.serving is None:
            return 0.0
        held = observation.kv_usage * ladder.rung(observation.serving).kv_tokens
        return held + observation.preemptions * self._tokens(observation)


def _idle_latency(rung: Rung) -> float:
    known = rung.idle_latency_seconds
    return rung.latency_seconds if known is None else min(known, rung.latency_seconds)


def _share(supply: float, demand: float) -> float:
    """How much of a demand is met."""
    return min(1.0, supply / demand) if demand > 0 else 1.0
