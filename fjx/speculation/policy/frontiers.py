"""How many frontiers of a draft are verified at once: whether it pays not to wait for an answer."""

from __future__ import annotations

from fjx.speculation.policy.mean import ForgettingMean

_MEMORY = 32
"""Observations after which an average has mostly forgotten what was before."""
_TRUSTED = 8
"""Steps of a depth that make its measured time trusted."""
_LEAST_GAIN = 0.03
"""Expected of a depth before it is tried, as a share of the time."""
_RETRY = 512
"""Steps after which a depth that did not pay is tried again."""


class FrontierDepth:
    """Chooses how many steps may be under way when drafts are in them.

    With a depth of 1 each step is read before the next one is drafted for and sent. With a depth of
    d, d - 1 steps are still unread then: drafting, and the host's work, hide behind them, and in a
    pipeline successive frontiers of a request are in successive stages. But a wrong token makes
    void what was sent behind it, so that its request waits d - 1 steps longer for the right one.

    So where a share q of the frontiers proves right as a whole, and steps come at intervals of
    t(d), a token costs in proportion to ``t(d) * (1 + (d - 1) * (1 - q))``. Intervals are measured
    against what a step of that size takes by itself; where a depth was not tried yet, it is taken
    to hide all of the drafting, and tried if that would pay.
    """

    def __init__(self, deepest: int, stages: int = 1) -> None:
        """
        Args:
            deepest: most steps under way at once; 1: never more than one.
            stages: of the target, which can work at different steps at once.
        """
        self.deepest = deepest
        self.stages = stages
        self._depth = 1
        self._right, self._hits = ForgettingMean(_MEMORY, 0.5), ForgettingMean(_MEMORY, 0.5)
        self._drafting = ForgettingMean(_MEMORY)
        self._intervals: dict[int, ForgettingMean] = {1: ForgettingMean(_MEMORY, 1.0)}
        self._since_tried = 0

    @property
    def depth(self) -> int:
        """Steps that may be under way now."""
        return self._depth

    def observe_frontier(self, drafted: int, accepted: int) -> None:
        """A step verified ``drafted`` tokens of a request, of which ``accepted`` were right."""
        self._right.add(accepted == drafted)
        self._hits.add(accepted / drafted)

    def observe_step(self, seconds: float, alone: float, drafting: float) -> None:
        """A step was read ``seconds`` after the one before.

        Args:
            seconds: between the two.
            alone: what such a step takes, as far as is known, where nothing hides behind another.
            drafting: what the host spent on drafting in between.
        """
        if alone <= 0 or self.deepest == 1:
            return
        self._intervals.setdefault(self._depth, ForgettingMean(_MEMORY, 1.0)).add(seconds / alone)
        if self._depth == 1:
            self._drafting.add(drafting / alone)
        self._since_tried += 1
        if self._since_tried > _RETRY:
            self._since_tried = 0
            # That of the depth in use is no guess: it goes on being measured.
            self._intervals = {each: self._intervals[each] for each in {1, self._depth}}
        if self._intervals[self._depth].count >= _TRUSTED or self._depth == 1:
            self._choose()

    def _choose(self) -> None:
        costs = {depth: self._cost(depth) for depth in range(1, self.deepest + 1)}
        best = min(costs, key=lambda depth: costs[depth])
        if costs[best] < (1 - _LEAST_GAIN) * costs[1]:
            self._depth = best
        else:
            self._depth = 1

    def _cost(self, depth: int) -> float:
        """Cost of a token at a depth, in proportion to other depths."""
        return self._interval(depth) * (1 + (depth - 1) * (1 - self._chance_of_right()))

    def _chance_of_right(self) -> float:
        # With a depth of 1 the token behind the draft is not drafted, and would have to be right.
        return self._right.value * (self._hits.value if self._depth == 1 else 1.0)

    def _interval(self, depth: int) -> float:
        known = self._intervals.get(depth)
        if known is not None and (depth == 1 or known.count >= _TRUSTED):
            return known.value
        alone = self._intervals[1].value
        hidden = max((alone - self._drafting.value) / min(depth, self.stages), 0.0)
        return max(hidden, self._drafting.value)
