"""Who must go where nodes do not reach each other, and when that is decided."""

from __future__ import annotations

import pytest

from fjx.cluster.health.link_failures import KEPT_SECONDS, LinkFailures, Pair, fewest

GRACE = 2.0


class Scene:
    """Nodes that give signs of life, one a second, on a clock of the test's."""

    def __init__(self, *nodes: str) -> None:
        self.now, self.nodes = 100.0, list(nodes)
        self.link_failures = LinkFailures(GRACE, clock=lambda: self.now)
        self.gone: list[str] = []

    def run(self, seconds: int, silent: str = "", **unreached: str) -> None:
        """Let time pass; ``unreached``: for a node, those that it does not reach."""
        for _ in range(seconds):
            self.now += 1.0
            for node in self.nodes:
                if node != silent:
                    others = set(unreached.get(node, "").split())
                    self.link_failures.heard(node, self.now - 0.1, others)
            gone = self.link_failures.judge(self.nodes)
            self.gone += sorted(gone)
            self.nodes = [node for node in self.nodes if node not in gone]


def pairs(*each: str) -> set[Pair]:
    return {frozenset(pair.split("-")) for pair in each}


@pytest.mark.parametrize(
    ("cut", "serving", "expected"),
    [
        ((), "abc", ""),
        (("a-b", "b-c"), "abc", "b"),
        (("a-b",), "ab", "b"),
        (("a-b",), "b", "a"),
        (("a-b", "a-c"), "ac", "a"),
        (("a-b", "c-d", "c-e"), "abcde", "bc"),
        (("a-b", "b-c", "a-c"), "abc", "bc"),
    ],
)
def test_as_few_nodes_as_can_be_are_left_out(
    cut: tuple[str, ...], serving: str, expected: str
) -> None:
    assert fewest(pairs(*cut), serving) == set(expected)


def test_one_that_several_do_not_reach_goes() -> None:
    scene = Scene("a", "b", "c")
    scene.run(1, b="a")
    scene.run(5, b="a", c="a")
    assert scene.gone == ["a"]
    assert scene.link_failures.avoided == {"a"}


def test_a_pair_that_is_reached_again_in_time_stays() -> None:
    scene = Scene("a", "b")
    for _ in range(5):
        scene.run(2, b="a")
        scene.run(1)
    assert not scene.gone
    assert not scene.link_failures.avoided


def test_of_a_node_that_the_driver_does_not_reach_nothing_is_concluded() -> None:
    scene = Scene("a", "b", "c")
    scene.run(20, silent="a", b="a")
    assert not scene.gone


def test_the_next_cut_shows_that_the_wrong_one_was_left_out() -> None:
    scene = Scene("a", "b")
    scene.run(5, b="a")
    assert scene.gone == ["b"]
    scene.nodes.append("c")
    scene.run(5, c="a")
    assert scene.gone == ["b", "a"]
    assert scene.link_failures.avoided == {"a"}


def test_a_cut_is_forgotten_in_the_end() -> None:
    scene = Scene("a", "b")
    scene.run(5, b="a")
    scene.now += KEPT_SECONDS - 10
    assert scene.link_failures.avoided == {"b"}
    scene.now += 20
    assert not scene.link_failures.avoided
