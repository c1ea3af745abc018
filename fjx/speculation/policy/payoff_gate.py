"""Whether something pays that can be done in some steps and left out of others."""

from __future__ import annotations

from fjx.speculation.policy.mean import ForgettingMean

_MEMORY = 16
"""Observations after which a gate has mostly forgotten what was before."""
_OFTEN, _SELDOM = 16, 512
"""Steps from one trial to the next one: while it pays or is not known well, and at most."""


class PayoffGate:
    """Opens while what is behind it saves more than it costs, both measured.

    Now and then a step is a trial, whatever is known. In between, it is open while the savings are
    greater.
    """

    def __init__(self) -> None:
        self.savings = ForgettingMean(_MEMORY)
        """Seconds that it saves a step."""
        self.cost = ForgettingMean(_MEMORY)
        """Seconds that it takes a step."""
        self._wait, self._spacing = 1, _OFTEN

    @property
    def pays(self) -> bool:
        """Whether it is open."""
        return self.savings.count >= _MEMORY // 2 and self.savings.value > self.cost.value

    def is_trial(self) -> bool:
        """Count a step; whether it is a trial."""
        self._wait -= 1
        if self._wait > 0:
            return False
        self._wait = self._spacing
        return True

    def observe(self, savings: float, cost: float) -> None:
        """What a step has saved, or would have, and what that took, in seconds."""
        self.savings.add(savings)
        self.cost.add(max(cost, 0.0))
        if self.savings.count >= _MEMORY // 2:
            self._spacing = _OFTEN if self.pays else min(2 * self._spacing, _SELDOM)
