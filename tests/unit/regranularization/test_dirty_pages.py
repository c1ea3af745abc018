"""Every page is copied after it was written for the last time, and bytes are counted once."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fjx.regranularization.dirty_pages import DirtyPages

PAGES = st.integers(1, 12)
EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.lists(PAGES, max_size=5)),
        st.tuples(st.just("copy"), st.integers(0, 8)),
    ),
    max_size=30,
)


@given(first=st.sets(PAGES), events=EVENTS)
def test_the_copy_ends_with_what_was_written_last(first: set[int], events: list) -> None:
    """Contents are numbers that grow with each write; a copy takes those of its moment."""
    memory = dict.fromkeys(first, 0)
    copies: dict[int, int] = {}
    dirty = DirtyPages(first)
    for clock, (what, argument) in enumerate(events, start=1):
        if what == "write":
            memory |= dict.fromkeys(argument, clock)
            dirty.wrote(argument)
        else:
            taken = dirty.take(argument)
            assert len(taken) == len(set(taken)) <= argument
            copies |= {page: memory[page] for page in taken}
    copies |= {page: memory[page] for page in dirty.take(len(dirty))}
    assert len(dirty) == 0
    assert copies == memory


@given(first=st.sets(PAGES), events=EVENTS)
def test_each_page_of_the_beginning_is_copied_for_the_first_time_once(
    first: set[int], events: list
) -> None:
    dirty = DirtyPages(first)
    assert dirty.total == len(dirty) == len(first)
    copied_first: list[int] = []
    for what, argument in [*events, ("copy", 100)]:
        if what == "write":
            dirty.wrote(argument)
        else:
            copied_first += [page for page in dirty.take(argument) if dirty.first_time(page)]
    assert sorted(copied_first) == sorted(first)


def test_pages_that_rest_are_copied_before_those_that_are_being_filled() -> None:
    dirty = DirtyPages([1, 2, 3, 4])
    dirty.wrote([2, 7])
    assert dirty.take(3) == [1, 3, 4]
    dirty.wrote([2])
    assert dirty.take(9) == [7, 2]


def test_the_writes_since_the_last_look_are_counted() -> None:
    dirty = DirtyPages([1])
    dirty.wrote([1, 2])
    dirty.wrote([2])
    assert dirty.written_again() == 3
    dirty.wrote([])
    assert dirty.written_again() == 0


def test_pages_that_other_parts_are_filling_are_left_for_the_switch() -> None:
    dirty = DirtyPages([1, 2, 3, 7], num_groups=3)
    left = []
    for turn in range(8):
        dirty.wrote([1 + turn % 3])
        written = dirty.written_again()
        dirty.take(max(len(dirty) - written, 0))
        left.append((len(dirty), written))
    assert left[3:] == [(3, 3)] * 5, "they are copied once, not after each step"
    for _ in range(3):
        dirty.wrote([])
    assert dirty.written_again() == 0
