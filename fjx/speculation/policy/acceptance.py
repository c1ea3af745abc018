"""How likely drafted tokens are to be accepted, learned from what became of earlier ones."""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

LEAST, MOST = 0.01, 0.99
"""No token is given up for ever, and none is taken for certain."""

_POSITIONS = (0, 1, 2, 3, 4, 6, 8, 12)
"""Where the bins of positions begin."""
_EDGES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
"""Between the bins of confidence."""
_MIDDLES = np.array([(a + b) / 2 for a, b in zip((0.0, *_EDGES), (*_EDGES, 1.0), strict=True)])
_RECENT = 32
"""How many drafts of a request are kept one by one."""
_STALE = 16
"""Tokens observed from one look at the tables to the next."""
_PROPOSALS = 64
"""Proposed tokens after which the mean chance at a position has mostly forgotten earlier ones."""


@dataclass(frozen=True, kw_only=True)
class AcceptanceConfig:
    """How fast statistics follow what is observed. Strengths are in tokens."""

    prior: float = 0.7
    """Share of drafted tokens accepted, before any was proposed."""
    prior_strength: float = 4.0
    """Strength of the prior that a confidence is the probability of acceptance."""
    neighbour_strength: float = 8.0
    """Strength of the neighbouring bins' tokens as a prior of a bin."""
    request_strength: float = 8.0
    """Strength of all requests' record as a prior of one request's."""
    forgetting: float = 0.995
    """What a token in a bin still counts when the next one comes."""
    request_forgetting: float = 0.97
    """What a request's own observation still counts at its next one."""


@dataclass(slots=True)
class _RequestRecord:
    """One request's tokens, and how many of them all requests' record had promised."""

    trials: float = 0.0
    hits: float = 0.0
    promised: float = 0.0
    proposed: float = 0.0
    offered: float = 0.0
    usual: float = 0.0
    recent: deque[tuple[int, int]] = field(default_factory=lambda: deque(maxlen=_RECENT))


class AcceptanceModel:
    """Acceptance by position, confidence and request.

    A position is observed only where all earlier ones of its draft were accepted, so what is
    learned are conditional probabilities; survival is their running product. All requests share a
    table by position and confidence. A request that does better or worse than the table says
    multiplies the odds of all its tokens.

    Verified tokens are chosen for their confidence, and do better than those that a drafter would
    propose next. So what is expected of the next ones is the mean chance of all that were proposed.
    """

    def __init__(self, config: AcceptanceConfig | None = None) -> None:
        self._config = config or AcceptanceConfig()
        shape = len(_POSITIONS), len(_MIDDLES)
        self._trials = np.zeros(shape).tolist()
        self._hits = np.zeros(shape).tolist()
        self._proposed = [0] * len(_POSITIONS)
        self._chances = [self._config.prior] * len(_POSITIONS)
        self._records: dict[Hashable, _RequestRecord] = {}
        self._stale = 0
        self._refresh()

    def survival(self, key: Hashable, confidences: Sequence[float]) -> tuple[float, ...]:
        """Probability that the first i+1 drafted tokens are all accepted, for each i.

        Args:
            key: The request.
            confidences: The drafter's, for each drafted token, 0 to 1.
        """
        factor = self._factor(key)
        against = [
            self._against[_position(i)][bisect_right(_EDGES, confidence)]
            for i, confidence in enumerate(confidences)
        ]
        return _running_product(against, factor)

    def expected(self, key: Hashable, length: int) -> tuple[float, ...]:
        """The same for ``length`` tokens that are not drafted yet."""
        against = [1 / self.chance(i) - 1 for i in range(length)]
        return _running_product(against, self._factor(key) * self._offer(key))

    def chance(self, i: int) -> float:
        """Chance that a token drafted next at place ``i`` is right, if those before it are."""
        return self._chances[_position(i)]

    def propose(self, key: Hashable, confidences: Sequence[float]) -> None:
        """A draft was made for a request, whatever of it will be verified."""
        if not confidences:
            return
        record, keep = (
            self._records.setdefault(key, _RequestRecord()),
            self._config.request_forgetting,
        )
        for i, confidence in enumerate(confidences):
            position = _position(i)
            chance = 1 / (1 + self._against[position][bisect_right(_EDGES, confidence)])
            record.proposed = record.proposed * keep + 1
            record.offered = record.offered * keep + chance
            record.usual = record.usual * keep + self._chances[position]
            self._proposed[position] += 1
            share = 1 / min(self._proposed[position], _PROPOSALS)
            self._chances[position] += share * (chance - self._chances[position])

    def observe(self, key: Hashable, confidences: Sequence[float], accepted: int) -> None:
        """A draft was verified.

        Args:
            key: The request.
            confidences: The drafter's, of the tokens that were verified.
            accepted: How many of them, from the first on, were accepted.

        Raises:
            ValueError: more tokens are accepted than there are.
        """
        if not 0 <= accepted <= len(confidences):
            raise ValueError(
                f"accepted must be 0 to {len(confidences)}, the tokens of the draft; got {accepted}"
            )
        if not confidences:
            return
        record = self._records.setdefault(key, _RequestRecord())
        record.recent.append((len(confidences), accepted))
        for i, confidence in enumerate(confidences[: accepted + 1]):
            self._count(record, _position(i), bisect_right(_EDGES, confidence), i < accepted)
            self._stale += 1
        if self._stale >= _STALE:
            self._refresh()

    def recent(self, key: Hashable) -> tuple[tuple[int, int], ...]:
        """A request's last drafts, at most 32, the latest one last: (drafted, accepted) tokens."""
        record = self._records.get(key)
        return tuple(record.recent) if record else ()

    def forget(self, key: Hashable) -> None:
        """The request has ended: drop its record. What all share stays."""
        self._records.pop(key, None)

    def _count(self, record: _RequestRecord, position: int, bin: int, hit: bool) -> None:
        keep, request_keep = self._config.forgetting, self._config.request_forgetting
        trials, hits = self._trials[position], self._hits[position]
        trials[bin] = trials[bin] * keep + 1
        hits[bin] = hits[bin] * keep + hit
        record.trials = record.trials * request_keep + 1
        record.hits = record.hits * request_keep + hit
        promised = 1 / (1 + self._against[position][bin])
        record.promised = record.promised * request_keep + promised

    def _factor(self, key: Hashable) -> float:
        """By how much the request's odds against acceptance differ from all requests'.

        Both shares are means of Beta posteriors under the same prior, so that a short record
        changes little.
        """
        record = self._records.get(key)
        if record is None:
            return 1.0
        return self._odds_ratio(record.trials, record.hits, record.promised)

    def _offer(self, key: Hashable) -> float:
        """By how much what is proposed to the request is less likely than what is to all."""
        record = self._records.get(key)
        if record is None:
            return 1.0
        return self._odds_ratio(record.proposed, record.offered, record.usual)

    def _odds_ratio(self, count: float, sum: float, of_all: float) -> float:
        half = self._config.request_strength / 2
        own = (count - sum + half) / (sum + half)
        return own * (of_all + half) / (count - of_all + half)

    def _refresh(self) -> None:
        """Bring the tables of the odds against acceptance up to date."""
        config = self._config
        trials, hits = np.array(self._trials), np.array(self._hits)
        elsewhere = hits.sum(0) - hits, trials.sum(0) - trials
        prior = _posterior(*elsewhere, _MIDDLES, config.prior_strength)
        self._against: list[list[float]] = self._odds_against(hits, trials, prior).tolist()
        self._stale = 0

    def _odds_against(self, hits: Floats, trials: Floats, prior: Floats) -> Floats:
        """Each bin's odds against acceptance; its prior are the neighbouring bins, whose prior is
        ``prior``."""
        strength = self._config.neighbour_strength
        near = _posterior(_around(hits) - hits, _around(trials) - trials, prior, strength)
        share = np.clip(_posterior(hits, trials, near, strength), LEAST, MOST)
        return np.asarray((1 - share) / share)


def _position(i: int) -> int:
    return bisect_right(_POSITIONS, i) - 1


def _posterior(
    hits: Floats | float, trials: Floats | float, prior: Floats | float, strength: float
) -> Floats:
    """Mean of a Beta posterior."""
    return np.asarray((hits + strength * prior) / (trials + strength))


def _around(counts: Floats) -> Floats:
    """Sums over each bin and the bins beside it."""
    for axis in (0, 1):
        padded = np.pad(counts, [(1, 1) if a == axis else (0, 0) for a in (0, 1)])
        size = counts.shape[axis]
        counts = sum((padded.take(range(i, i + size), axis) for i in range(3)), np.zeros(()))
    return counts


def _running_product(against: Sequence[float], factor: float) -> tuple[float, ...]:
    """Survival from each token's odds against its acceptance, times a factor of them all."""
    survival, product = [], 1.0
    for odds in against:
        product *= min(max(1 / (1 + odds * factor), LEAST), MOST)
        survival.append(product)
    return tuple(survival)
