"""What counts as out of reach, and what does not."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Iterator

import pytest

from fjx.cluster.health.reachability import ReachabilityMonitor, reaches

LONGEST = 30.0
"""Seconds after which waiting counts as hanging."""


@pytest.fixture
def listening() -> Iterator[socket.socket]:
    """A process that takes nothing of what comes, as if it was stopped."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as server:
        yield server


def address_of(server: socket.socket) -> str:
    host, port = server.getsockname()
    return f"{host}:{port}"


def test_a_process_that_is_stopped_or_gone_is_reached(listening: socket.socket) -> None:
    address = address_of(listening)
    assert reaches(address, LONGEST)
    listening.close()
    assert reaches(address, LONGEST)


def test_a_machine_that_does_not_answer_is_not(listening: socket.socket) -> None:
    with contextlib.ExitStack() as stack:
        # Linux answers nothing once more wait than shall be let wait.
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listening.getsockname())
        assert not reaches(address_of(listening), 0.2)


def wait_until(happened: Callable[[], object]) -> None:
    deadline = time.monotonic() + LONGEST
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_out_of_reach_is_who_fails_again_and_again() -> None:
    wanted, dead, tried = {"a:1", "b:2"}, {"b:2"}, []

    def tries(address: str, seconds: float) -> bool:
        tried.append(address)
        # Every third attempt at one fails, as on a bad network.
        return address not in dead and (address != "a:1" or tried.count("a:1") % 3 > 0)

    reach = ReachabilityMonitor(lambda: sorted(wanted), 0.05, tries)
    wait_until(lambda: reach.unreached)
    assert tried.count("b:2") >= 5
    begun = len(tried)
    wait_until(lambda: len(tried) > begun + 30)
    assert reach.unreached == ("b:2",)
    dead.clear()
    wait_until(lambda: not reach.unreached)
    dead.add("b:2")
    wait_until(lambda: reach.unreached)
    wanted.remove("b:2")
    wait_until(lambda: not reach.unreached)
