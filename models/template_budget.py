"""What one rendering of a chat template may cost, counted as it goes.

Counted and not timed, so that a template renders, or is refused, alike on a busy machine.
"""

from __future__ import annotations

import sys
from collections.abc import ItemsView, Iterator, KeysView, Mapping, ValuesView
from contextvars import ContextVar
from typing import Any

MAX_STEPS = 500_000
"""Loop turns, branches, calls, filters and operators, of one to three microseconds each."""
BYTES_A_STEP = 1024
"""What an operation reads of its operands counts as steps, too."""
MAX_VALUE_BYTES = 4 << 20
"""Of one value, beside what the conversation itself has. One operation reads it without a turn for
other threads: some 20 ms at most."""
MAX_MADE_BYTES = 64 << 20
"""Of all values made, the output among them, beside some multiples of the conversation."""
_MADE_PER_INPUT_BYTE = 16
ENTRY_BYTES = 64
"""Of a container's entry, or of an object that JSON does not have."""

_FLAT = frozenset({str, bytes, int, float, bool, type(None)})
_CONTAINERS = frozenset({list, tuple, dict, set, frozenset})
_OTHER_CONTAINERS = (Mapping, KeysView, ValuesView, ItemsView, list, tuple)


class TemplateLimitError(Exception):
    """A template takes too long or makes too much."""


class Budget:
    """The steps and bytes that one rendering has left.

    Args:
        given: what the template gets; its size is allowed beside the limits.
    """

    def __init__(self, given: Any = None) -> None:
        # Containers that were weighed, by id; the reference keeps the id from being given again.
        self._weights: dict[int, tuple[int, Any]] = {}
        self._steps = self._made = 0
        self._max_value = self._max_made = sys.maxsize
        size = self.weigh(given)
        self._max_value = MAX_VALUE_BYTES + size
        self._max_made = MAX_MADE_BYTES + _MADE_PER_INPUT_BYTE * size

    def step(self, size: int = 0) -> None:
        """Spend a step, and more for the ``size`` bytes that it reads."""
        self._steps += 1 + size // BYTES_A_STEP
        if self._steps > MAX_STEPS:
            raise TemplateLimitError(f"it takes more than {MAX_STEPS:,} steps")

    def read(self, *values: Any) -> None:
        """An operation looks at all that these values hold."""
        size = 0
        for value in values:
            size += self.weigh(value)
        self.step(size)

    def make(self, size: int) -> None:
        """A value of ``size`` bytes is about to be made."""
        if size > self._max_value:
            raise TemplateLimitError(f"it makes a value of more than {self._max_value:,} bytes")
        self._made += size
        if self._made > self._max_made:
            raise TemplateLimitError(f"it makes more than {self._max_made:,} bytes in all")

    def made(self, value: Any) -> Any:
        """A value was made, by an operation that cannot make much more than it reads."""
        kind = type(value)
        if kind in _FLAT:
            self.make(sys.getsizeof(value))
        elif kind is not range:  # which holds nothing
            self.weigh(value)
            self.make(shallow_size(value))
        return value

    def counted(self, values: Iterator[Any]) -> Iterator[Any]:
        """Pass values on, and spend a step for each."""
        for value in values:
            self.step()
            yield value

    def weigh(self, value: Any) -> int:
        """Bytes of a value with all that it holds, as often as it holds it.

        That is what it is written out as, however little memory its shared parts take.
        """
        kind = type(value)
        if kind in _FLAT:
            return sys.getsizeof(value)
        if kind not in _CONTAINERS and not isinstance(value, _OTHER_CONTAINERS):
            return shallow_size(value)
        known = self._weights.get(id(value))
        if known is not None:
            return known[0]
        total = shallow_size(value)
        items = (*value.keys(), *value.values()) if isinstance(value, Mapping) else value
        for item in items:
            total += self.weigh(item)
        if total > self._max_value:
            raise TemplateLimitError(f"it makes a value of more than {self._max_value:,} bytes")
        self._weights[id(value)] = total, value
        return total


def shallow_size(value: Any) -> int:
    """Bytes of a value without what its entries hold."""
    kind = type(value)
    if kind in _FLAT:
        return sys.getsizeof(value)
    if kind in _CONTAINERS or kind is range:
        return ENTRY_BYTES * (1 + len(value))
    if isinstance(value, str):
        return sys.getsizeof(value)
    if isinstance(value, _OTHER_CONTAINERS):
        return ENTRY_BYTES * (1 + len(value))
    return ENTRY_BYTES


BUDGET: ContextVar[Budget | None] = ContextVar("chat template budget", default=None)
"""Of the rendering under way in this thread or task."""


def budget() -> Budget:
    """The budget of the rendering under way; a fresh one outside, such as while compiling."""
    return BUDGET.get() or Budget()
