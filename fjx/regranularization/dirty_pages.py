"""Which KV pages are still to be copied while steps go on writing."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence


class DirtyPages:
    """Pages to copy, those that were not written for the longest time first.

    A page that is being filled is written in every step of its group of the requests: copying it
    early is for nothing.
    """

    def __init__(self, pages: Iterable[int], num_groups: int = 1) -> None:
        """
        Args:
            pages: what must be copied.
            num_groups: of the requests, whose steps take turns.
        """
        # A dictionary keeps the order: whatever is written goes to its end.
        self._left: dict[int, None] = dict.fromkeys(pages)
        self._first = set(self._left)
        self.total = len(self._left)
        """Pages that had to be copied at the beginning."""
        self._num_groups = num_groups
        self._written: deque[int] = deque()
        """Pages of each of the last steps."""
        self._new = 0
        """Steps since someone has asked."""

    def __len__(self) -> int:
        """Pages that are left to copy."""
        return len(self._left)

    def wrote(self, pages: Sequence[int]) -> None:
        """A step writes these pages; empty where there was none."""
        for page in pages:
            self._left.pop(page, None)
            self._left[page] = None
        self._written.append(len(pages))
        self._new += 1

    def written_again(self) -> int:
        """How many pages will be dirty again after a step of each group: those that were written
        since this was last asked, or by the last step of each group."""
        while len(self._written) > max(self._new, self._num_groups):
            self._written.popleft()
        self._new = 0
        return sum(self._written)

    def take(self, count: int) -> list[int]:
        """Up to ``count`` pages, which count as copied from now on."""
        taken = [page for page, _ in zip(self._left, range(count), strict=False)]
        for page in taken:
            del self._left[page]
        return taken

    def first_time(self, page: int) -> bool:
        """Whether a page of the beginning is copied for the first time; ask once for each copy."""
        if page not in self._first:
            return False
        self._first.discard(page)
        return True
