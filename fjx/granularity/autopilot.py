"""Lets the granularity policy look at the engine and carries out what it decides."""

from __future__ import annotations

import json
import logging
from collections import Counter, deque
from pathlib import Path
from typing import TextIO

import numpy as np

from fjx.config import EngineConfig
from fjx.errors import UserError
from fjx.granularity.arrivals import ArrivalWindows
from fjx.granularity.decision_log import decision_to_json, header_to_json
from fjx.granularity.ladder import Ladder, ladder_from_graph
from fjx.granularity.observation import Observation
from fjx.granularity.policy import Decision, PolicyConfig, PolicyState, decide
from fjx.granularity.rung_scorers import FlexPipeRungScorer, RungScorer, ServiceScorer
from fjx.regranularization.plan_target import Planner
from fjx.sharding.plan.plan import Deployment

logger = logging.getLogger(__name__)

_INTERVAL_SECONDS = 1.0
_RECENT_SECONDS = 60.0
_MOST = 512


class Autopilot:
    """Gathers what the policy observes, asks it once a second, and keeps the log."""

    def __init__(self, ladder: Ladder, policy: PolicyConfig, log: Path | None, now: float) -> None:
        self.ladder = ladder
        self.decisions: Counter[str] = Counter()
        """Decisions by reason."""
        self._policy = policy
        self._state = PolicyState()
        self._names = {rung.deployment: rung.name for rung in ladder.rungs}
        self._arrivals = ArrivalWindows(now)
        self._next = now
        self._first_tokens, self._gaps, self._tokens = _Recent(), _Recent(), _Recent()
        self._preemptions = 0
        self._log = None if log is None else _open_log(log)
        self._write(header_to_json(ladder, policy))

    @property
    def interval(self) -> float:
        """Seconds between two looks."""
        return _INTERVAL_SECONDS

    def arrived(self, now: float) -> None:
        """A request has come."""
        self._arrivals.record(now)

    def first_token(self, now: float, seconds: float) -> None:
        """A request got its first token ``seconds`` after it came."""
        self._first_tokens.add(now, seconds)

    def step(self, now: float, seconds: float) -> None:
        """The tokens of a step came ``seconds`` after those of the step before."""
        self._gaps.add(now, seconds)

    def ended(self, now: float, tokens: int) -> None:
        """A request has ended with ``tokens`` tokens, its prompt included."""
        self._tokens.add(now, tokens)

    def due(self, now: float) -> bool:
        """Whether it is time for the next observation."""
        return now >= self._next

    def observe_and_decide(
        self,
        now: float,
        *,
        serving: Deployment,
        switching: bool,
        running: int,
        waiting: int,
        kv_usage: float,
        preemptions: int,
    ) -> Decision:
        """Observe and decide.

        Args:
            now: seconds of the clock that the other calls use.
            serving: the plans that serve.
            switching: whether a change is under way.
            running: requests in the batch.
            waiting: requests in the queue.
            kv_usage: share of the KV pages that requests hold.
            preemptions: since the start.
        """
        self._next = now + _INTERVAL_SECONDS
        gaps, first_tokens = self._gaps.since(now), self._first_tokens.since(now)
        tokens = self._tokens.since(now)
        observation = Observation(
            now=now,
            serving=self._names.get(serving),
            switching=switching,
            windows=self._arrivals.observe(now),
            queue_depth=waiting,
            running=running,
            kv_usage=kv_usage,
            step_seconds=_percentile(gaps, 50) or 0.0,
            ttft_seconds=_percentile(first_tokens, 95),
            itl_seconds=_percentile(gaps, 95),
            tokens_per_request=float(np.mean(tokens)) if tokens else None,
            preemptions=preemptions - self._preemptions,
        )
        self._preemptions = preemptions
        decision = decide(observation, self._state, self.ladder, self._policy)
        self._state = decision.state
        self.decisions[decision.reason] += 1
        self._write(decision_to_json(decision, observation))
        if decision.target is not None:
            logger.info(
                "policy: from %s to %s because of %s; gain %.2f s, cost %.2f s; scores: %s",
                observation.serving,
                decision.target,
                decision.reason,
                decision.gain_seconds or 0.0,
                decision.cost_seconds or 0.0,
                ", ".join(f"{name} {score:.3g}" for name, score in decision.scores.items()),
            )
        return decision

    def close(self) -> None:
        """Close the log."""
        if self._log is not None:
            self._log.close()
            self._log = None

    def _write(self, values: object) -> None:
        if self._log is None:
            return
        try:
            self._log.write(json.dumps(values) + "\n")
            self._log.flush()
        except OSError as error:
            logger.warning("the decision log ends here: %s", error)
            self.close()


def start_autopilot(config: EngineConfig, planner: Planner, now: float) -> Autopilot | None:
    """The autopilot that a configuration asks for; None: it asks for none.

    Raises:
        MeshError: a mesh of the ladder does not suit the machine or the model.
        UserError: the log cannot be written, or a figure is out of its range.
    """
    if not config.plan_ladder:
        return None
    meshes = dict.fromkeys((config.mesh, *config.plan_ladder))
    deployments: dict[str, Deployment] = {}
    before: Deployment | None = None
    for mesh in meshes:  # each keeps what it can of the devices of the one before
        before = deployments[mesh] = planner.plan(mesh, before)
    ladder = ladder_from_graph(planner.graph, deployments, planner.workload, planner.topology)
    scorer: RungScorer = FlexPipeRungScorer()
    if config.granularity_scorer == "service":
        scorer = ServiceScorer(
            ttft_objective_seconds=config.ttft_objective,
            itl_objective_seconds=config.itl_objective,
        )
    return Autopilot(ladder, PolicyConfig(scorer=scorer), config.decision_log, now)


class _Recent:
    """Numbers of the last minute, the newest `_MOST` of them."""

    def __init__(self) -> None:
        self._values: deque[tuple[float, float]] = deque(maxlen=_MOST)

    def add(self, now: float, value: float) -> None:
        self._values.append((now, value))

    def since(self, now: float) -> list[float]:
        while self._values and self._values[0][0] < now - _RECENT_SECONDS:
            self._values.popleft()
        return [value for _, value in self._values]


def _percentile(values: list[float], percent: float) -> float | None:
    return float(np.percentile(values, percent)) if values else None


def _open_log(path: Path) -> TextIO:
    try:
        return path.open("w", encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write the decision log {path}: {error.strerror}") from None
