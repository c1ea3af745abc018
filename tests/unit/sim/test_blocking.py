"""Code that waits inside of its calls: in the simulation's order, to its end or until closed."""

from __future__ import annotations

import pytest
import simpy

from fjx.sim.blocking import Blocking


def test_functions_that_wait_take_turns_as_processes_do() -> None:
    env, seen = simpy.Environment(0.0), list[tuple[str, float]]()

    def ticks(name: str, seconds: float) -> Blocking:
        def run() -> None:
            for _ in range(3):
                each.wait(env.timeout(seconds))
                seen.append((name, env.now))

        each = Blocking(env, run)
        return each

    ticks("slow", 2.0)
    ticks("fast", 1.5)
    env.run()
    expected = [("fast", 1.5), ("slow", 2.0), ("fast", 3.0), ("slow", 4.0), ("fast", 4.5)]
    assert seen == [*expected, ("slow", 6.0)]


def test_what_a_function_raises_ends_the_simulation() -> None:
    env = simpy.Environment(0.0)

    def run() -> None:
        process.wait(env.timeout(1.0))
        raise ValueError("nobody could be served")

    process = Blocking(env, run)
    with pytest.raises(ValueError, match="nobody could be served"):
        env.run()


def test_one_that_waits_for_ever_ends_when_it_is_closed() -> None:
    env, left = simpy.Environment(0.0), list[str]()

    def run() -> None:
        try:
            process.wait(env.event())
        finally:
            left.append("closed")

    process = Blocking(env, run)
    env.run()
    assert not left
    process.close()
    assert left == ["closed"]


def test_one_that_never_began_can_be_closed() -> None:
    Blocking(simpy.Environment(0.0), lambda: None).close()
