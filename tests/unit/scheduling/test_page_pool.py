"""Pages are never lost, never held twice by accident, and found again by what they hold."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    precondition,
    rule,
)

from fjx.scheduling.page_pool import OutOfPagesError, PagePool, prefix_digests

PAGES, SIZE = 9, 4


def test_page_zero_is_never_handed_out() -> None:
    pool = PagePool(PAGES, SIZE)
    assert sorted(pool.take(PAGES - 1)) == list(range(1, PAGES))


def test_taking_too_many_takes_none() -> None:
    pool = PagePool(PAGES, SIZE)
    pool.take(5)
    with pytest.raises(OutOfPagesError):
        pool.take(4)
    assert pool.num_available == 3
    assert pool.usage == 5 / 8


def test_a_digest_covers_every_token_before_it() -> None:
    tokens = list(range(4 * SIZE + 3))
    digests = prefix_digests(tokens, SIZE)
    assert len(digests) == 4
    changed = prefix_digests([99, *tokens[1:]], SIZE)
    assert not set(digests) & set(changed)
    late_change = prefix_digests([*tokens[: 2 * SIZE], 99, *tokens[2 * SIZE + 1 :]], SIZE)
    assert [a == b for a, b in zip(digests, late_change, strict=True)] == [True, True, False, False]


def test_digests_can_be_continued_from_known_ones() -> None:
    tokens = np.random.default_rng(0).integers(0, 50_000, 37).tolist()
    digests = prefix_digests(tokens, SIZE)
    for known in range(len(digests) + 1):
        assert prefix_digests(tokens, SIZE, digests[:known]) == digests


def test_a_given_back_prefix_is_found_again_and_others_are_not() -> None:
    pool = PagePool(PAGES, SIZE)
    digests = prefix_digests(list(range(3 * SIZE)), SIZE)
    pages = pool.take(3)
    for page, digest in zip(pages, digests, strict=True):
        pool.share(page, digest)
    pool.give_back(pages)
    assert pool.num_available == PAGES - 1
    assert pool.find_prefix(digests) == pages
    assert pool.find_prefix(prefix_digests([7] * 12, SIZE)) == []
    pool.check([pages])


def test_the_end_of_the_least_recently_used_prefix_is_evicted_first() -> None:
    pool = PagePool(7, SIZE)
    old, young = (prefix_digests([i] * 3 * SIZE, SIZE) for i in (1, 2))
    pages = {}
    for name, digests in (("old", old), ("young", young)):
        pages[name] = pool.take(3)
        for page, digest in zip(pages[name], digests, strict=True):
            pool.share(page, digest)
    pool.give_back(pages["old"])
    pool.give_back(pages["young"])
    taken = pool.take(2)
    assert taken == [pages["old"][2], pages["old"][1]]
    assert pool.find_prefix(old) == pages["old"][:1]
    assert pool.find_prefix(young) == pages["young"]


def test_a_held_page_is_never_evicted() -> None:
    pool = PagePool(4, SIZE)
    (digest,) = prefix_digests([1] * SIZE, SIZE)
    (page,) = pool.take(1)
    pool.share(page, digest)
    assert pool.find_prefix([digest]) == [page]
    pool.give_back([page])
    pool.take(2)
    with pytest.raises(OutOfPagesError):
        pool.take(1)
    assert pool.find_prefix([digest]) == [page]


def test_without_sharing_nothing_is_found() -> None:
    pool = PagePool(4, SIZE, share_prefixes=False)
    pages = pool.take(1)
    pool.share(pages[0], b"x")
    pool.give_back(pages)
    assert pool.find_prefix([b"x"]) == []


@pytest.mark.parametrize("wrong", [[], [[1]], [[1, 2, 3]], [[1, 2], [2]]])
def test_the_audit_finds_wrong_books(wrong: list[list[int]]) -> None:
    pool = PagePool(4, SIZE)
    assert sorted(pool.take(2)) == [1, 2]
    with pytest.raises(AssertionError):
        pool.check(wrong)


class Pool(RuleBasedStateMachine):
    """Requests hold lists of pages whose contents this machine remembers."""

    holdings = Bundle("holdings")

    def __init__(self) -> None:
        super().__init__()
        self.pool = PagePool(PAGES, SIZE)
        self.held: list[list[int]] = []
        self.contents: dict[int, bytes] = {}
        self.released: list[int] = []
        """Pages with known contents that nobody holds, least recently used first."""

    @rule(target=holdings, stem=st.integers(0, 2), count=st.integers(1, 5))
    def compute_a_prompt(self, stem: int, count: int) -> list[int]:
        digests = prefix_digests([stem] * count * SIZE, SIZE)
        found = self.pool.find_prefix(digests)
        assert [self.contents[page] for page in found] == digests[: len(found)]
        self.released = [page for page in self.released if page not in found]
        pages = list(found)
        self.held.append(pages)
        needed = count - len(found)
        available = PAGES - 1 - len({page for pages in self.held for page in pages})
        try:
            taken = self.pool.take(needed)
        except OutOfPagesError:
            assert needed > available
            return pages
        assert needed <= available
        pages += taken
        evicted = [page for page in taken if page in self.released]
        assert evicted == self.released[: len(evicted)], "eviction is not least recently used first"
        self.released = self.released[len(evicted) :]
        known = {digest for page, digest in self.contents.items() if page not in taken}
        for page in taken:
            self.contents.pop(page, None)
        for page, digest in zip(taken, digests[len(found) :], strict=True):
            self.pool.share(page, digest)
            if digest not in known:  # else another page is already known by it
                self.contents[page] = digest
        return pages

    @rule(pages=consumes(holdings))
    def finish(self, pages: list[int]) -> None:
        index = next(i for i, each in enumerate(self.held) if each is pages)
        del self.held[index]
        self.pool.give_back(pages)
        still_held = {page for each in self.held for page in each}
        self.released += [
            page for page in reversed(pages) if page in self.contents and page not in still_held
        ]

    @precondition(lambda self: not self.held)
    @rule()
    def forget(self) -> None:
        self.pool.forget_cached()
        self.contents, self.released = {}, []
        assert self.pool.pages_in_use() == []

    @invariant()
    def no_page_is_lost(self) -> None:
        self.pool.check(self.held)
        used = {page for pages in self.held for page in pages}
        assert 0 not in used
        assert self.pool.num_available == PAGES - 1 - len(used)


TestPool = Pool.TestCase
TestPool.settings = settings(max_examples=60, stateful_step_count=30, derandomize=True)


def test_pages_that_were_given_back_are_taken_before_those_that_were_never_used() -> None:
    pool = PagePool(num_pages=1000, page_size=16)
    first, second = pool.take(3), pool.take(5)
    assert pool.num_used == 1 + 3 + 5
    pool.give_back(first)
    pool.give_back(second)
    for _ in range(50):
        pool.give_back(pool.take(8))
    assert pool.num_used == 1 + 3 + 5
    pool.take(10)
    assert pool.num_used == 1 + 10
