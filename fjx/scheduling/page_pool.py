"""The pages of KV memory: who holds which, and which full pages can be shared.

Page ids are logical: the same in every layer, granule, stage and plan. Page 0 is never handed out;
unused entries of page tables point at it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np


class OutOfPagesError(Exception):
    """No free page is left."""


@dataclass
class _Page:
    holders: int = 0
    digest: bytes | None = None


class PagePool:
    """Hands out pages, shares full ones by the hash of their token prefix, evicts old ones.

    A page is *held* (by one or more requests), *cached* (held by nobody, its contents may be found
    again), or *free*. Eviction takes cached pages in the order in which they were given back.
    """

    def __init__(self, num_pages: int, page_size: int, share_prefixes: bool = True) -> None:
        self.num_pages = num_pages
        self.page_size = page_size
        self.share_prefixes = share_prefixes
        self._pages = [_Page() for _ in range(num_pages)]
        self._free = list(range(num_pages - 1, 0, -1))
        self._cached: OrderedDict[int, None] = OrderedDict()
        self._by_digest: dict[bytes, int] = {}
        self._highest = 0

    @property
    def num_used(self) -> int:
        """Pages that were ever taken, page 0 among them. Those that were given back are taken
        before others, so that few pages are ever touched where little is cached."""
        return self._highest + 1

    @property
    def num_available(self) -> int:
        """Pages that can be taken now, cached ones included."""
        return len(self._free) + len(self._cached)

    @property
    def usage(self) -> float:
        """Share of pages held by requests, 0 to 1."""
        usable = self.num_pages - 1
        return (usable - self.num_available) / usable

    def pages_in_use(self) -> list[int]:
        """Pages that hold something: held by requests, or cached."""
        return [page for page, s in enumerate(self._pages) if s.holders or s.digest is not None]

    def take(self, count: int) -> list[int]:
        """Take pages with undefined contents.

        Raises:
            OutOfPagesError: fewer than ``count`` are available; none is taken then.
        """
        if count > self.num_available:
            raise OutOfPagesError
        return [self._take_one() for _ in range(count)]

    def give_back(self, pages: Sequence[int]) -> None:
        """Release one hold on each page. The last pages of a prefix are evicted first."""
        for page in reversed(pages):
            state = self._pages[page]
            state.holders -= 1
            if state.holders:
                continue
            if state.digest is None:
                self._free.append(page)
            else:
                self._cached[page] = None

    def forget_cached(self) -> None:
        """Forget what pages hold: nothing of it is found again. No page may be held."""
        self._free += self._cached
        self._cached.clear()
        for page in self._by_digest.values():
            self._pages[page] = _Page()
        self._by_digest.clear()

    def find_prefix(self, digests: Sequence[bytes]) -> list[int]:
        """Hold and return the pages of the longest known prefix of ``digests``."""
        found: list[int] = []
        for digest in digests:
            page = self._by_digest.get(digest)
            if page is None:
                break
            if self._pages[page].holders == 0:
                del self._cached[page]
            self._pages[page].holders += 1
            found.append(page)
        return found

    def share(self, page: int, digest: bytes) -> None:
        """Make a full page known by the digest of all tokens up to its end."""
        if self.share_prefixes and digest not in self._by_digest:
            self._by_digest[digest] = page
            self._pages[page].digest = digest

    def check(self, held: Sequence[Sequence[int]]) -> None:
        """Check that exactly the pages of ``held`` are held (an audit for idle time and tests).

        Raises:
            AssertionError: a page was leaked, freed twice, or is known by a digest that is not its
            own.
        """
        holders = np.zeros(self.num_pages, np.int64)
        for pages in held:
            np.add.at(holders, np.asarray(pages, np.int64), 1)
        assert [p.holders for p in self._pages] == holders.tolist(), "page holders differ"
        idle = sorted([*self._free, *self._cached])
        assert idle == [p for p in range(1, self.num_pages) if not holders[p]], "pages leaked"
        for digest, page in self._by_digest.items():
            assert self._pages[page].digest == digest, "page known by a foreign digest"

    def _take_one(self) -> int:
        if self._free:
            page = self._free.pop()
        else:
            page, _ = self._cached.popitem(last=False)
            digest = self._pages[page].digest
            assert digest is not None
            del self._by_digest[digest]
        self._pages[page] = _Page(holders=1)
        self._highest = max(self._highest, page)
        return page


def prefix_digests(
    tokens: Sequence[int], page_size: int, known: Sequence[bytes] = (), salt: str = ""
) -> list[bytes]:
    """Digests of all full pages of ``tokens``, each over every token up to its page's end.

    ``known`` are digests of the first pages, computed before. Only texts of the same ``salt`` have
    digests in common.
    """
    digests = list(known)
    full = len(tokens) // page_size
    parent = digests[-1] if digests else salt.encode("utf-8", "surrogatepass")
    for start in range(len(digests) * page_size, full * page_size, page_size):
        page = np.asarray(tokens[start : start + page_size], np.int32).tobytes()
        parent = blake2b(parent + page, digest_size=16).digest()
        digests.append(parent)
    return digests
