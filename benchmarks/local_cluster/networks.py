"""Nodes that can be cut off: network namespaces of Linux, on a bridge that leads nowhere else.

For tests and benchmarks. It takes the right to make namespaces, and `ip` and `nsenter`; nothing
outside this process and what it starts sees any of it.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

HERE = "10.77.0.1"
"""This process's address."""
_BRIDGE = "fjx-bridge"
_MARK = "FJX_OWN_NETWORK"
"""In the environment of a program that has begun again."""
_NOBODY = "02:00:00:00:00:01"
"""A hardware address that nobody has."""
_NEW_NETWORK = 0x40000000
"""CLONE_NEWNET."""
_START_SECONDS = 10.0


def need_own_network() -> None:
    """Begin this program again in a network that has nothing but a loopback, unless it is in one
    already."""
    if _MARK not in os.environ:
        os.environ[_MARK] = "1"
        os.execvp("unshare", ["unshare", "--net", sys.executable, *sys.argv])


class Network:
    """A namespace with an address on the bridge."""

    def __init__(self, number: int) -> None:
        """``number``: from 2; the last part of its address."""
        self.address = f"10.77.0.{number}"
        self._port = f"fjx-{number}"
        ours = os.readlink("/proc/self/ns/net")
        self._holder = subprocess.Popen(["unshare", "--net", "sleep", "infinity"])
        self._path = Path(f"/proc/{self._holder.pid}/ns/net")
        until = time.monotonic() + _START_SECONDS
        while os.readlink(self._path) == ours:
            if time.monotonic() > until:
                raise TimeoutError("no network namespace was made")
            time.sleep(0.01)
        _ip(f"link add {self._port} type veth peer name eth0 netns {self._holder.pid}")
        _ip("link set lo up", self._holder.pid)
        _ip(f"addr add {self.address}/24 dev eth0", self._holder.pid)
        _ip("link set eth0 up", self._holder.pid)
        _ip(f"link set {self._port} up")
        self.heal()

    def cut(self) -> None:
        """From now on nothing comes in or out; nobody is told."""
        _ip(f"link set {self._port} nomaster")

    def heal(self) -> None:
        """All comes through again."""
        _ip(f"link set {self._port} master {_BRIDGE}")

    def cut_from(self, other: Network) -> None:
        """From now on nothing goes between these two; nobody is told, and all others reach both."""
        for one, to in ((self, other), (other, self)):
            _ip(f"neigh replace {to.address} lladdr {_NOBODY} dev eth0 nud permanent", one.process)

    def heal_to(self, other: Network) -> None:
        """These two reach each other again."""
        for one, to in ((self, other), (other, self)):
            _ip(f"neigh del {to.address} dev eth0", one.process)

    @property
    def process(self) -> int:
        """One that is in it."""
        return self._holder.pid

    def close(self) -> None:
        """Let go of it."""
        self._holder.kill()
        self._holder.wait()

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Processes that this thread starts meanwhile are in this network."""
        with Path("/proc/thread-self/ns/net").open() as ours, self._path.open() as theirs:
            _enter(theirs.fileno())
            try:
                yield
            finally:
                _enter(ours.fileno())


@contextmanager
def networks(count: int) -> Iterator[list[Network]]:
    """So many networks, and this process on the bridge that joins them."""
    _ip("link set lo up")
    _ip(f"link add {_BRIDGE} type bridge")
    _ip(f"addr add {HERE}/24 dev {_BRIDGE}")
    _ip(f"link set {_BRIDGE} up")
    with ExitStack() as stack:
        made = []
        for number in range(2, 2 + count):
            made.append(Network(number))
            stack.callback(made[-1].close)
        yield made


def _ip(command: str, process: int | None = None) -> None:
    within = [] if process is None else ["nsenter", "--net", f"--target={process}"]
    subprocess.run([*within, "ip", *command.split()], check=True)


def _enter(namespace: int) -> None:
    if ctypes.CDLL(None, use_errno=True).setns(namespace, _NEW_NETWORK):
        raise OSError(ctypes.get_errno(), "cannot enter a network namespace")
