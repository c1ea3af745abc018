"""FASER's draft lengths: a Gaussian process over the lengths, for each request."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fjx.speculation.policy.allocation import Floats
from fjx.speculation.policy.view import LengthPolicy, RoundView, within

_PRIOR_TOKENS = 4.0
"""How many tokens the prior acceptance rate counts as."""


@dataclass(frozen=True, kw_only=True)
class Faser(LengthPolicy):
    """Each request takes the length that may cost it the least time per committed token.

    The "adaptive drafter" of FASER (Chen et al. 2026, arXiv:2604.20503), which names the parts but
    gives no formulas. For a candidate length k, the cost of a round is the time of the whole batch
    at that length, which all its requests share, over the request's committed tokens, relative to
    a step without drafts. The mean of the process is that cost at the acceptance rate of the
    request's last drafts; each of those is an observation at its length (under the costs of now);
    the choice is the length with the lowest lower confidence bound. Confidences are not used, it
    never goes below ``shortest``, and what is drafted is verified, or pruned within the
    verification: all as in the paper.
    """

    shortest: int = 2
    longest: int = 10
    window: int = 16
    """The last drafts of a request that count, at most 32."""
    optimism: float = 1.0
    """Standard deviations from the mean to the bound."""
    lengthscale: float = 2.0
    """Tokens over which costs resemble each other."""
    deviation: float = 0.2
    """Deviation of costs from the mean of the process."""
    noise: float = 0.5
    """Deviation of one draft's cost from the expected one."""
    prior: float = 0.7
    """Acceptance rate of a request without drafts."""

    @property
    def name(self) -> str:
        """See `LengthPolicy`."""
        return "faser"

    def draft_lengths(self, view: RoundView) -> list[int]:
        """The length of each request with the lowest bound on its cost."""
        if not view.requests:
            return []
        lengths = np.arange(self.shortest, self.longest + 1)
        costs = self._round_costs(view)
        drafts = [view.acceptance.recent(each.key)[-self.window :] for each in view.requests]
        owner = np.repeat(np.arange(len(drafts)), [len(each) for each in drafts])
        drafted, accepted = np.array(list(chain(*drafts)), dtype=np.int64).reshape(-1, 2).T
        at = np.clip(drafted, self.shortest, self.longest) - self.shortest
        hits = _sums(owner, accepted, len(drafts))
        misses = _sums(owner, accepted < drafted, len(drafts))
        means = self._mean_costs(hits, misses, costs)
        size, cell = means.size, owner * len(lengths) + at
        counts = _sums(cell, np.ones(len(cell)), size).reshape(means.shape)
        deviations = costs[at] / (1 + accepted) - means[owner, at]
        sums = _sums(cell, deviations, size).reshape(means.shape)
        shift, spread = self._posterior(lengths, counts, sums)
        bounds = means + shift - self.optimism * spread
        most = np.array([each.most for each in view.requests])
        bounds[(lengths > most[:, None]) & (lengths > self.shortest)] = np.inf
        chosen = np.minimum(lengths[bounds.argmin(axis=1)], most)
        return within(chosen.tolist(), view.max_rows)

    def _round_costs(self, view: RoundView) -> Floats:
        """Time of a round in which all requests have a length, over a step without drafts."""
        size = len(view.requests)
        lengths, seconds = np.arange(self.shortest, self.longest + 1), view.verify_seconds
        rows = np.minimum(view.base_rows + size * lengths, len(seconds) - 1)
        round_seconds = seconds[rows]
        if view.draft_seconds is not None:
            round_seconds = round_seconds + lengths * view.draft_seconds[size]
        return np.asarray(round_seconds / seconds[view.base_rows])

    def _mean_costs(self, accepted: Floats, rejected: Floats, costs: Floats) -> Floats:
        """Cost per committed token by request and length, ``[R, L]``, at each request's rate.

        Args:
            accepted: Tokens by request, ``[R]``.
            rejected: Tokens at which drafts ended, ``[R]``.
            costs: Of a round of each length, ``[L]``.
        """
        rate = (accepted + _PRIOR_TOKENS * self.prior) / (accepted + rejected + _PRIOR_TOKENS)
        powers = rate[:, None] ** np.arange(self.longest + 1)
        return np.asarray(costs / powers.cumsum(axis=1)[:, self.shortest :])

    def _posterior(
        self, lengths: NDArray[np.int_], counts: Floats, sums: Floats
    ) -> tuple[Floats, Floats]:
        """Mean and standard deviation of the process at all lengths.

        Args:
            lengths: ``[L]``.
            counts: Observations by request and length, ``[R, L]``.
            sums: Of the observations, less the mean of the process, ``[R, L]``.
        """
        distance = (lengths[:, None] - lengths) / self.lengthscale
        kernel = self.deviation**2 * np.exp(-(distance**2) / 2)
        root = np.sqrt(counts) / self.noise  # observations of a length have one mean
        scaled = root[:, :, None] * kernel
        system = np.eye(len(lengths)) + scaled * root[:, None, :]
        gain = np.linalg.solve(system, scaled)
        weighted = sums / np.maximum(np.sqrt(counts), 1) / self.noise
        mean = np.einsum("rij,ri->rj", gain, weighted)
        variance = self.deviation**2 - np.einsum("rij,rij->rj", gain, scaled)
        return mean, np.sqrt(np.maximum(variance, 0.0))


def _sums(group: NDArray[np.int_], values: NDArray[Any], groups: int) -> Floats:
    """Sum of each group's values."""
    return np.bincount(group, values, groups).astype(np.float64)
