"""Which KV pages are still to be copied while steps go on writing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


class DirtyPages:
    """Pages to copy, those that were not written for the longest time first.

    A page that is being filled is written in every step: copying it early is for nothing.
    """

    def __init__(self, pages: Iterable[int]) -> None:
        # A dictionary keeps the order: whatever is written goes to its end.
        self._left: dict[int, None] = dict.fromkeys(pages)
        self._first = set(self._left)
        self.total = len(self._left)
        """Pages that had to be copied at the beginning."""
        self.written_last = 0
        """Pages written since this was last set to 0: by one step, as a rule."""

    def __len__(self) -> int:
        """Pages that are left to copy."""
        return len(self._left)

    def wrote(self, pages: Sequence[int]) -> None:
        """A step writes these pages."""
        for page in pages:
            self._left.pop(page, None)
            self._left[page] = None
        self.written_last += len(pages)

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
