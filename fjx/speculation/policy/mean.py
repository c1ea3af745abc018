"""A mean that forgets."""

from __future__ import annotations


class ForgettingMean:
    """The mean of the values added; of more than ``memory`` values, an exponentially weighted
    one."""

    def __init__(self, memory: int, value: float = 0.0) -> None:
        """
        Args:
            memory: values after which earlier ones are mostly forgotten.
            value: before the first one.
        """
        self.value = value
        self.count = 0
        """Values that were added."""
        self._memory = memory

    def add(self, value: float) -> None:
        """Take one more value."""
        self.count += 1
        self.value += (value - self.value) / min(self.count, self._memory)

    def discount(self, count: int) -> None:
        """Let what was added count as at most ``count`` values."""
        self.count = min(self.count, count)
