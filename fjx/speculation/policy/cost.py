"""How long a step takes, learned from the steps that ran."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_FORGETTING = 0.98
"""What an observation of a knot still counts at the next one."""
_CONTEXT_DOUBT = 10.0
"""Every step also counts as a weak observation that context costs nothing: it leaves the whole
effect of the context as uncertain as this many times the noise. Context grows slowly and alike in
all steps; without this, its price would be learned from chance."""
_NOISE, _LEAST_NOISE, _NOISE_RATE = 0.1, 0.03, 0.02
"""Relative deviation of a step's time: at first, at least, and how fast its square is learned."""
_CLIP = 3.0
"""Deviations are cut off at this many times what is to be expected."""
_SURPRISES = 3
"""After this many cut-off deviations of one knot in a row, all up or all down, its cost counts as
changed, and is learned anew."""
_TRUSTED = 1.5
"""Observations of a knot that make it trusted: the first run of a program is often slow."""
_CONTEXT_TOKENS = 65536.0
"""Tokens of context that are taken to add about the cost of a step, at most, before any is
observed."""
_OFTEN, _EVERY = 24, 6
"""Observations of a size after which only every few of them are taken: each costs time itself."""
_UNKNOWN_SECONDS = 1e-3
"""Of a step, before any is observed; only its growth with the rows can matter."""


class CostModel:
    """Seconds of a step by its rows and the context tokens of its requests.

    Piecewise linear in the rows, with knots at the given sizes, plus a linear term for the context;
    fitted by recursive least squares that forget. Where no knot was observed, costs are
    interpolated, or continued with the mean slope of those that were; from a single one, half of
    its cost is taken to be fixed and half to grow with the rows.
    """

    def __init__(self, knots: Sequence[int], *, padded: bool = False) -> None:
        """Start without knowledge.

        Args:
            knots: Numbers of rows, increasing.
            padded: Whether steps are padded to the next knot, so that the cost is a staircase.

        Raises:
            ValueError: the knots do not increase, or there are none.
        """
        self._knots = np.asarray(knots, dtype=np.float64)
        if not len(knots) or knots[0] < 1 or np.any(np.diff(self._knots) <= 0):
            raise ValueError(f"knots must be increasing numbers of rows, got {list(knots)}")
        self._padded = padded
        size = len(self._knots) + 1  # the last coefficient is the context's
        self._coefficients = np.zeros(size)
        self._covariance = np.zeros((size, size))
        self._widest = np.zeros(size)
        self._visits = np.zeros(size - 1)
        self._surprises = np.zeros(size - 1, dtype=int)
        self._noise = _NOISE**2
        self._read: Floats | None = None
        self._offered: Counter[int] = Counter()

    @property
    def known(self) -> bool:
        """Whether anything was observed."""
        return bool(self._visits.any())

    def knows(self, rows: int) -> bool:
        """Whether steps of about ``rows`` rows were observed more than once."""
        return bool(np.all(self._visits[self._weights(rows) > 0] >= _TRUSTED))

    def offer(self, rows: int, context: float, seconds: float) -> None:
        """`observe`, but of sizes that were observed often only now and then. A step that took no
        time was read together with the one before, because the host came late: it says nothing."""
        if seconds <= 0:
            return
        self._offered[rows] += 1
        if self._offered[rows] <= _OFTEN or self._offered[rows] % _EVERY == 0:
            self.observe(rows, context, seconds)

    def observe(self, rows: int, context: float, seconds: float) -> None:
        """Learn from a step of ``rows`` rows over ``context`` tokens of context that took
        ``seconds``.

        Raises:
            ValueError: a step without rows, or a time that is not above 0.
        """
        if rows < 1 or not 0 < seconds < math.inf:
            raise ValueError(f"a step of {rows} rows cannot take {seconds} seconds")
        weights = self._weights(rows)
        active = np.flatnonzero(weights)
        for knot in active[self._visits[active] == 0].tolist():
            self._meet(knot, seconds, rows)
        self._forget(active)
        features = np.append(weights, context / _CONTEXT_TOKENS)
        deviation = self._clipped(seconds, features, int(weights.argmax()))
        noise = self._noise * self._predicted(features) ** 2
        self._update(features, deviation, noise)
        if context > 0:
            self._doubt_context(float(features[-1]), noise)
        self._visits += weights
        self._read = None

    def seconds(self, rows: int, context: float) -> float:
        """Expected seconds of a step of ``rows`` rows over ``context`` tokens; 0 without rows."""
        return float(self._by_rows(rows)[rows] + self._context_price * context) if rows else 0.0

    def row_seconds(self, max_rows: int, context: float | Floats) -> Floats:
        """`seconds` of each number of rows, 0 to ``max_rows``: never decreasing for one context.

        Args:
            max_rows: The last index.
            context: Tokens; an array gives each number of rows its own.
        """
        seconds = self._by_rows(max_rows)[: max_rows + 1] + self._context_price * context
        seconds[0] = 0.0
        return np.asarray(seconds, dtype=np.float64)

    @property
    def _context_price(self) -> float:
        return max(float(self._coefficients[-1]), 0.0) / _CONTEXT_TOKENS

    def _by_rows(self, max_rows: int) -> Floats:
        """Seconds without context by rows, up to ``max_rows`` at least; kept until the next
        observation."""
        if self._read is None or len(self._read) <= max_rows:
            size = np.arange(max_rows + 1, dtype=np.float64)
            if self._padded:
                above = np.searchsorted(self._knots, size)
                size = np.where(above < len(self._knots), np.append(self._knots, 0)[above], size)
            self._read = _continued(size, self._knots, np.maximum.accumulate(self._knot_seconds()))
        return self._read

    def _knot_seconds(self) -> Floats:
        """Each knot's seconds without context, where need be from the others'."""
        if not self.known:
            return np.asarray(_UNKNOWN_SECONDS * (1 + self._knots / self._knots[-1]))
        trusted = self._visits >= min(_TRUSTED, self._visits.max())
        least = 1e-3 * self._coefficients[:-1].max()
        values = np.maximum(self._coefficients[:-1][trusted], least)
        return _continued(self._knots, self._knots[trusted], values)

    def _weights(self, rows: int) -> Floats:
        """The weight of each knot in the cost of ``rows`` rows."""
        weights = np.zeros(len(self._knots))
        size = min(max(float(rows), self._knots[0]), self._knots[-1])
        above = int(np.searchsorted(self._knots, size))
        weights[above] = 1.0
        if not self._padded and self._knots[above] != size:
            below = self._knots[above - 1]
            weights[above] = (size - below) / (self._knots[above] - below)
            weights[above - 1] = 1 - weights[above]
        return weights

    def _meet(self, knot: int, seconds: float, rows: int) -> None:
        """Begin to learn the cost of a knot, from what is known of the others."""
        if self.known:
            guess = float(self._knot_seconds()[knot])
        else:
            guess = seconds * (1 + self._knots[knot] / rows) / 2
            self._widest[-1] = self._covariance[-1, -1] = seconds**2
        self._coefficients[knot] = guess
        self._learn_anew(knot, max(guess, seconds))

    def _learn_anew(self, knot: int, scale: float) -> None:
        self._covariance[knot, :] = self._covariance[:, knot] = 0.0
        self._covariance[knot, knot] = self._widest[knot] = scale**2
        self._surprises[knot] = 0

    def _forget(self, active: NDArray[np.intp]) -> None:
        """Widen what is known of the active coefficients only, and no further than at first."""
        wider = np.ones(len(self._widest))
        wider[active] = wider[-1] = _FORGETTING**-0.5
        room = self._widest / np.maximum(np.diag(self._covariance), 1e-300)
        wider = np.minimum(wider, np.maximum(np.sqrt(room), 1.0))
        self._covariance *= np.outer(wider, wider)

    def _update(self, features: Floats, deviation: float, noise: float) -> None:
        """One step of least squares: an observation of this variance deviates so much."""
        spread = self._covariance @ features
        variance = max(float(features @ spread), 0.0) + noise
        if variance > 0:
            self._coefficients += spread * (deviation / variance)
            self._covariance -= np.outer(spread, spread) / variance

    def _doubt_context(self, feature: float, noise: float) -> None:
        """Pull the price of the context to 0, weakly if it is positive."""
        price, variance = float(self._coefficients[-1]), float(self._covariance[-1, -1])
        only_context = np.zeros_like(self._coefficients)
        only_context[-1] = feature
        if price >= 0:
            self._update(only_context, -feature * price, noise * _CONTEXT_DOUBT**2)
        elif variance > 0:
            self._coefficients -= self._covariance[:, -1] * (price / variance)

    def _clipped(self, seconds: float, features: Floats, knot: int) -> float:
        """By how much a step took longer than expected, if that is not an outlier."""
        predicted = self._predicted(features)
        deviation = seconds - predicted
        noise = self._noise * predicted**2
        spread = max(float(features @ self._covariance @ features), 0.0)
        bound = _CLIP * math.sqrt(spread + noise)
        settling = self._visits[knot] < _TRUSTED and deviation < 0
        if abs(deviation) > bound:
            way = 1 if deviation > 0 else -1
            same = self._surprises[knot] * way > 0
            self._surprises[knot] = (self._surprises[knot] if same else 0) + way
            if settling or abs(self._surprises[knot]) >= _SURPRISES:
                self._learn_anew(knot, max(seconds, predicted))
                return deviation
            deviation = bound * way
        else:
            self._surprises[knot] = 0
        if not settling and predicted > 0:
            relative = (deviation / predicted) ** 2 - self._noise
            self._noise = max(self._noise + _NOISE_RATE * relative, _LEAST_NOISE**2)
        return deviation

    def _predicted(self, features: Floats) -> float:
        return max(float(features @ self._coefficients), 0.0)


def _continued(rows: Floats, knots: Floats, values: Floats) -> Floats:
    """Interpolate; beyond the ends, go on with the mean slope, at most in proportion to rows."""
    first, last = knots[0], knots[-1]
    if len(knots) == 1:
        slope = values[0] / first / 2
    else:
        slope = (values[-1] - values[0]) / (last - first)
        slope = min(max(slope, 0.0), values[-1] / last)
    inner = np.interp(rows, knots, values)
    below = np.maximum(values[0] - slope * (first - rows), values[0] * rows / first)
    above = values[-1] + slope * (rows - last)
    return np.where(rows < first, below, np.where(rows > last, above, inner))
